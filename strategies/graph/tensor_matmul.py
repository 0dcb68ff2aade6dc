"""A batch of matrix products on tensor cores, as a kernel of our own. Its operands are gathered while they are copied.

    C[s, b, m, n] = sum over the k of part s of A[b, k, m] * B[b, k, n]

    each workgroup: one block of C, `rows` x `columns`, of one part of K
        for each step, `depth` of K: the threads together
            begin to copy what a later step needs, `stages` - 1 ahead
            multiply what this one has in shared memory, each warp its own `warp_rows` x `warp_columns`

With two stages, what the next step needs is read into registers and put to the other half of shared memory when this
step is done. With more of them a thread only starts copies, which go on by themselves (`cp.async`, NVIDIA from compute
capability 8.0): registers are free for sums, and memory may take as long as several steps do. Where there is no such
instruction, stages are copied at once, to the same effect.

Operands lie in groups of 32 bytes along K, a multiple of which a step takes: 16 halves, or 8 numbers of TF32, which
are float32 with the last 13 digits zero. `Operand.group` says where the group of a row is, so a convolution's windows
need no buffer of their own. A row's group is what one instruction takes, and which of its numbers a lane calls its
first is free as long as both operands agree: a lane reads eight bytes of neighbours at once. Which column is which is
free too: two instructions together give a lane four columns that are neighbours in memory. A, which is made for this,
has the numbers of 16 rows in the order in which a lane's registers want them: see `arranged`.

The instruction is `mma.sync` m16n8k16, or m16n8k8 for TF32 (NVIDIA, "PTX ISA", section on matrix fragments). A register
is of four bytes: two halves, neighbours along K, or one number of TF32. Lane l has the registers l % 4 and l % 4 + 4
along K of row l / 4 of A and of the row eight below it, and of column l / 4 of B; of C it has columns
2 (l % 4) + {0, 1} of the same two rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tinygrad.codegen.opt.tc import TensorCore
from tinygrad.dtype import AddrSpace, DType, dtypes
from tinygrad.renderer.cstyle import CUDARenderer
from tinygrad.uop.ops import AxisType, KernelInfo, Ops, UOp

from strategies.graph.device import opened
from strategies.graph.gemm import Store

GROUP_BYTES = 32
"""Of the numbers along K that lie together: what one instruction multiplies."""
VECTOR_BYTES = 8
"""Of a group, what a lane holds and what a thread copies at once through registers: tinygrad's longest of halves."""
COPIED_BYTES = 16
"""What an asynchronous copy takes, past the first cache."""
REGISTER_BYTES = 4
CORE_ROWS, CORE_COLUMNS = 16, 8
TF32_DROPPED = 13
"""Of the 23 binary digits that float32 keeps of a number, those that TF32 does not."""
JOINED = 2
"""Instructions whose columns are dealt out together, so that a lane has 2 x 2 neighbours, a vector."""
WARP = 32

