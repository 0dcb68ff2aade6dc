"""For GPUs with tensor cores, in float16 and bfloat16: the convolution as one product of matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from strategies.candidate import Value
from strategies.graph import Conv, Lowered, Ranges, Tiling, implicit
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.presets import best_of_each, every
from strategies.registry import strategy

DTYPES = ("float16", "bfloat16")
NEVER = ("AMD", "CL", "CPU", "METAL", "QCOM", "WEBGPU")
"""Devices without instructions for 16 x 8 x 16 halves, which NVIDIA's have from Ampere on."""
LEAST = 8
"""Channels and couts of a group: of fewer, the sixteens that an instruction takes are mostly filled up with zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCores:
    cout_block: int = param(128, (32, 64, 128, 256), "couts of a workgroup")
    window_block: int = param(128, (32, 64, 96, 128, 192, 256), "outputs of a workgroup, of each of its couts")
    depth: int = param(32, (16, 32, 64), "channels copied to shared memory at a time")
    couts: int = param(64, (16, 32, 64), "couts of a warp")
    windows: int = param(64, (16, 32, 48, 64, 96), "outputs of a warp, of each of its couts")
    parts: int = param(1, (1, 2, 3, 4, 6, 9, 12, 18), "parts of the sum over channels and taps, added up afterwards")
    stages: int = param(2, (2, 3, 4, 5, 6), "steps that are in shared memory, or on their way there, at a time")

    @staticmethod
    def presets(key: ConvKey | None) -> Sequence[Mapping[str, Value]]:
        """The best by `estimate_us`; of those of one block, one."""
        return _presets(key) if key is not None else ({},)

    @property
    def tiling(self) -> Tiling:
        return Tiling(
            rows=self.cout_block, columns=self.window_block, depth=self.depth,
            warp_rows=self.couts, warp_columns=self.windows, parts=self.parts, stages=self.stages,
        )  # fmt: skip


PRESETS = 8
FEWEST, MOST, LEAST_SUMS = 3, 6, 32 * 32
"""Stages, and sums of a warp, of presets: copies go on by themselves, and what is read from shared memory is used."""
MULTIPROCESSORS = 64
"""Where a key does not say how many there are."""
SHARED_BYTES, STATIC_BYTES, REGISTERS = 227 << 10, 48 << 10, 1 << 16
"""Of a multiprocessor of compute capability 9.0; of one workgroup, without asking the driver; of 32 bits."""
STEP, DEEP_STEP = 900, 1400
"""Cycles that a step of two stages takes at least, waiting for memory; of depth 64."""
PIPELINED_STEP, COPY, INSTRUCTION = 130, 10, 9
"""Of more stages: for the barrier, and one after the other for each copy that a thread starts and each instruction of
its warp."""
SLOWER_COPIES, SLOWER_SUMS = 0.45, 1.03
"""How much of the time that the data sheet says, 128 bytes of shared memory and 1024 products a cycle: of the copies
half happens meanwhile."""
CACHE_BYTES = 45
"""What a multiprocessor gets from the second cache in a cycle.

These are fitted to kernels timed on an H200, those of two stages by eye. The estimate only says where a search
begins: what wins is timed.
"""
MEGAHERTZ = 1800
SPLIT_US = 0.9
"""What a product in parts costs beside its traffic: the rest of the kernel is then another one."""


def estimate_us(key: ConvKey, params: TensorCores) -> float:
    """Microseconds that the product takes on an H200, roughly: waves of workgroups, step by step as fast as the memory
    behind them, shared memory or the tensor cores allow."""
    shape, by = key.shape.canonical(), params.tiling
    windows = -(-shape.batch * math.prod(shape.output) // by.columns)
    groups = shape.groups * -(-(shape.cout // shape.groups) // by.rows) * windows * by.parts
    steps = math.prod(shape.kernel) * -(-(shape.cin // shape.groups) // by.depth) // by.parts
    registers = min(255.0, 1.2 * by.warp_rows * by.warp_columns / 32 + 60)
    together = min(REGISTERS / (by.threads * registers), SHARED_BYTES / (by.shared_bytes + 1024), 2048 / by.threads)
    waves, rest = divmod(groups, (key.device.cores or MULTIPROCESSORS) * max(1, int(together)))
    copied = by.threads // 32 * (by.warp_rows + by.warp_columns) + by.rows + by.columns
    busy = SLOWER_COPIES * copied * by.depth / 64 + SLOWER_SUMS * by.rows * by.columns * by.depth / 1024
    busy = max(busy, 2 * (by.rows + by.columns) * by.depth / CACHE_BYTES)
    if by.stages > 2:
        least = PIPELINED_STEP + COPY * by.copies + INSTRUCTION * by.instructions
    else:
        least = STEP if by.depth <= 32 else DEEP_STEP
    cycles = (steps + by.stages) * (
        waves * max(least, max(1, int(together)) * busy)
        + (max(least, -(-rest // (key.device.cores or MULTIPROCESSORS)) * busy) if rest else 0)
    )
    split_bytes = 8 * by.parts * shape.cout * windows * by.columns if by.parts > 1 else 0
    return cycles / MEGAHERTZ + split_bytes / 5.6e6 + (SPLIT_US if by.parts > 1 else 0)


@functools.lru_cache(maxsize=64)
def _presets(key: ConvKey) -> tuple[Mapping[str, Value], ...]:
    shape = key.shape.canonical()
    couts, channels = shape.cout // shape.groups, shape.cin // shape.groups

    def fits(params: TensorCores) -> bool:
        by = params.tiling
        if by.fault() is not None or by.shared_bytes > STATIC_BYTES or by.warp_rows * by.warp_columns < LEAST_SUMS:
            return False
        steps = math.prod(shape.kernel) * -(-channels // by.depth)
        return by.rows < 2 * couts and by.depth < 2 * channels and steps % by.parts == 0

    fitting = filter(fits, every(TensorCores, stages=FEWEST))
    deep = (replace(p, stages=min(MOST, STATIC_BYTES * FEWEST // p.tiling.shared_bytes)) for p in fitting)
    return best_of_each(deep, lambda p: (p.cout_block, p.window_block), lambda p: estimate_us(key, p), PRESETS)


def applies(key: ConvKey) -> bool:
    shape = key.shape
    return (
        key.device.device not in NEVER and shape.dtype in DTYPES and shape.acc_dtype == "float32"
        and min(shape.cin, shape.cout) // shape.groups >= LEAST
    )  # fmt: skip


@strategy("tensor_cores", TensorCores, applies=applies)
def tensor_cores(conv: Conv, params: TensorCores, ranges: Ranges) -> Lowered | None:
    """Windows of all images in one row; a product of weight and windows in blocks, one to a workgroup.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  X[c, b, p, 16], W[c, k, o, 16], Y[o, (b, y)] = sum of W * X by a kernel of our own, y = Y
                                                  4 kernels
    """
    if params.tiling.shared_bytes > STATIC_BYTES:
        return None  # known before anything is lowered: of many stages most blocks need more
    return implicit(conv, params.tiling, ranges)
