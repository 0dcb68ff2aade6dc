"""Convolutions that a graph does not spell as one: what they are equal to, and how to put the result in their place.

Each form below looks at one REDUCE and gives another that computes the same, over ranges of its own where it needs
them, and that `match` knows. What cannot be proven equal is left alone: index expressions are tabulated over all the
values of their ranges, not recognised by how they are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce as fold
from operator import and_

from tinygrad.dtype import dtypes
from tinygrad.uop.ops import AxisType, Ops, UOp, graph_rewrite
from tinygrad.uop.symbolic import sym

from strategies.graph.buffers import staged
from strategies.graph.digits import digits
from strategies.graph.match import Conv, conjuncts, is_static_range, match
from strategies.graph.ranges import Ranges, extent
from strategies.graph.rebuild import BOUNDARY, DIVISIONS, expression, gated, rebuild
from strategies.graph.tables import MAX_VALUES, table
from strategies.shape import MAX_SPATIAL_DIMS

MAX_POINTS = 1 << 13
"""Of one table: an axis of 2048 positions by as many as a filter of three taps is written over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """`reduce` computes what the graph has, and `place` turns its value into the value of the node it stands for."""

    reduce: UOp
    place: Callable[[UOp], UOp]
    place_read: Callable[[UOp], UOp] | None = None
    """Likewise where the value is only read from memory, which can be done anywhere; None: as any other value."""
    merged: Mapping[UOp, tuple[UOp, int]] = field(default_factory=dict)
    """See `Conv.merged`."""
    padded_behind: bool = False
    """Whether it lacks outputs that the graph has for what consumes it pads it, and which are nobody's else."""


Form = Callable[[UOp, Ranges], Spelling | None]


def find(reduce: UOp, ranges: Ranges) -> Conv | None:
    """The convolution that this REDUCE computes, as it stands or as one of the forms below; None if it is none."""
    best = match(reduce)
    if best is not None and _winograd_axes(best) == MAX_SPATIAL_DIMS and not _repeats_input(best):
        return best
    for form in FORMS:
        spelling = form(reduce, ranges)
        conv = match(spelling.reduce) if spelling is not None else None
        if spelling is None or conv is None:
            continue
        if best is None or _rank(conv) > _rank(best) or (spelling.padded_behind and _rank(conv) == _rank(best)):
            best = replace(conv, stands_for=reduce, place=spelling.place, merged=spelling.merged)
            best = replace(best, place_read=spelling.place_read or spelling.place)
    return None if best is not None and _repeats_input(best) else best


def _winograd_axes(conv: Conv) -> int:
    return sum(axis.is_winograd for axis in conv.axes)


def _rank(conv: Conv) -> tuple[int, int]:
    """Of two spellings of one convolution the better: more axes for Winograd, then fewer groups, which repeat less."""
    return _winograd_axes(conv), -math.prod(map(extent, conv.groups))


