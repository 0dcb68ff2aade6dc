"""A batch of matrix products on tensor cores, as a kernel of our own. Its operands are gathered while they are copied.

    C[s, b, m, n] = sum over the k of part s of A[b, k, m] * B[b, k, n]

    each workgroup: one block of C, `rows` x `columns`, of one part of K
        for each step, `depth` of K: the threads together
            begin to read what the next step needs
            multiply what this one has in shared memory, each warp its own `warp_rows` x `warp_columns`
            put what was read to the other half of shared memory

Operands lie in groups of 16 along K, a multiple of which a step takes: `Operand.group` says where the group of a row
is, so a convolution's windows need no buffer of their own. Sixteen numbers of a row are what one instruction takes, and
which of them a lane calls its first is free as long as both operands agree: a lane reads four neighbours at once. Which
column is which is free too: two instructions together give a lane four columns that are neighbours in memory.

The instruction is `mma.sync` m16n8k16 (NVIDIA, "PTX ISA", section on matrix fragments): lane l has, at
k = 2 (l % 4) + {0, 1, 8, 9}, row l / 4 of A and the one eight below it, and column l / 4 of B; of C it has columns
2 (l % 4) + {0, 1} of the same two rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinygrad.codegen.opt.tc import TensorCore
from tinygrad.dtype import AddrSpace, DType, dtypes
from tinygrad.uop.ops import AxisType, KernelInfo, UOp

from strategies.graph.device import opened
from strategies.graph.sums import Store

GROUP = 16
"""Numbers along K that lie together: what one instruction multiplies."""
VECTOR = 4
"""Numbers that a thread copies at once, and that a lane holds of a group: 8 bytes, tinygrad's longest of halves."""
CORE_ROWS, CORE_COLUMNS = 16, 8
JOINED = 2
"""Instructions whose columns are dealt out together, so that a lane has 2 x 2 neighbours, a vector."""
WARP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """What a workgroup and a warp compute; `depth` of K at a time, K divided into `parts` that are not added up."""

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    parts: int = 1

    @property
    def threads(self) -> int:
        return self.rows // self.warp_rows * (self.columns // self.warp_columns) * WARP

    @property
    def shared_bytes(self) -> int:
        """Of two steps of both operands, in two bytes a number."""
        return 4 * self.depth * (self.rows + self.columns)

    @property
    def copies(self) -> int:
        """Vectors that a thread copies in a step."""
        return self.depth * (self.rows + self.columns) // (VECTOR * self.threads)

    @property
    def groups(self) -> int:
        return self.depth // GROUP

    def fault(self) -> str | None:
        """Why there is no such kernel, or None."""
        if self.rows % self.warp_rows or self.columns % self.warp_columns:
            return f"{self.rows} x {self.columns} does not divide into {self.warp_rows} x {self.warp_columns}"
        if self.warp_rows % CORE_ROWS or self.warp_columns % (CORE_COLUMNS * JOINED) or self.depth % GROUP:
            return f"{self.warp_rows} x {self.warp_columns} x {self.depth} is no multiple of 16 x 16 x 16"
        if self.threads > 1024:
            return f"{self.threads} threads, there are at most 1024"
        if self.depth * self.rows % (self.threads * VECTOR) or self.depth * self.columns % (self.threads * VECTOR):
            return f"{self.threads} threads cannot share the copying of {self.depth} x {self.rows} + {self.columns}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A parameter of `size` numbers. `group(batch, step, index, row)` counts the groups of 16 before the one that holds
    numbers 16 `index` and following, of this step of K, of this row (of B: column)."""

    size: int
    group: Callable[[UOp, UOp, UOp, UOp], UOp]


def tensor_core(device: str, dtype: DType) -> TensorCore | None:
    """The device's instruction for 16 x 8 x 16 products of this dtype with sums in float32, if it has one."""
    cores = opened(device).renderer.tensor_cores
    wanted = ((CORE_COLUMNS, CORE_ROWS, GROUP), dtype, dtypes.float32)
    return next((core for core in cores if (core.dims, core.dtype_in, core.dtype_out) == wanted), None)