# PTX ISA, "Data movement: asynchronous copies". To shared memory, from global memory, past the first cache; of 16 bytes
# as many as the last operand says, the others are zeros.
START = (
    'asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" '
    ':: "r"((unsigned int)__cvta_generic_to_shared({0})), "l"({1}), "r"({2}) : "memory");'
)
COMMIT = 'asm volatile("cp.async.commit_group;" ::: "memory");'
WAIT = 'asm volatile("cp.async.wait_group COUNT;" ::: "memory");'


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """What a workgroup and a warp compute; `depth` of K at a time, K divided into `parts` that are not added up.

    `stages` steps of both operands are in shared memory at a time. A `group` of numbers along K is what an instruction
    multiplies: 16 of two bytes, 8 of four. All but `parts` and `stages` count numbers.
    """

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    parts: int = 1
    stages: int = 2
    group: int = 16

    @property
    def item_bytes(self) -> int:
        return GROUP_BYTES // self.group

    @property
    def vector(self) -> int:
        """Numbers that a lane holds of a group."""
        return VECTOR_BYTES // self.item_bytes

    @property
    def threads(self) -> int:
        return self.rows // self.warp_rows * (self.columns // self.warp_columns) * WARP

    @property
    def shared_bytes(self) -> int:
        """Of all stages of both operands."""
        return self.item_bytes * self.stages * self.depth * (self.rows + self.columns)

    @property
    def copied(self) -> int:
        """Numbers that a thread copies at once."""
        return (COPIED_BYTES if self.stages > 2 else VECTOR_BYTES) // self.item_bytes

    @property
    def copies(self) -> int:
        """Vectors that a thread copies in a step."""
        return self.depth * (self.rows + self.columns) // (self.copied * self.threads)

    @property
    def groups(self) -> int:
        return self.depth // self.group

    @property
    def instructions(self) -> int:
        """Of a warp in a step."""
        return self.warp_rows // CORE_ROWS * (self.warp_columns // CORE_COLUMNS) * self.groups

    def fault(self) -> str | None:
        """Why there is no such kernel, or None."""
        if self.rows % self.warp_rows or self.columns % self.warp_columns:
            return f"{self.rows} x {self.columns} does not divide into {self.warp_rows} x {self.warp_columns}"
        if self.warp_rows % CORE_ROWS or self.warp_columns % (CORE_COLUMNS * JOINED) or self.depth % self.group:
            return f"{self.warp_rows} x {self.warp_columns} x {self.depth} is no multiple of 16 x 16 x {self.group}"
        if self.threads > 1024:
            return f"{self.threads} threads, there are at most 1024"
        if any(self.depth * lines % (self.threads * self.copied) for lines in (self.rows, self.columns)):
            return f"{self.threads} threads cannot share the copying of {self.depth} x {self.rows} + {self.columns}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A parameter of `size` numbers. `group(batch, step, index, row)` counts the groups before the one that is number
    `index` of the step's along K, of this row (of B: column)."""

    size: int
    group: Callable[[UOp, UOp, UOp, UOp], UOp]


def tensor_core(device: str, dtype: DType, group: int) -> TensorCore | None:
    """The device's instruction for 16 x 8 x `group` products of this dtype with sums in float32, if it has one."""
    cores = opened(device).renderer.tensor_cores
    wanted = ((CORE_COLUMNS, CORE_ROWS, group), dtype, dtypes.float32)
    fits = group * dtype.itemsize == GROUP_BYTES  # there is one for eight halves too, of half as many bytes
    return next((core for core in cores if fits and (core.dims, core.dtype_in, core.dtype_out) == wanted), None)


