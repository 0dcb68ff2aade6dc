"""The separable transform (M x M x ...) of a value, one matrix along each axis: every Winograd transform is this.

Two forms of the same sum. `unrolled` writes every term into the graph, as tinygrad's tensor-level Winograd does.
`nested` keeps each axis a REDUCE over an UNROLL range with the matrix as a table: a graph of a few nodes, whose terms
appear when the kernel is lowered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce as fold
from operator import add

from tinygrad.dtype import AddrSpace
from tinygrad.schedule.indexing import BufferizeOpts
from tinygrad.uop.ops import AxisType, Ops, UOp

from strategies.transform import Matrix

Index = int | UOp
"""A position along an axis: known when the graph is built, or a range."""


def masked(index: UOp) -> UOp:
    """The index of a range behind a mask of all its bits: the same value and bounds, and to tinygrad no range."""
    return index & ((1 << max(1, int(index.vmax).bit_length())) - 1)


OWN_ARRAYS = 1000
"""The first slot of a kernel's own arrays: tinygrad counts the sums that it makes from 0."""
Read = Callable[[Sequence[UOp]], UOp]
"""From one index per axis to the value there."""


class Ranges:
    """Fresh ranges, and slots of fresh buffers.

    The order in which ranges are made is the order of the loops: tinygrad sorts them by id. Of tinygrad's AxisTypes we
    make

        WEAK     a loop that tinygrad decides about: its heuristics and BEAM may put it on threads or into registers
        REDUCE   a loop that is summed over
        UNROLL   summed over, its terms written out
        UPCAST   written out, its values held in registers side by side
        LOCAL    divided among the threads of a workgroup
        WARP     likewise, and left in one piece: neighbours stay neighbours
        THREAD   divided among the cores of a processor
    """

    def __init__(self, first: int, first_buffer: int = 0) -> None:
        self._ids, self._buffers = itertools.count(first), itertools.count(first_buffer)

    def new(self, size: int, kind: AxisType = AxisType.WEAK) -> UOp:
        """A range over `size` values; of one value, the constant 0."""
        return UOp.range(size, next(self._ids), kind) if size != 1 else UOp.const(0)

    def new_buffer(self) -> int:
        """The slot of a buffer that the graph does not have yet."""
        return next(self._buffers)

    def known(self, axis: UOp) -> UOp:
        """The index of an array's range, for what the array is filled with. Where all reads with a range are gated by
        a limit of it, tinygrad ends its loop there (`mark_gated`), although the array is read beyond."""
        return masked(axis)

    def array(self, body: UOp, axes: Sequence[UOp]) -> Read:
        """Reads of an array that only the loops around it see, filled with `body` over all values of these ranges,
        which has them as `known`. On a CPU it is on the stack."""
        opts = BufferizeOpts(device=None, addrspace=AddrSpace.REG, removable=False)
        stage = UOp(Ops.STAGE, src=(body, *axes), arg=opts)
        return lambda indexes: stage.index(*indexes)


class KernelRanges(Ranges):
    """Those of a kernel of our own, which tinygrad does not take apart: its arrays are written out."""

    def __init__(self) -> None:
        super().__init__(0, OWN_ARRAYS)

    def known(self, axis: UOp) -> UOp:
        return axis  # the array's store is written out, and has it with no gate

    def array(self, body: UOp, axes: Sequence[UOp]) -> Read:
        sizes = [int(r.vmax) + 1 for r in axes]
        array = UOp.placeholder((math.prod(sizes),), body.dtype, slot=self.new_buffer(), addrspace=AddrSpace.REG)
        store = array.index(flatten(axes, sizes)).store(body)
        filled = array.after(ended(store, axes))
        return lambda indexes: filled.index(flatten(indexes, sizes))


def ended(store: UOp, loops: Sequence[UOp]) -> UOp:
    """A store after these loops; one of a single value is a constant, and none."""
    return store.end(*(r for r in loops if r.op is Ops.RANGE))


def flatten(indexes: Sequence[UOp], sizes: Sequence[int]) -> UOp:
    """The index that counts all values of these as one, the last the fastest."""
    flat = UOp.const(0)
    for index, size in zip(indexes, sizes, strict=True):
        flat = flat * size + index
    return flat


Known = dict[tuple[tuple[Index, ...], tuple[Index, ...]], UOp]
"""Sums by the rows of the axes that are summed over, and the columns of the others."""


def kron(
    matrix: Matrix, rows: Sequence[Index], value: Callable[[tuple[Index, ...]], UOp], ranges: Ranges | None = None,
    known: Known | None = None,
) -> UOp:  # fmt: skip
    """sum over c of prod_i matrix[rows[i]][c[i]] * value(c), one axis inside the other, the first innermost.

    With `ranges` the sums are nested REDUCEs, without they are unrolled. Several rows of one matrix and value have most
    of their unrolled sums in common: these are looked for, and left, in `known`.
    """
    if ranges is None:
        return _unrolled(matrix, tuple(rows), value, (), known if known is not None else {})
    columns = tuple(ranges.new(len(matrix[0]), AxisType.UNROLL) for _ in rows)
    result = value(columns)
    for row, column in zip(rows, columns, strict=True):
        result = (table(matrix, row, column) * result).reduce(column, arg=Ops.ADD)
    return result


def _unrolled(
    matrix: Matrix, rows: tuple[Index, ...], value: Callable[[tuple[Index, ...]], UOp], chosen: tuple[int, ...],
    known: Known,
) -> UOp:  # fmt: skip
    """The sum over the axes that `rows` are of, the others' columns being chosen."""
    if (found := known.get((rows, chosen))) is not None:
        return found
    if not rows:
        result = value(chosen)
    else:
        *inner, row = rows
        used = [c for c in range(len(matrix[0])) if any(matrix[r][c] for r in _values(row, len(matrix)))]
        below = ((c, _unrolled(matrix, tuple(inner), value, (c, *chosen), known)) for c in used)
        result = fold(add, [table(matrix, row, c) * summed for c, summed in below])
    known[rows, chosen] = result
    return result


def table(matrix: Matrix, row: Index, column: Index) -> UOp:
    """matrix[row][column] as a WHERE chain over whatever is not known yet."""
    if isinstance(row, UOp):
        return _choose(row, [table(matrix, r, column) for r in range(len(matrix))])
    if isinstance(column, UOp):
        return _choose(column, [table(matrix, row, c) for c in range(len(matrix[0]))])
    return number(matrix[row][column])


def number(value: Fraction) -> UOp:
    return UOp.const(float(value))


def _choose(index: UOp, values: Sequence[UOp]) -> UOp:
    result = values[-1]
    for position, value in reversed(list(enumerate(values[:-1]))):
        result = value if value is result else index.eq(position).where(value, result)
    return result


def _values(row: Index, size: int) -> range:
    return range(size) if isinstance(row, UOp) else range(row, row + 1)
