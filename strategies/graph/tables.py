"""Index expressions at all the values of their ranges: what two of them have in common is then seen, not argued."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from tinygrad.uop.ops import Ops, UOp

MAX_VALUES = 1 << 16
"""Of one range that is tabulated by itself: 256 x 256 positions in one loop."""

_OPERATORS: Mapping[Ops, Callable[..., object]] = {
    Ops.ADD: operator.add, Ops.MUL: operator.mul, Ops.FLOORDIV: operator.floordiv, Ops.FLOORMOD: operator.mod,
    Ops.CMPLT: operator.lt, Ops.CMPNE: operator.ne, Ops.AND: operator.and_, Ops.OR: operator.or_,
}  # fmt: skip


def table(u: UOp, grid: Mapping[UOp, list[int]]) -> list[int] | None:
    """An index expression at every point of the grid; None where it is Invalid, or in all if it holds anything else."""
    points = len(next(iter(grid.values())))
    tables: dict[UOp, list[int | None]] = {r: list(values) for r, values in grid.items()}
    for node in u.toposort():
        if node in tables:
            continue
        if node.op is Ops.CONST:
            tables[node] = [node.val if isinstance(node.val, int) else None] * points
        elif node.op is Ops.WHERE and all(s in tables for s in node.src):
            choices = zip(*(tables[s] for s in node.src), strict=True)
            tables[node] = [None if a is None else b if a else c for a, b, c in choices]
        elif (apply := _OPERATORS.get(node.op)) is not None and all(s in tables for s in node.src):
            pairs = zip(*(tables[s] for s in node.src), strict=True)
            tables[node] = [None if a is None or b is None else apply(a, b) for a, b in pairs]  # type: ignore[misc]
        elif node.op is not Ops.RANGE and not node.src:
            tables[node] = [None] * points
        else:
            return None
    return tables[u]  # type: ignore[return-value]