def as_multiplied(value: UOp, dtype: DType) -> UOp:
    """A number as an operand of this dtype holds it. float32 is rounded to the 10 digits of TF32 here, to the nearest,
    of two away from zero: the instruction would just not look at the others, and products would come out too small.
    """
    value = value.cast(dtype)
    if dtype != dtypes.float32:
        return value
    half, kept = 1 << (TF32_DROPPED - 1), (1 << 32) - (1 << TF32_DROPPED)
    rounded = ((value.bitcast(dtypes.uint32) + half) & kept).bitcast(dtypes.float32)
    nan = value.const_like(math.nan)  # of some the carry would make a zero, and others have none but dropped digits
    return value.ne(value).where(nan, rounded)


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

    copies = tuple(
        _Copy(
            by=by, operand=operand, slot=slot, size=size, item=item, first=at * size, thread=thread, place=place,
            dtype=core.dtype_in, by_themselves=isinstance(opened(device).renderer, CUDARenderer),
        )
        for slot, (operand, size, at, place) in enumerate(
            ((left, by.rows, down, _as_it_is), (right, by.columns, across, _place))
        )
    )  # fmt: skip
    step = UOp.range(steps, 0, AxisType.REDUCE) if steps > 1 else UOp.const(0)
    staged = _pipelined if by.stages > 2 else _in_turn
    (rows, columns), end = staged(copies, step, part * steps, steps)

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
        a = [_rows_of(rows, group, row + i * CORE_ROWS, high, low * by.vector, by.vector) for i in range(blocks_down)]
        b = [_column_of(columns, group, column, j, high, low * by.vector, by.vector) for j in range(blocks_across)]
        now = {
            (i, j): UOp.wmma(a[i], b[j], total, core.dims, kind, core.threads) for (i, j), total in now.items()
        }  # fmt: skip
    added = [sums[i, j, e].store(value.index(UOp.const(e))) for (i, j), value in now.items() for e in range(4)]
    done = end(added)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """What the threads together copy of one operand, one step at a time, to one of the stages in shared memory: `size`
    rows (columns) from `first` on, each to its `place`; `by_themselves` if the device has copies that a thread only
    starts."""

    by: Tiling
    operand: Operand
    slot: int
    size: int
    item: UOp
    first: UOp
    thread: UOp
    place: Callable[[UOp], UOp]
    dtype: DType
    by_themselves: bool

    @property
    def shared(self) -> UOp:
        """stages x groups x size x numbers of a group."""
        shape = (self.by.stages, self.by.groups, self.size, self.by.group)
        return UOp.placeholder(shape, self.dtype, slot=self.slot, addrspace=AddrSpace.LOCAL)

    def stores(self, step: UOp, stage: UOp, *after: UOp) -> list[UOp]:
        """Reads and stores, each of a number."""
        return [
            to[e].store(source[e]) for to, source in self._vectors(step, stage, *after) for e in range(self.by.copied)
        ]

    def starts(self, step: UOp, stage: UOp, wanted: UOp, *after: UOp) -> list[UOp]:
        """Copies that go on by themselves; where they are not wanted, nothing is read."""
        count = wanted.where(UOp.const(COPIED_BYTES, dtypes.int32), UOp.const(0, dtypes.int32))
        return [
            UOp(Ops.CUSTOM, dtypes.void, (to[0], source[0], count, *after), START)
            for to, source in self._vectors(step, stage, *after)
        ]

    def _vectors(self, step: UOp, stage: UOp, *after: UOp) -> Iterator[tuple[list[UOp], list[UOp]]]:
        """Where this thread's vectors of a step go, and where they come from."""
        source = UOp.placeholder((self.operand.size,), self.dtype, slot=self.slot + 1)
        shared, copied = self.shared.after(*after), self.by.copied
        vectors = self.by.group // copied
        for turn in range(self.by.groups * self.size * vectors // self.by.threads):
            unit = self.thread + turn * self.by.threads
            group, row, vector = unit // (vectors * self.size), unit // vectors % self.size, unit % vectors
            at = self.operand.group(self.item, step, group, self.first + row) * self.by.group + vector * copied
            place, first = self.place(row), vector * copied
            yield (
                [shared[stage, group, place, first + e] for e in range(copied)],
                [source[at + e] for e in range(copied)],
            )


Lines = tuple[UOp, ...]
"""Of both operands, what a step multiplies: groups x rows (or columns) x numbers of a group, in shared memory."""
End = Callable[[Sequence[UOp]], UOp]
"""From a step's stores of its sums to what the steps have done."""


def _in_turn(copies: Sequence[_Copy], step: UOp, first: UOp, steps: int) -> tuple[Lines, End]:
    """Two stages: what the next step needs is read while this one multiplies, and put beside it at the end."""
    begun = UOp.barrier(*(store for copy in copies for store in copy.stores(first, UOp.const(0))))

    def end(added: Sequence[UOp]) -> UOp:
        if steps == 1:
            return UOp.group(*added)
        following = first + (step + 1).minimum(steps - 1)
        stores = (store for copy in copies for store in copy.stores(following, (step + 1) % 2))
        return UOp.group(*added, *stores).barrier().end(step)

    return tuple(copy.shared.after(begun)[step % 2] for copy in copies), end


def _pipelined(copies: Sequence[_Copy], step: UOp, first: UOp, steps: int) -> tuple[Lines, End]:
    """A step begins the copies of the stage that the step before it has done with, and waits for the next step's.

    One barrier a step says both: that everybody's copies are there, and that nobody multiplies what is overwritten.
    """
    stages = copies[0].by.stages
    ahead = stages - 1
    begun: tuple[UOp, ...] = ()
    for stage in range(ahead):
        begun = _batch(copies, first + min(stage, steps - 1), UOp.const(stage), UOp.const(stage < steps), *begun)
    ready = UOp.barrier(*_arrived(copies, *begun))
    if steps == 1:
        return tuple(copy.shared.after(ready)[0] for copy in copies), lambda added: UOp.group(*added)
    coming = step + ahead
    started = _batch(copies, first + coming.minimum(steps - 1), coming % stages, coming < steps, ready)
    lines = tuple(copy.shared.after(ready)[step % stages] for copy in copies)
    return lines, lambda added: UOp.barrier(*_arrived(copies, *started, *added)).end(step)


def _batch(copies: Sequence[_Copy], step: UOp, stage: UOp, wanted: UOp, *after: UOp) -> tuple[UOp, ...]:
    """The copies of one step, to be waited for together; if they are not wanted, an empty batch."""
    if not copies[0].by_themselves:
        return tuple(store for copy in copies for store in copy.stores(step, stage, *after))
    starts = (start for copy in copies for start in copy.starts(step, stage, wanted, *after))
    return (UOp(Ops.CUSTOM, dtypes.void, tuple(starts), COMMIT),)


def _arrived(copies: Sequence[_Copy], *begun: UOp) -> tuple[UOp, ...]:
    """That the oldest batch is there: each step begins one, and `stages` - 2 may be on their way."""
    if not copies[0].by_themselves:
        return begun
    return (UOp(Ops.CUSTOM, dtypes.void, begun, WAIT.replace("COUNT", str(copies[0].by.stages - 2))),)


def _as_it_is(row: UOp) -> UOp:
    return row


def _place(row: UOp) -> UOp:
    """Where a column lies in shared memory: columns four apart, which lanes read together, must not share a bank."""
    return row // 4 * 4 + (row % 4 + row // 4 % 2 * 2) % 4


def _column(j: int, pair: UOp, width: int) -> UOp:
    """The first of the two columns of a warp that the lanes of a `pair` have of instruction j."""
    return pair * (width * JOINED) + j // JOINED * (CORE_COLUMNS * JOINED) + j % JOINED * width


def arranged(line: UOp, number: UOp, item_bytes: int) -> tuple[UOp, UOp]:
    """Which row of A and which number of its group is in memory as this number of this line.

    The neighbours that a lane reads at once are a register of a row and the same one of the row eight below; in the
    line eight below are the registers that follow along K.
    """
    one = REGISTER_BYTES // item_bytes
    row = line // CORE_ROWS * CORE_ROWS + line % 8 + number % (2 * one) // one * 8
    return row, number // (2 * one) * (2 * one) + line % CORE_ROWS // 8 * one + number % one


def _rows_of(rows: UOp, group: int, first: UOp, high: UOp, at: UOp, vector: int) -> UOp:
    """What a lane holds of 16 rows of A."""
    lines = (first + high, first + 8 + high)
    return UOp.stack(*(rows[group, line, at + e] for line in lines for e in range(vector)))


def _column_of(columns: UOp, group: int, first: UOp, j: int, high: UOp, at: UOp, vector: int) -> UOp:
    """What a lane holds of eight columns of B."""
    place = _place(first + _column(j, high // 2, 2) + high % 2)
    return UOp.stack(*(columns[group, place, at + e] for e in range(vector)))


__all__ = ["Operand", "Tiling", "arranged", "as_multiplied", "tensor_core", "tensor_matmul"]
