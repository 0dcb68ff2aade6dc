"""For GPUs with tensor cores, in float16 and bfloat16: the convolution as one product of matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from strategies.candidate import Value
from strategies.estimates import tensor_cores_us
from strategies.graph import Conv, Lowered, Ranges, Tiling, lower_tensor_cores
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.presets import best_of_each, every
from strategies.registry import strategy

DTYPES = ("float16", "bfloat16")
NEVER = ("AMD", "CL", "CPU", "METAL", "QCOM", "WEBGPU")
"""Devices without the instructions, 16 x 8 x 16 halves or 16 x 8 x 8 numbers of TF32: NVIDIA's have them from Ampere
on."""
LEAST = 8
"""Channels and couts of a group: of fewer, the sixteens that an instruction takes are mostly filled up with zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCores:
    GROUP: ClassVar[int] = 16
    """Numbers along the sum that an instruction multiplies."""

    cout_block: int = param(128, (32, 64, 128, 256), "couts of a workgroup")
    window_block: int = param(128, (32, 64, 96, 128, 192, 256), "outputs of a workgroup, of each of its couts")
    depth: int = param(32, (16, 32, 64), "channels copied to shared memory at a time")
    couts: int = param(64, (16, 32, 64), "couts of a warp")
    windows: int = param(64, (16, 32, 48, 64, 96), "outputs of a warp, of each of its couts")
    parts: int = param(1, (1, 2, 3, 4, 6, 9, 12, 18), "parts of the sum over channels and taps, added up afterwards")
    stages: int = param(2, (2, 3, 4, 5, 6), "steps that are in shared memory, or on their way there, at a time")

    @classmethod
    def presets(cls, key: ConvKey | None) -> Sequence[Mapping[str, Value]]:
        """The best by `tensor_cores_us`; of those of one block, one."""
        # mypy looks for a class's hash among its instances' methods
        return _presets(cls, key) if key is not None else ({},)  # type: ignore[arg-type]

    @property
    def tiling(self) -> Tiling:
        return Tiling(
            rows=self.cout_block, columns=self.window_block, depth=self.depth,
            warp_rows=self.couts, warp_columns=self.windows, parts=self.parts, stages=self.stages,
            group=self.GROUP,
        )  # fmt: skip


PRESETS = 8
FEWEST, MOST, LEAST_SUMS = 3, 6, 32 * 32
"""Stages, and sums of a warp, of presets: copies go on by themselves, and what is read from shared memory is used."""
STATIC_BYTES = 48 << 10
"""Of shared memory, for one workgroup, without asking the driver for more."""


@functools.lru_cache(maxsize=64)
def _presets(params: type[Any], key: ConvKey) -> tuple[Mapping[str, Value], ...]:
    """Blocks that there are for the key, with as many stages as have room."""
    shape = key.shape.canonical()
    couts, channels = shape.cout // shape.groups, shape.cin // shape.groups

    def fits(params: TensorCores) -> bool:
        by = params.tiling
        if by.fault() is not None or by.shared_bytes > STATIC_BYTES or by.warp_rows * by.warp_columns < LEAST_SUMS:
            return False
        steps = math.prod(shape.kernel) * -(-channels // by.depth)
        return by.rows < 2 * couts and by.depth < 2 * channels and steps % by.parts == 0

    fitting = filter(fits, every(params, stages=FEWEST))
    deep = (replace(p, stages=min(MOST, STATIC_BYTES * FEWEST // p.tiling.shared_bytes)) for p in fitting)

    def kind(params: TensorCores) -> tuple[int, int]:
        return params.cout_block, params.window_block

    return best_of_each(deep, kind, lambda p: tensor_cores_us(key, p.tiling), PRESETS)


def is_worth_blocks(key: ConvKey) -> bool:
    """Whether the device may have such tensor cores, and what they are filled up with is less than what is wanted."""
    return key.device.device not in NEVER and min(key.shape.cin, key.shape.cout) // key.shape.groups >= LEAST


def applies(key: ConvKey) -> bool:
    return is_worth_blocks(key) and key.shape.dtype in DTYPES and key.shape.acc_dtype == "float32"


def product_of(conv: Conv, by: Tiling, ranges: Ranges) -> Lowered | None:
    """What replaces the convolution, if shared memory has room for the blocks."""
    if by.shared_bytes > STATIC_BYTES:
        return None  # known before anything is lowered: of many stages most blocks need more
    return lower_tensor_cores(conv, by, ranges)


@strategy("tensor_cores", TensorCores, applies=applies)
def tensor_cores(conv: Conv, params: TensorCores, ranges: Ranges) -> Lowered | None:
    """Windows of all images in one row; a product of weight and windows in blocks, one to a workgroup.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  X[c, b, p, 16], W[c, k, o, 16], Y[o, (b, y)] = sum of W * X by a kernel of our own, y = Y
                                                  4 kernels
    """
    return product_of(conv, params.tiling, ranges)
