"""Loops that tinygrad has merged into one: the pieces that a flat range is cut into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinygrad.uop.ops import Ops, UOp

from strategies.graph.ranges import Ranges, extent
from strategies.graph.rebuild import DIVISIONS, expression, rebuild
from strategies.graph.tables import MAX_VALUES, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Digit:
    """A piece that a flat range is cut into, of `size` values. Where there is a `coarse` one too, which is this one
    divided by `inner`, it is two loops: the coarse one and what is left of the piece."""

    piece: UOp
    size: int
    coarse: UOp | None = None
    inner: int = 1

    def fresh(self, ranges: Ranges) -> tuple[UOp, ...]:
        """Ranges of its own, the outer one first."""
        sizes = (self.size,) if self.coarse is None else (self.size // self.inner, self.inner)
        return tuple(map(ranges.new, sizes))

    def replaced(self, index: tuple[UOp, ...]) -> dict[UOp, UOp]:
        if self.coarse is None:
            return {self.piece: index[0]}
        return {self.piece: index[0] * self.inner + index[1], self.coarse: index[0]}

    def places(self, index: tuple[UOp, ...]) -> dict[UOp, UOp]:
        """Where the ranges are, in the graph's own."""
        if self.coarse is None:
            return {index[0]: self.piece}
        return {index[0]: self.piece // self.inner, index[1]: self.piece % self.inner}


def digits(r: UOp, product: UOp) -> list[Digit]:
    """The pieces that a flat range is cut into: every combination occurs once. Empty if it is not cut.

    Pieces written `r // a % b` are told by these numbers, others by a table of their values, where it is not too long:
    merged loops of a product of matrices have a million and more.
    """
    pieces = _pieces(r, product)
    if len(pieces) < 2:
        return []
    found: list[Digit] = []
    if all(places := [_place(piece, r) for piece in pieces]):
        known = {piece: place for piece, place in zip(pieces, places, strict=True) if place is not None}
        coarser = {b: a for a in pieces for b in pieces if _is_coarser(known[a], known[b])}
        found = _paired(pieces, {piece: size for piece, (_, size) in known.items()}, coarser)
        whole = _in_a_row([known[digit.piece] for digit in found], extent(r))
    elif extent(r) <= MAX_VALUES and (tables := _tables(pieces, r)) is not None:
        coarser = {b: a for a in pieces for b in pieces if _divides(tables[a], tables[b])}
        found = _paired(pieces, {piece: 1 + max(values) for piece, values in tables.items()}, coarser)
        combinations = set(zip(*(tables[digit.piece] for digit in found), strict=True))
        whole = len(combinations) == math.prod(digit.size for digit in found) == extent(r)
    # of three that divide each other, one would be left over
    told = len(found) + sum(digit.coarse is not None for digit in found) == len(pieces)
    return found if found and whole and told else []


def _pieces(r: UOp, product: UOp) -> list[UOp]:
    """The outermost divisions that hold no other range; and the range, if it is read as it is too."""
    cuts = [u for u in expression(product) if u.op in DIVISIONS and list(u.ranges) == [r]]
    if not cuts:
        return []
    inner = {s for u in cuts for s in u.toposort() if s is not u}
    pieces = [u for u in cuts if u not in inner]
    if r in rebuild(product, dict.fromkeys(pieces, UOp.const(0))).ranges:
        pieces.append(r)
    return pieces


def _paired(pieces: Sequence[UOp], sizes: Mapping[UOp, int], coarser: Mapping[UOp, UOp]) -> list[Digit]:
    """The pieces, each with the one that is coarser than it."""
    return [
        Digit(
            piece=p, size=sizes[p], coarse=coarser.get(p),
            inner=sizes[p] // sizes[coarser[p]] if p in coarser else 1,
        )
        for p in pieces
        if p not in coarser.values()
    ]  # fmt: skip


def _place(piece: UOp, r: UOp) -> tuple[int, int] | None:
    """The a and b of a piece that is `r // a % b`, of b values and more than one; None if that is not known."""
    if piece is r:
        return 1, extent(r)
    if piece.op not in DIVISIONS or piece.src[1].op is not Ops.CONST or (of := _place(piece.src[0], r)) is None:
        return None
    (step, size), by = of, piece.src[1].val
    if not isinstance(by, int) or not 1 < by < size or size % by:
        return None
    return (step * by, size // by) if piece.op is Ops.FLOORDIV else (step, by)


def _is_coarser(coarse: tuple[int, int], fine: tuple[int, int]) -> bool:
    """Whether `r // a % b` is the other one divided by more than 1: it has its upper end and another lower one."""
    return fine[0] < coarse[0] and coarse[0] % fine[0] == 0 and math.prod(coarse) == math.prod(fine)


def _in_a_row(places: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether each begins where the one below it ends, from 1 to the range's size: these are its digits."""
    ends = [1, *(step * count for step, count in sorted(places))]
    return all(step == end for (step, _), end in zip(sorted(places), ends, strict=False)) and ends[-1] == size


def _tables(pieces: Sequence[UOp], r: UOp) -> dict[UOp, list[int]] | None:
    grid = {r: list(range(extent(r)))}
    tables: dict[UOp, list[int]] = {}
    for piece in pieces:
        if (values := table(piece, grid)) is None or None in values:
            return None
        tables[piece] = values
    return tables


def _divides(coarse: Sequence[int], fine: Sequence[int]) -> bool:
    """Whether one piece is another divided by more than 1, and no more than divided, evenly."""
    few, many = 1 + max(coarse), 1 + max(fine)
    return (
        1 < few < many and many % few == 0 and all(a == b // (many // few) for a, b in zip(coarse, fine, strict=True))
    )
