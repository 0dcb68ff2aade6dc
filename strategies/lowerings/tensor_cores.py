"""For GPUs with tensor cores, in float16 and bfloat16: the convolution as one product of matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from strategies.candidate import Value
from strategies.graph import Conv, Lowered, Ranges, Tiling, implicit
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.registry import strategy

DTYPES = ("float16", "bfloat16")
LEAST = 8
"""Channels and couts of a group: of fewer, the sixteens that an instruction takes are mostly filled up with zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCores:
    cout_block: int = param(128, (32, 64, 128), "couts of a workgroup")
    window_block: int = param(128, (32, 64, 96, 128, 192, 256), "outputs of a workgroup, of each of its couts")
    depth: int = param(32, (16, 32, 64), "channels copied to shared memory at a time")
    couts: int = param(64, (16, 32, 64), "couts of a warp")
    windows: int = param(64, (16, 32, 48, 64), "outputs of a warp, of each of its couts")
    parts: int = param(1, (1, 2, 3, 4, 6, 9, 12, 18), "parts of the sum over channels and taps, added up afterwards")

    presets: ClassVar[tuple[Mapping[str, Value], ...]] = (
        {},
        {"cout_block": 64, "couts": 32},
        {"cout_block": 64, "window_block": 64, "depth": 64, "couts": 32, "windows": 32},
        {"window_block": 64, "windows": 32, "parts": 3},
        {"cout_block": 32, "window_block": 64, "depth": 64, "couts": 16, "windows": 32, "parts": 9},
    )


def applies(key: ConvKey) -> bool:
    shape = key.shape
    return (
        key.device.device != "CPU" and shape.dtype in DTYPES and shape.acc_dtype == "float32"
        and min(shape.cin, shape.cout) // shape.groups >= LEAST
    )  # fmt: skip


@strategy("tensor_cores", TensorCores, applies=applies)
def tensor_cores(conv: Conv, params: TensorCores, ranges: Ranges) -> Lowered | None:
    """Windows of all images in one row; a product of weight and windows in blocks, one to a workgroup.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  X[c, b, p, 16], W[c, k, o, 16], Y[o, (b, y)] = sum of W * X by a kernel of our own, y = Y
                                                  4 kernels
    """
    by = Tiling(
        rows=params.cout_block, columns=params.window_block, depth=params.depth,
        warp_rows=params.couts, warp_columns=params.windows, parts=params.parts,
    )  # fmt: skip
    return implicit(conv, by, ranges)
