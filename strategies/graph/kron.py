"""The separable transform (M x M x ...) of a value, one matrix along each axis: every Winograd transform is this.

Two forms of the same sum. `unrolled` writes every term into the graph, as tinygrad's tensor-level Winograd does.
`nested` keeps each axis a REDUCE over an UNROLL range with the matrix as a table: a graph of a few nodes, whose terms
appear when the kernel is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce as fold
from operator import add

from tinygrad.uop.ops import AxisType, Ops, UOp

from strategies.graph.ranges import Index, Ranges
from strategies.transform import Matrix

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