def tensor_matmul(
    batch: int, m: int, n: int, steps: int, left: Operand, right: Operand, by: Tiling, store: Store, *,
    core: TensorCore, device: str, name: str,
) -> UOp:  # fmt: skip
    """The kernel, with parameters 1: A, 2: B, both of the core's dtype, and whatever `store` makes of the sums.

    m and n are multiples of the block's rows and columns; each part of K has `steps` of its depth.
    """
    down, across, which = (
        UOp.special(size, f"gidx{axis}") for axis, size in enumerate((m // by.rows, n // by.columns, batch * by.parts))
    )
    part, item = which % by.parts, which // by.parts
    thread = UOp.special(by.threads, "lidx0")
    warp, lane = thread // WARP, thread % WARP
    warps_across = by.columns // by.warp_columns
    row, column = warp // warps_across * by.warp_rows, warp % warps_across * by.warp_columns
    high, low = lane // 4, lane % 4

    copies = [
        _Copy(by, size, UOp.placeholder((2, by.groups, size, GROUP), core.dtype_in, slot=slot,
                                        addrspace=AddrSpace.LOCAL), thread, operand, slot + 1, item, first)
        for slot, (operand, size, first) in enumerate(
            ((left, by.rows, down * by.rows), (right, by.columns, across * by.columns))
        )
    ]  # fmt: skip
    begun = UOp.barrier(*(store for copy in copies for store in copy.stores(part * steps, UOp.const(0))))
    step = UOp.range(steps, 0, AxisType.REDUCE) if steps > 1 else UOp.const(0)
    rows, columns = (copy.shared.after(begun)[step % 2] for copy in copies)

    blocks_down, blocks_across = by.warp_rows // CORE_ROWS, by.warp_columns // CORE_COLUMNS
    sums = UOp.placeholder((blocks_down, blocks_across, 4), dtypes.float32, slot=0, addrspace=AddrSpace.REG)
    zeroed = UOp.range(blocks_down * blocks_across * 4, 500)
    sums = sums.after(sums.flatten()[zeroed].store(0.0).end(zeroed))
    former = sums.after(step) if steps > 1 else sums
    now = {
        (i, j): UOp.stack(*(former[i, j, e] for e in range(4)))
        for i in range(blocks_down) for j in range(blocks_across)
    }  # fmt: skip
    kind = opened(device).renderer.target.device
    for group in range(by.groups):
        a = [_rows_of(rows, group, row + i * CORE_ROWS + high, low) for i in range(blocks_down)]
        b = [_column_of(columns, group, column, j, high, low) for j in range(blocks_across)]
        now = {
            (i, j): UOp.wmma(a[i], b[j], total, core.dims, kind, core.threads) for (i, j), total in now.items()
        }  # fmt: skip
    added = [sums[i, j, e].store(value.index(UOp.const(e))) for (i, j), value in now.items() for e in range(4)]
    if steps > 1:
        following = part * steps + (step + 1).minimum(steps - 1)
        added += [store for copy in copies for store in copy.stores(following, (step + 1) % 2)]
        done = UOp.group(*added).barrier().end(step)
    else:
        done = UOp.group(*added)

    sums, stores = sums.after(done), []
    for i in range(blocks_down):
        for half in range(2):
            at_row = down * by.rows + row + i * CORE_ROWS + high + 8 * half
            for j in range(blocks_across):
                at_column = across * by.columns + column + _column(j - j % JOINED, low, 2)
                stores += [
                    store(part, item, at_row, at_column, 2 * (j % JOINED) + e, sums[i, j, 2 * half + e])
                    for e in range(2)
                ]
    return UOp.group(*stores).sink(arg=KernelInfo(name=name, opts_to_apply=()))


@dataclass(frozen=True, slots=True)
class _Copy:
    """What the threads together copy of one operand, one step at a time, to one of two halves of shared memory."""

    by: Tiling
    size: int
    shared: UOp
    thread: UOp
    operand: Operand
    slot: int
    item: UOp
    first: UOp

    def stores(self, step: UOp, half: UOp) -> list[UOp]:
        source = UOp.placeholder((self.operand.size,), self.shared.dtype, slot=self.slot)
        vectors = GROUP // VECTOR
        stores = []
        for turn in range(self.by.groups * self.size * vectors // self.by.threads):
            unit = self.thread + turn * self.by.threads
            group, row, vector = unit // (vectors * self.size), unit // vectors % self.size, unit % vectors
            at = self.operand.group(self.item, step, group, self.first + row) * GROUP + vector * VECTOR
            place, first = _place(row), vector * VECTOR
            stores += [self.shared[half, group, place, first + e].store(source[at + e]) for e in range(VECTOR)]
        return stores


def _place(row: UOp) -> UOp:
    """Where a row lies in shared memory: rows four apart, which lanes read together, must not share a bank."""
    return row // 4 * 4 + (row % 4 + row // 4 % 2 * 2) % 4


def _column(j: int, pair: UOp, width: int) -> UOp:
    """The first of the two columns of a warp that the lanes of a `pair` have of instruction j."""
    return pair * (width * JOINED) + j // JOINED * (CORE_COLUMNS * JOINED) + j % JOINED * width


def _rows_of(rows: UOp, group: int, row: UOp, low: UOp) -> UOp:
    """What a lane holds of 16 rows of A."""
    upper, lower = (_four(rows, group, at, low) for at in (row, row + 8))
    return UOp.stack(*upper[:2], *lower[:2], *upper[2:], *lower[2:])


def _column_of(columns: UOp, group: int, first: UOp, j: int, high: UOp, low: UOp) -> UOp:
    """What a lane holds of eight columns of B."""
    return UOp.stack(*_four(columns, group, first + _column(j, high // 2, 2) + high % 2, low))


def _four(lines: UOp, group: int, row: UOp, low: UOp) -> Sequence[UOp]:
    place, first = _place(row), low * VECTOR
    return [lines[group, place, first + e] for e in range(VECTOR)]


__all__ = ["GROUP", "Operand", "Tiling", "tensor_core", "tensor_matmul"]
