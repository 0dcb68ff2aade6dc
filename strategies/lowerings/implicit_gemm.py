"""For GPUs, and any convolution: one product of matrices whose windows are gathered on their way to shared memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strategies.candidate import Value
from strategies.graph import Blocking, Conv, Lowered, Ranges
from strategies.graph import implicit_gemm as gemm
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
        """The best by `estimate_us`; of those that differ in depth or sums of a thread alone, one."""
        return _presets(key) if key is not None else ({},)

    @property
    def blocking(self) -> Blocking:
        return Blocking(
            rows=self.cout_block, columns=self.window_block, depth=self.depth, thread_rows=self.couts,
            thread_columns=self.windows, ahead=self.ahead, parts=self.parts,
        )  # fmt: skip


PRESETS = 12
MULTIPROCESSORS = 64
"""Where a key does not say how many there are."""
SHARED_BYTES, STATIC_BYTES, REGISTERS = 227 << 10, 32 << 10, 1 << 16
"""Of a multiprocessor of compute capability 9.0; of one workgroup, on every GPU; of 32 bits."""
CHUNK, AHEAD_CHUNK, BARRIERS = 900, 500, 100
"""Cycles that a chunk takes at least, waiting for memory; where the next one is read ahead; beside what threads do."""
GATHERED = 12
"""Instructions to read one number of a window and put it into shared memory."""
MEGAHERTZ = 1800
KERNEL_US = 2.5
"""What one kernel more costs beside its traffic."""
BYTES_PER_US, CACHED_BYTES_PER_US = 3.5e6, 5.5e6
"""From memory, and from the cache that all multiprocessors share."""


def estimate_us(key: ConvKey, params: ImplicitGemm) -> float:
    """Microseconds that it takes on a GPU like an H200, roughly: waves of workgroups, chunk by chunk as fast as the
    memory behind them, shared memory or arithmetic allow. The numbers are of the data sheet or guessed: the estimate
    only says where a search begins, what wins is timed."""
    shape, by, cores = key.shape, params.blocking, key.device.cores or MULTIPROCESSORS
    couts, products = shape.cout // shape.groups, math.prod(shape.kernel) * shape.cin // shape.groups
    outputs = shape.batch * math.prod(shape.output)
    blocks = shape.groups * -(-couts // by.rows) * -(-outputs // by.columns) * by.parts
    chunks = -(-products // (by.depth * by.parts))
    registers = by.thread_rows * by.thread_columns + 2 * (by.thread_rows + by.thread_columns) + 24
    copied = by.depth * (by.rows + by.columns)
    registers += copied // by.threads * (2 if by.ahead else 1)
    resident = min(REGISTERS // (by.threads * min(registers, 255)), SHARED_BYTES // (by.shared_bytes + 1024))
    together = max(1, min(resident, 2048 // by.threads))
    # in a cycle a multiprocessor makes 128 products, reads 32 numbers of shared memory, begins 4 warps' instructions
    sums = by.rows * by.columns * by.depth
    reads = sums * (by.thread_rows + by.thread_columns) / (by.thread_rows * by.thread_columns) / 32
    gathers = GATHERED if math.prod(shape.kernel) > 1 or set(shape.stride) != {1} else GATHERED / 4
    busy = (
        BARRIERS / together
        + max(1.2 * sums / 128, reads)
        + (by.depth * by.columns * gathers + by.depth * by.rows * 3) / 128
    )
    least = AHEAD_CHUNK if by.ahead else CHUNK
    waves, rest = divmod(blocks, cores * together)
    cycles = chunks * (waves * max(least, together * busy) + (max(least, -(-rest // cores) * busy) if rest else 0))
    cached = 4 * blocks * chunks * copied / CACHED_BYTES_PER_US
    us = max(cycles / MEGAHERTZ, cached)
    if params.weight == "staged" and not key.policy.frozen_weights:
        us += KERNEL_US + 8 * couts * shape.groups * products / BYTES_PER_US
    if params.weight == "inline":  # what a thread reads together is together in memory for one tap alone
        us += 4 * couts * shape.groups * products * (2 if math.prod(shape.kernel) == 1 else 8) / CACHED_BYTES_PER_US
    if by.parts > 1:
        us += KERNEL_US + 8 * by.parts * shape.cout * outputs / BYTES_PER_US
    return us


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

    return best_of_each(filter(fits, every(ImplicitGemm)), kind, lambda p: estimate_us(key, p), PRESETS) or ({},)


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
    return gemm(conv, params.blocking, ranges, transposed=params.weight == "staged")