def _repeats_input(conv: Conv) -> bool:
    """Whether what looks like its groups are groups and their outputs in one loop: each has one output, and what is
    read does not tell those of a group from each other. Its shape would have the input's channels several times."""
    if not conv.groups or math.prod(map(extent, conv.couts)) > 1:
        return False
    loads = [u for u in expression(conv.activation) if u.op is Ops.INDEX]
    indexes = [index.get_idx() for load in loads for index in load.src[1:]]
    divided = [
        u
        for index in indexes
        for u in expression(index)
        if u.op is Ops.FLOORDIV and u.ranges and all(r in conv.groups for r in u.ranges)
    ]
    told = {r for index in indexes for r in rebuild(index, dict.fromkeys(divided, UOp.const(0))).ranges}
    return any(r not in told for u in divided for r in u.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scatter:
    """One axis of an input gradient: `out` gathers, for each of `taps` taps k, position `out - k + shift` of the
    `size` positions of the output's gradient. In the graph both are functions of `summed` and `out`: k is written
    `tap`, the position `at`; `valid` says at which points of the two something is added."""

    summed: UOp
    out: UOp
    tap: UOp
    at: UOp
    taps: int
    size: int
    shift: int
    grid: Mapping[UOp, list[int]]
    valid: list[int]


def input_gradient(reduce: UOp, ranges: Ranges) -> Spelling | None:
    """The gradient of a convolution's input: windows undone, a sum over flat positions `s*a + y` that a gate sorts.

        dx[c, y] = sum over s of (gate ? sum over o of dy[o, (s*a + y) % b] * w[o, c, (s*a + y) // b] : 0)
                 = sum over o, j of dy[o, y + j - 2 + shift] * w[o, c, 2 - j]

    a convolution of dy, padded, with the flipped filter.
    """
    if reduce.op is not Ops.REDUCE or reduce.arg != (Ops.ADD, 0) or not all(map(is_static_range, reduce.src[1:])):
        return None
    conditions, inner = _ungated(reduce.src[0])
    if inner.op is not Ops.REDUCE or inner.arg != (Ops.ADD, 0) or not all(map(is_static_range, inner.src[1:])):
        return None
    product = inner.src[0].src[0] if inner.src[0].op is Ops.CAST else inner.src[0]
    if product.op is not Ops.MUL or not dtypes.is_float(product.dtype):
        return None
    for gradient, weight in (product.src, product.src[::-1]):
        found = [_scatter(s, conditions, gradient, weight) for s in reduce.src[1:]]
        scatters = [scatter for scatter in found if scatter is not None]
        if len(scatters) == len(found) and len({scatter.out for scatter in scatters}) == len(scatters):
            return _as_convolution(reduce, inner, conditions, gradient, weight, scatters, ranges)
    return None


def _scatter(s: UOp, conditions: Sequence[UOp], gradient: UOp, weight: UOp) -> _Scatter | None:
    """The axis that is summed over `s`; None if it is no such sum.

    What is read is tabulated for all values of `s` and of the output's position: it must be, at each position, every
    tap of the filter once, beside the element of the gradient that it came from.
    """
    mine = [condition for condition in conditions if s in condition.ranges]
    outs = [r for r in dict.fromkeys(r for condition in mine for r in condition.ranges) if r is not s]
    taps = [u for u in expression(weight) if u.op is Ops.FLOORDIV and s in u.ranges]
    ats = [u for u in expression(gradient) if u.op is Ops.FLOORMOD and s in u.ranges]
    if not len(outs) == len(taps) == len(ats) == 1:
        return None
    [out], [tap], [at] = outs, taps, ats
    if not is_static_range(out) or extent(s) * extent(out) > MAX_POINTS:
        return None
    grid = {
        s: [value for value in range(extent(s)) for _ in range(extent(out))],
        out: [value for _ in range(extent(s)) for value in range(extent(out))],
    }
    tap_at, position_at = table(tap, grid), table(at, grid)
    tables = [table(condition, grid) for condition in mine]
    if tap_at is None or position_at is None or any(values is None for values in tables):
        return None
    valid = [n for n in range(len(grid[s])) if all(values is not None and values[n] is True for values in tables)]
    reached = [(grid[out][n], tap_at[n], position_at[n]) for n in valid]
    if not reached or any(None in point for point in reached):
        return None
    count, size = 1 + max(k for _, k, _ in reached), 1 + max(position for *_, position in reached)
    first_out, first_tap, first_position = reached[0]
    shift = first_position + first_tap - first_out
    expected = [(y, k, y - k + shift) for y in range(extent(out)) for k in range(count) if 0 <= y - k + shift < size]
    if sorted(reached) != expected:
        return None
    return _Scatter(summed=s, out=out, tap=tap, at=at, taps=count, size=size, shift=shift, grid=grid, valid=valid)


def _as_convolution(
    reduce: UOp, inner: UOp, conditions: Sequence[UOp], gradient: UOp, weight: UOp, scatters: Sequence[_Scatter],
    ranges: Ranges,
) -> Spelling | None:  # fmt: skip
    """The same sum over taps and the inner REDUCE's ranges."""
    replacements: dict[UOp, UOp] = {}
    gates: list[UOp] = []
    steps: list[UOp] = []
    for scatter in scatters:
        last = scatter.taps - 1
        step = ranges.new(scatter.taps, AxisType.REDUCE)
        position, first = scatter.out + step, last - scatter.shift
        replacements |= {scatter.tap: step * -1 + last, scatter.at: position - first}
        gates += [(position < first).ne(UOp.const(True)), position < scatter.size + first]
        steps.append(step)
    operands = []
    for operand in (gradient, weight):
        wheres = _wheres(operand, scatters)
        if wheres is None:
            return None
        operands.append(rebuild(rebuild(operand, wheres), replacements))
    summed = {scatter.summed for scatter in scatters}
    if any(summed & set(operand.ranges) for operand in operands):
        return None
    rest = [condition for condition in conditions if not summed & set(condition.ranges)]
    product = gated(operands[0], gates) * operands[1]
    value = product.cast(inner.src[0].dtype) if inner.src[0].op is Ops.CAST else product
    return Spelling(
        reduce=inner.replace(src=(value, *inner.src[1:], *steps)),
        place=lambda new: gated(new.cast(reduce.dtype), rest),
    )


def moved_output(reduce: UOp, ranges: Ranges) -> Spelling | None:
    """A convolution in another's loops: its output is padded, or its axes are cut or merged, by what consumes it.

        y[r] = r inside ? x * w at r - 1 : 0                 ->  z[f] = x * w at f;  y[r] = r inside ? z[r - 1] : 0
        y[r] = x * w at r // 2, of the couts at r % 2        ->  z[o, f] = x * w;    y[r] = z[r % 2, r // 2]
        y[r] = x of group r // 2 * w of output r             ->  z[g, o] = x * w;    y[r] = z[r // 2, r % 2]

    z is a buffer of its own: the consumer's loops are not those of the convolution.
    """
    if reduce.op is not Ops.REDUCE or reduce.arg != (Ops.ADD, 0) or not isinstance(reduce.device, str):
        return None
    product = reduce.src[0].src[0] if reduce.src[0].op is Ops.CAST else reduce.src[0]
    if product.op is not Ops.MUL or not dtypes.is_float(product.dtype):
        return None
    loops = sorted((r for r in product.ranges if r not in reduce.src[1:]), key=lambda r: r.arg)
    if not all(map(is_static_range, loops)):
        return None
    conditions = [condition for operand in product.src for condition in _ungated(operand)[0]]
    behind = [condition for operand in product.src for condition in _loaded_where(operand)]
    padded_behind = False
    replacements: dict[UOp, UOp] = {}
    where: dict[UOp, UOp] = {}  # from the convolution's ranges to the consumer's indexes
    gates: list[UOp] = []
    merged: dict[UOp, tuple[UOp, int]] = {}
    for r in loops:
        if pieces := digits(r, product):
            for digit in pieces:
                replacements |= digit.replaced(index := digit.fresh(ranges))
                where |= digit.places(index)
            if pieces[0].piece is r and pieces[0].coarse is not None:
                merged[r] = pieces[0].coarse, pieces[0].size // pieces[0].inner
        elif bounds := _bounds(r, [*conditions, *behind]):
            first, end = bounds
            padded_behind = padded_behind or bounds != _bounds(r, conditions)
            new = ranges.new(end - first)
            replacements[r], where[new] = new + first, r - first
            gates += [(r < first).ne(UOp.const(True)), r < end]
        else:
            replacements[r] = new = ranges.new(extent(r))
            where[new] = r
    if list(where.values()) == loops:
        return None  # as it stands
    value = _simple(rebuild(reduce.src[0], replacements))
    if any(r in value.ranges for r in loops):
        return None
    return Spelling(
        reduce=reduce.replace(src=(value, *reduce.src[1:])),
        place=lambda new: gated(staged(new, list(where), device=str(reduce.device)).read(list(where.values())), gates),
        place_read=lambda new: gated(rebuild(new, where), gates),
        padded_behind=padded_behind,
        merged={} if gates or len(merged) + sum(w in loops for w in where.values()) < len(loops) else merged,
    )


def _bounds(r: UOp, conditions: Sequence[UOp]) -> tuple[int, int] | None:
    """The part of the range outside of which conditions on it alone make everything zero; None if that is nowhere."""
    alone = [condition for condition in conditions if list(condition.ranges) == [r]]
    if extent(r) > MAX_VALUES:
        return None
    tables = [table(condition, {r: list(range(extent(r)))}) for condition in alone]
    if not tables or any(values is None for values in tables):
        return None
    inside = [at for at in range(extent(r)) if all(values is not None and values[at] is True for values in tables)]
    if len(inside) < 2 or len(inside) == extent(r) or inside[-1] - inside[0] + 1 != len(inside):
        return None
    return inside[0], inside[-1] + 1


def _simple(value: UOp) -> UOp:
    """The indexes and conditions of an expression simplified, and nothing else: beyond its loads there is a network."""
    done: dict[UOp, UOp] = {}
    for u in expression(value):
        sources = tuple(done.get(s, s) for s in u.src)
        if u.op is Ops.INDEX:
            sources = (sources[0], *map(_simple_index, sources[1:]))
        elif u.op is Ops.WHERE and not any(s.op in BOUNDARY for c in expression(sources[0]) for s in c.src):
            sources = (sources[0].simplify(), *sources[1:])
            if sources[0].op is Ops.CONST:
                done[u] = sources[1] if sources[0].val else sources[2]
                continue
        done[u] = u if sources == u.src else u.replace(src=sources)
    return done.get(value, value)


def _simple_index(index: UOp) -> UOp:
    """`(5*k + f)*2 % 9` is `k + 2*f` for few k and f, which the product shows once it is multiplied out. Sums elsewhere
    stay together: they are what tells an axis."""
    index = index.simplify()
    divisions = {u: graph_rewrite(u, sym) for u in expression(index) if u.op in DIVISIONS}
    gone = {u: new for u, new in divisions.items() if not any(each.op in DIVISIONS for each in new.toposort())}
    return rebuild(index, gone) if gone else index


def _wheres(operand: UOp, scatters: Sequence[_Scatter]) -> dict[UOp, UOp] | None:
    """The operand's choices by the summed ranges, as they are where something is added; None if they are not known."""
    result: dict[UOp, UOp] = {}
    for u in expression(operand):
        if u.op is not Ops.WHERE:
            continue
        kept: list[UOp] = []
        for condition in conjuncts(u.src[0]):
            scatter = next((each for each in scatters if each.summed in condition.ranges), None)
            if scatter is None or _reads(condition):
                kept.append(condition)
            elif (values := table(condition, scatter.grid)) is None or any(
                values[n] is not True for n in scatter.valid
            ):
                return None
        if len(kept) < len(conjuncts(u.src[0])):
            chosen, other = (rebuild(source, result) for source in u.src[1:])
            result[u] = fold(and_, (rebuild(each, result) for each in kept)).where(chosen, other) if kept else chosen
    return result


def _reads(condition: UOp) -> bool:
    """Whether it depends on what is in memory, as the mask of an activation's gradient does."""
    return any(u.op is Ops.INDEX for u in expression(condition))


def _loaded_where(operand: UOp) -> list[UOp]:
    """The conditions outside of which an operand that is a load reads nothing, which is 0. The padding of a convolution
    is there too, beside the choice of a 0 that `_ungated` finds; what pads its output is there alone."""
    load = _ungated(operand)[1]
    if load.op is not Ops.INDEX:
        return []
    return [each for index in load.src[1:] for each in conjuncts(index.get_valid())]


def _ungated(value: UOp) -> tuple[list[UOp], UOp]:
    """The conditions outside of which a value is zero, and the value inside, casts between floats apart."""
    conditions: list[UOp] = []
    while True:
        if value.op is Ops.WHERE and value.src[2].op is Ops.CONST and value.src[2].val == 0:
            conditions += conjuncts(value.src[0])
            value = value.src[1]
        elif value.op is Ops.CAST and dtypes.is_float(value.dtype) and dtypes.is_float(value.src[0].dtype):
            value = value.src[0]
        else:
            return conditions, value


FORMS: tuple[Form, ...] = (input_gradient, moved_output)
