"""For GPUs, and any convolution: one product of matrices whose windows are gathered on their way to shared memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strategies.candidate import Value
from strategies.estimates import implicit_gemm_us
from strategies.graph import Blocking, Conv, Lowered, Ranges, lower_implicit_gemm
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.presets import best_of_each, every
from strategies.registry import strategy

LEAST = 8
"""Couts of a group, and products that an output sums: of fewer, most of a block is filled up with what nobody wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitGemm:
    cout_block: int = param(64, (16, 32, 64, 128), "couts of a workgroup")
    window_block: int = param(64, (32, 64, 128, 256), "outputs of a workgroup, of each of its couts")
    depth: int = param(16, (4, 8, 16, 32), "taps and channels copied to shared memory at a time")
    couts: int = param(8, (4, 8), "couts of a thread")
    windows: int = param(8, (4, 8), "outputs of a thread, of each of its couts")
    ahead: bool = param(False, (False, True), "read the next taps and channels while these are multiplied")
    parts: int = param(1, (1, 2, 4, 8, 16), "parts of the sum over taps and channels, added up afterwards")
    weight: str = param("staged", ("staged", "inline"), "whether the weight is transposed before the product reads it")

    @staticmethod
    def presets(key: ConvKey | None) -> Sequence[Mapping[str, Value]]:
        """The best by `implicit_gemm_us`; of those that differ in depth or sums of a thread alone, one."""
        return _presets(key) if key is not None else ({},)

    @property
    def blocking(self) -> Blocking:
        return Blocking(
            rows=self.cout_block, columns=self.window_block, depth=self.depth, thread_rows=self.couts,
            thread_columns=self.windows, ahead=self.ahead, parts=self.parts,
        )  # fmt: skip


PRESETS = 12
STATIC_BYTES = 32 << 10
"""Of shared memory, for one workgroup, on every GPU."""


@functools.lru_cache(maxsize=64)
def _presets(key: ConvKey) -> tuple[Mapping[str, Value], ...]:
    shape = key.shape
    couts, products = shape.cout // shape.groups, math.prod(shape.kernel) * shape.cin // shape.groups

    def fits(params: ImplicitGemm) -> bool:
        by = params.blocking
        if by.fault() is not None or by.shared_bytes > STATIC_BYTES or by.threads > 256:
            return False
        return not by.rows >= 2 * couts > LEAST * 2 and by.depth * by.parts <= products

    def kind(params: ImplicitGemm) -> tuple[Value, ...]:
        return params.cout_block, params.window_block, params.parts, params.ahead, params.weight

    return best_of_each(filter(fits, every(ImplicitGemm)), kind, lambda p: _us(key, p), PRESETS) or ({},)


def _us(key: ConvKey, params: ImplicitGemm) -> float:
    return implicit_gemm_us(key, params.blocking, staged=params.weight == "staged")


def applies(key: ConvKey) -> bool:
    shape = key.shape
    couts, channels = shape.cout // shape.groups, shape.cin // shape.groups
    few = min(couts, math.prod(shape.kernel) * channels) < LEAST
    return key.device.device != "CPU" and shape.dtype == shape.acc_dtype == "float32" and not few


@strategy("implicit_gemm", ImplicitGemm, applies=applies)
def implicit_gemm(conv: Conv, params: ImplicitGemm, ranges: Ranges) -> Lowered | None:
    """Outputs of all images in one row, of any kernel, stride and dilation; blocks of their sums, one to a workgroup.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  W[(k, c), o] = w, y[o, (b, y)] = sum of W * x by a kernel of our own
                                                  2 kernels; 1 with the weight inline, one more in parts

    No transform adds to the error, no columns are written: a 1x1 convolution reads its input as it lies.
    """
    return lower_implicit_gemm(conv, params.blocking, ranges, transposed=params.weight == "staged")
