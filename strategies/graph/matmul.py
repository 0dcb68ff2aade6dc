"""A batch of matrix products as a kernel of our own, its operands staged through memory that a workgroup shares.

    C[s, b, m, n] = sum over the k of part s of A[b, k, m] * B[b, k, n]

    each workgroup: one block of C, `rows` x `columns`, of one part of K
        for each chunk of `depth` k:
            the threads together copy depth x rows of A and depth x columns of B to shared memory
            for each k of the chunk: every thread adds its own outer product, held in registers

With `ahead` there are two chunks in shared memory: the next one is read before this one is multiplied and put there
afterwards, so that memory is waited for while there is work, and one barrier a chunk is enough.

tinygrad's code generation reads operands from global memory for every thread that needs them; here each element is
read once per workgroup. The structure is that of CUTLASS's SIMT GEMM (NVIDIA, "CUTLASS: Fast Linear Algebra in CUDA
C++", 2017): blocks, then a tile per warp, then one per thread, which reads its operands as vectors of four.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinygrad.dtype import AddrSpace, DType, dtypes
from tinygrad.uop.ops import AxisType, KernelInfo, UOp, sint

from strategies.graph.gemm import VECTOR, Store, product_store
from strategies.graph.ranges import ended

LANES_DOWN, LANES_ACROSS = 4, 8
"""Threads of a warp, down the rows and across the columns: as square as 32 allow, to read least for most sums."""
WARP = LANES_DOWN * LANES_ACROSS


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocking:
    """What a workgroup and a thread compute.

    A workgroup has `rows` x `columns` sums and goes through `depth` of K at a time; a thread has `thread_rows` x
    `thread_columns` of the sums, in vectors of four that lie apart so that the lanes of a warp read next to each other.
    K is divided into `parts` that are not added up. With `ahead` the next `depth` is on its way, in registers, while
    this one is multiplied. All but `parts` count numbers, float32 in shared memory.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    ahead: bool = False
    parts: int = 1

    @property
    def warps_down(self) -> int:
        return self.rows // (LANES_DOWN * self.thread_rows)

    @property
    def warps_across(self) -> int:
        return self.columns // (LANES_ACROSS * self.thread_columns)

    @property
    def threads(self) -> int:
        return self.warps_down * self.warps_across * WARP

    @property
    def shared_bytes(self) -> int:
        return 4 * self.depth * (self.rows + self.columns) * (2 if self.ahead else 1)

    def fault(self) -> str | None:
        """Why there is no such kernel, or None."""
        if self.rows % (LANES_DOWN * self.thread_rows) or self.columns % (LANES_ACROSS * self.thread_columns):
            return f"a block of {self.rows} x {self.columns} does not divide into warps"
        if self.depth * self.rows % self.threads or self.depth * self.columns % self.threads:
            return f"{self.threads} threads cannot share the copying of {self.depth} x {self.rows} + {self.columns}"
        if self.threads > 1024:
            return f"{self.threads} threads, there are at most 1024"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One side of a product. `load(batch, k, at, e)` is its number at `e` after `at` along the rows of A, the columns
    of B; of what lies `along_k` in memory, at `at` and `e` after `k`.

    At most `vector` neighbours are copied together: `at` (or `k`) is a multiple of how many.
    """

    load: Callable[[UOp, UOp, UOp, int], UOp]
    vector: int = VECTOR
    along_k: bool = False


@functools.lru_cache(maxsize=64)  # a network has the same product many times
def matmul(batch: int, m: int, n: int, k: int, by: Blocking, dtype: DType = dtypes.float32) -> UOp:
    """The kernel, with parameters 0: C of parts x batch x m x n, 1: A of `batch` x k x m, 2: B of `batch` x k x n.

    m and n are multiples of the block's rows and columns, k of its depth in every part.
    """
    a, b = (UOp.placeholder((batch, k, size), dtype, slot=slot) for slot, size in ((1, m), (2, n)))
    left, right = (
        Operand(load=lambda item, at_k, at, e, whole=whole: whole[item, at_k, at + e])  # type: ignore[misc]
        for whole in (a, b)
    )
    store = product_store(by.parts, batch, m, n, dtype)
    return product(batch, m, n, k, left, right, by, store, dtype=dtype, name=f"matmul_{batch}_{m}_{n}_{k}")


def product(
    batch: int, m: int, n: int, k: int, left: Operand, right: Operand, by: Blocking, store: Store, *,
    dtype: DType = dtypes.float32, name: str,
) -> UOp:  # fmt: skip
    """The kernel over operands that are anywhere, with whatever `store` makes of the sums.

    m and n are multiples of the block's rows and columns, k of its depth in every part.
    """
    across, down, which = (
        UOp.special(size, f"gidx{axis}") for axis, size in enumerate((n // by.columns, m // by.rows, batch * by.parts))
    )
    part, item, chunks = which % by.parts, which // by.parts, k // by.depth // by.parts
    thread = UOp.special(by.threads, "lidx0")
    (chunk,) = _ranges((chunks,), 0, AxisType.REDUCE)
    copies = [
        _Share(thread, by, slot, dtype, operand, item, block, at * block)
        for slot, (operand, block, at) in enumerate(((left, by.rows, down), (right, by.columns, across)))
    ]
    first = part * chunks if by.ahead else part * chunks + chunk
    # nobody multiplies before everybody has copied his share
    copied = UOp.barrier(*(store for copy in copies for store in copy.stores(copy.loads(first), UOp.const(0))))
    following = part * chunks + (chunk + 1).minimum(chunks - 1)
    held = [copy.held(following) for copy in copies] if by.ahead and chunks > 1 else []
    # what is multiplied comes after what is read ahead, which tinygrad would read when it is stored
    rows, columns = (copy.shared.after(copied, *held)[chunk % 2 if by.ahead else 0] for copy in copies)

    (inner,) = _ranges((by.depth,), 1, AxisType.REDUCE)
    warp, lane = thread // WARP, thread % WARP
    at_row, at_column = (warp // by.warps_across, lane // LANES_ACROSS), (warp % by.warps_across, lane % LANES_ACROSS)
    vectors_down, vectors_across = by.thread_rows // VECTOR, by.thread_columns // VECTOR

    def of_thread(line: UOp, warps: int, vectors: int, lanes: int, at: tuple[UOp, UOp]) -> UOp:
        return line.reshape(warps, vectors, lanes, VECTOR)[at[0], :, at[1], :]

    left_of_thread, right_of_thread = (
        UOp.placeholder((vectors, VECTOR), dtype, slot=slot, addrspace=AddrSpace.REG)
        for slot, vectors in enumerate((vectors_down, vectors_across))
    )
    own_rows = of_thread(rows[inner, :], by.warps_down, vectors_down, LANES_DOWN, at_row)
    a = left_of_thread.after(_copy(left_of_thread, own_rows, 300, AxisType.UPCAST))
    own_columns = of_thread(columns[inner, :], by.warps_across, vectors_across, LANES_ACROSS, at_column)
    b = right_of_thread.after(_copy(right_of_thread, own_columns, 400, AxisType.UPCAST))

    sums = UOp.placeholder(
        (vectors_down, VECTOR, vectors_across, VECTOR), dtypes.float32, slot=2, addrspace=AddrSpace.REG
    )
    zeroed = UOp.range(by.thread_rows * by.thread_columns, 500)
    sums = sums.after(sums.flatten()[zeroed].store(0.0).end(zeroed))
    i, ii, j, jj = at = _ranges(sums.shape, 600)
    added = sums[*at].store(sums.after(inner)[*at] + a[i, ii] * b[j, jj])
    done = ended(ended(added, [i, j, ii, jj]), [inner])
    if held:
        pairs = zip(copies, held, strict=True)
        put = (copy.stores(copy.values(read), (chunk + 1) % 2, done) for copy, read in pairs)
        done = UOp.group(*(store for stores in put for store in stores))
    # nobody copies over what somebody still multiplies
    done = ended(done.barrier(), [chunk])

    sums, stores = sums.after(done), []
    for y, yy, x in itertools.product(range(vectors_down), range(VECTOR), range(vectors_across)):
        row = down * by.rows + ((at_row[0] * vectors_down + y) * LANES_DOWN + at_row[1]) * VECTOR + yy
        column = across * by.columns + ((at_column[0] * vectors_across + x) * LANES_ACROSS + at_column[1]) * VECTOR
        stores += [store(part, item, row, column, e, sums[y, yy, x, e]) for e in range(VECTOR)]
    return UOp.group(*stores).sink(arg=KernelInfo(name=name, opts_to_apply=())).simplify()


def _ranges(shape: Sequence[sint], first: int, kind: AxisType = AxisType.WEAK) -> list[UOp]:
    """One for each size; of one value, the constant 0."""
    return [
        UOp.range(size, first + position, kind) if size > 1 else UOp.const(0) for position, size in enumerate(shape)
    ]


def _copy(target: UOp, source: UOp, first: int, kind: AxisType = AxisType.WEAK) -> UOp:
    ranges = _ranges(target.shape, first, kind)
    return ended(target[*ranges].store(source[*ranges]), ranges)


@dataclass(frozen=True, slots=True)
class _Share:
    """What the threads together copy of one operand, a chunk of depth x `size` at a time, from `first` on in its rows
    (or columns): in vectors as long as there are, neighbours next to each other."""

    thread: UOp
    by: Blocking
    slot: int
    dtype: DType
    operand: Operand
    item: UOp
    size: int
    first: UOp

    @property
    def shared(self) -> UOp:
        """Of the chunks that are there at a time, each depth x size."""
        shape = (2 if self.by.ahead else 1, self.by.depth, self.size)
        return UOp.placeholder(shape, self.dtype, slot=self.slot, addrspace=AddrSpace.LOCAL)

    def loads(self, chunk: UOp) -> list[UOp]:
        item, first, k = self.item, self.first, chunk * self.by.depth
        return [self.operand.load(item, k + inner, first + at, e) for inner, at, e in self._own()]

    def held(self, chunk: UOp) -> UOp:
        """This thread's numbers of a chunk, put into registers."""
        loads = self.loads(chunk)
        registers = self._registers(len(loads))
        return UOp.group(*(registers[at].store(load) for at, load in enumerate(loads)))

    def values(self, held: UOp) -> list[UOp]:
        """What `held` put there."""
        count = self.by.depth * self.size // self.by.threads  # a group of one store is that store
        registers = self._registers(count).after(held)
        return [registers[at] for at in range(count)]

    def _registers(self, count: int) -> UOp:
        return UOp.placeholder((count,), self.dtype, slot=3 + self.slot, addrspace=AddrSpace.REG)

    def stores(self, values: Sequence[UOp], place: UOp, *after: UOp) -> list[UOp]:
        shared = self.shared.after(*after) if after else self.shared
        along_k = self.operand.along_k
        places = [(inner + e, at) if along_k else (inner, at + e) for inner, at, e in self._own()]
        return [shared[place, *at].store(value) for at, value in zip(places, values, strict=True)]

    def _own(self) -> list[tuple[UOp, UOp, int]]:
        """Of each number that this thread copies, where its vector begins, along K and along the rows, and which of the
        vector it is."""
        lines = self.by.depth if self.operand.along_k else self.size
        count = self.by.depth * self.size // self.by.threads
        vector = next(v for v in (VECTOR, 2, 1) if v <= self.operand.vector and count % v == lines % v == 0)
        found = []
        for turn in range(count // vector):
            unit = self.thread + turn * self.by.threads
            if self.operand.along_k:
                begin = unit // self.size * vector, unit % self.size
            else:
                begin = unit // (self.size // vector), unit % (self.size // vector) * vector
            found += [(*begin, e) for e in range(vector)]
        return found
