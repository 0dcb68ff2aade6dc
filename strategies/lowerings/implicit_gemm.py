"""For GPUs, and any convolution: one product of matrices whose windows are gathered on their way to shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.graph import Blocking, Conv, Lowered, Ranges
from strategies.graph import implicit_gemm as lowered
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.registry import strategy

LEAST = 8
"""Couts of a group, and products that an output sums: of fewer, most of what a workgroup computes only fills up its
block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitGemm:
    cout_block: int = param(64, (16, 32, 64, 128), "couts of a workgroup")
    window_block: int = param(64, (32, 64, 128, 256), "outputs of a workgroup, of each of its couts")
    depth: int = param(16, (4, 8, 16, 32), "products of an output for which operands are in shared memory at a time")
    couts: int = param(8, (4, 8), "couts of a thread")
    windows: int = param(8, (4, 8), "outputs of a thread, of each of its couts")
    ahead: bool = param(False, (False, True), "read the next operands while these are multiplied")
    parts: int = param(1, (1, 2, 4, 8, 16), "parts of the sum over channels and taps, added up afterwards")
    weight: str = param("staged", ("staged", "inline"), "whether the weight is transposed before the product reads it")

    @property
    def blocking(self) -> Blocking:
        return Blocking(
            rows=self.cout_block, columns=self.window_block, depth=self.depth, thread_rows=self.couts,
            thread_columns=self.windows, ahead=self.ahead, parts=self.parts,
        )  # fmt: skip


def applies(key: ConvKey) -> bool:
    return key.device.device != "CPU"


@strategy("implicit_gemm", ImplicitGemm, applies=applies)
def implicit_gemm(conv: Conv, params: ImplicitGemm, ranges: Ranges) -> Lowered | None:
    """Outputs of all images in one row, of any kernel, stride and dilation; blocks of their sums, one to a workgroup.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  W[(k, c), o] = w, y[o, (b, y)] = sum of W * x by a kernel of our own
                                                  2 kernels; 1 with the weight inline, one more in parts
    """
    return lowered(conv, params.blocking, ranges, transposed=params.weight == "staged")
