"""How long a product of matrices takes on a GPU, roughly: it says where a search begins. What wins is timed.

Both products are waves of workgroups, and a workgroup takes its sum step by step, each as fast as the memory behind it,
shared memory or arithmetic allow. The numbers are of an H200 (compute capability 9.0): from NVIDIA's data sheet, or
fitted to kernels timed there, those of tensor cores with two stages and of `implicit_gemm` by eye.
"""

from __future__ import annotations

import math

from strategies.graph import Blocking, Tiling
from strategies.key import ConvKey

MEGAHERTZ = 1800
MULTIPROCESSORS = 64
"""Where a key does not say how many there are."""
REGISTERS, MOST_REGISTERS, THREADS = 1 << 16, 255, 2048
"""Of 32 bits, of a multiprocessor and of one thread; threads of a multiprocessor."""
SHARED_BYTES, RESERVED_BYTES = 227 << 10, 1 << 10
"""Of a multiprocessor; of them, what each of its workgroups costs beside its own."""
BYTES_PER_US, CACHED_BYTES_PER_US = 3.5e6, 5.6e6
"""From memory, and from the cache that all multiprocessors share."""


def tensor_cores_us(key: ConvKey, by: Tiling) -> float:
    """Microseconds of `tensor_cores` in these blocks."""
    step, deep_step = 900, 1400  # cycles that a step of two stages takes at least, waiting for memory; of depth 64
    pipelined_step, copy, instruction = 130, 10, 9
    # of more stages: for the barrier, and one after the other for each copy that a thread starts and each instruction
    # of its warp
    slower_copies, slower_sums = 0.45, 1.03
    # how much of the time that the data sheet says, 128 bytes of shared memory and 1024 products of halves a cycle: of
    # the copies half happens meanwhile
    cached_bytes = 45  # what a multiprocessor gets from the shared cache in a cycle
    split_us = 0.9  # a product in parts beside its traffic: the rest of the kernel is then another one

    shape, cores = key.shape.canonical(), key.device.cores or MULTIPROCESSORS
    windows = -(-shape.batch * math.prod(shape.output) // by.columns)
    groups = shape.groups * -(-(shape.cout // shape.groups) // by.rows) * windows * by.parts
    steps = math.prod(shape.kernel) * -(-(shape.cin // shape.groups) // by.depth) // by.parts
    registers = min(float(MOST_REGISTERS), 1.2 * by.warp_rows * by.warp_columns / 32 + 60)
    together = max(1, int(_resident(by.threads, registers, by.shared_bytes)))
    waves, rest = divmod(groups, cores * together)
    copied = by.threads // 32 * (by.warp_rows + by.warp_columns) + by.rows + by.columns
    halves = by.depth * by.item_bytes // 2  # along K: a number of four bytes costs what two halves do
    busy = slower_copies * copied * halves / 64 + slower_sums * by.rows * by.columns * halves / 1024
    busy = max(busy, 2 * (by.rows + by.columns) * halves / cached_bytes)
    if by.stages > 2:
        least = pipelined_step + copy * by.copies + instruction * by.instructions
    else:
        least = step if halves <= 32 else deep_step
    cycles = (steps + by.stages) * _waves(waves, rest, cores, together, least, busy)
    split_bytes = 8 * by.parts * shape.cout * windows * by.columns if by.parts > 1 else 0
    return cycles / MEGAHERTZ + split_bytes / CACHED_BYTES_PER_US + (split_us if by.parts > 1 else 0)


def implicit_gemm_us(key: ConvKey, by: Blocking, *, staged: bool) -> float:
    """Microseconds of `implicit_gemm` in these blocks, with the weight staged or read where it is."""
    chunk, ahead_chunk, barriers = 900, 500, 100
    # cycles that a chunk takes at least, waiting for memory; where the next one is read ahead; beside what threads do
    gathered = 12  # instructions to read one number of a window and put it into shared memory
    kernel_us = 2.5  # what one kernel more costs beside its traffic

    shape, cores = key.shape, key.device.cores or MULTIPROCESSORS
    couts, products = shape.cout // shape.groups, math.prod(shape.kernel) * shape.cin // shape.groups
    outputs = shape.batch * math.prod(shape.output)
    blocks = shape.groups * -(-couts // by.rows) * -(-outputs // by.columns) * by.parts
    chunks = -(-products // (by.depth * by.parts))
    copied = by.depth * (by.rows + by.columns)
    registers = by.thread_rows * by.thread_columns + 2 * (by.thread_rows + by.thread_columns) + 24
    registers = min(registers + copied // by.threads * (2 if by.ahead else 1), MOST_REGISTERS)
    together = max(1, int(_resident(by.threads, registers, by.shared_bytes)))
    # in a cycle a multiprocessor makes 128 products, reads 32 numbers of shared memory, begins 4 warps' instructions
    sums = by.rows * by.columns * by.depth
    reads = sums * (by.thread_rows + by.thread_columns) / (by.thread_rows * by.thread_columns) / 32
    gathers = gathered if math.prod(shape.kernel) > 1 or set(shape.stride) != {1} else gathered / 4
    busy = (
        barriers / together
        + max(1.2 * sums / 128, reads)
        + (by.depth * by.columns * gathers + by.depth * by.rows * 3) / 128
    )
    waves, rest = divmod(blocks, cores * together)
    cycles = chunks * _waves(waves, rest, cores, together, ahead_chunk if by.ahead else chunk, busy)
    us = max(cycles / MEGAHERTZ, 4 * blocks * chunks * copied / CACHED_BYTES_PER_US)
    weight = 4 * couts * shape.groups * products
    if staged and not key.policy.frozen_weights:
        us += kernel_us + 2 * weight / BYTES_PER_US
    if not staged:  # what a thread reads together is together in memory for one tap alone
        us += weight * (2 if math.prod(shape.kernel) == 1 else 8) / CACHED_BYTES_PER_US
    if by.parts > 1:
        us += kernel_us + 8 * by.parts * shape.cout * outputs / BYTES_PER_US
    return us


def _resident(threads: int, registers: float, shared_bytes: int) -> float:
    """Workgroups that a multiprocessor has at a time."""
    return min(REGISTERS / (threads * registers), SHARED_BYTES / (shared_bytes + RESERVED_BYTES), THREADS / threads)


def _waves(waves: int, rest: int, cores: int, together: int, least: float, busy: float) -> float:
    """Cycles of one step of all workgroups: in each full wave of as many as a multiprocessor has `together`, and in the
    last one, of which there are `rest`."""
    last = max(least, -(-rest // cores) * busy) if rest else 0
    return waves * max(least, together * busy) + last


__all__ = ["implicit_gemm_us", "tensor_cores_us"]
