"""Finding convolutions in a rangeified graph, whatever wrote them.

After rangeify a convolution is `REDUCE(ADD, MUL(activation, weight), *ranges)`, where a *tap* range k is summed over
and the activation is read at `f*stride + k*dilation`, with f the range of an output position. That, not the operation
the user called, is what makes a convolution, so views, flips, fused activations and autograd's own match as well.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from tinygrad.dtype import DType, Invalid, dtypes
from tinygrad.uop.ops import Ops, UOp

from strategies.candidate import KernelOptions
from strategies.graph.pointwise import positions, strides_in
from strategies.graph.ranges import extent
from strategies.graph.rebuild import BOUNDARY, DIVISIONS, expression, simplified
from strategies.shape import DTYPES, MAX_SPATIAL_DIMS, ConvShape, ShapeError, windows_share

_NAMES: Mapping[DType, str] = {getattr(dtypes, name): name for name in DTYPES}
"""Those that a ConvShape can have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axis:
    """One spatial axis: the ranges of output position and tap, and the sums of both that the activation is read at."""

    out: UOp
    tap: UOp
    sums: tuple[UOp, ...]
    stride: int
    dilation: int

    @property
    def size(self) -> int:
        """Output positions."""
        return extent(self.out)

    @property
    def taps(self) -> int:
        return extent(self.tap)

    @property
    def is_winograd(self) -> bool:
        return self.taps == 3 and self.stride == self.dilation == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv:
    """A matched convolution. The ranges of the REDUCE and its consumers, sorted by what they index:

    `channels` are summed over, `groups` index both operands, `batch` the activation alone, `couts` the weight alone.
    """

    reduce: UOp
    activation: UOp
    weight: UOp
    axes: tuple[Axis, ...]
    channels: tuple[UOp, ...]
    groups: tuple[UOp, ...]
    batch: tuple[UOp, ...]
    couts: tuple[UOp, ...]
    device: str
    options: Mapping[str, KernelOptions] = field(default_factory=dict)
    """What the kernels of its lowering are to have, by role."""
    until: str = ""
    """Where a Winograd lowering stops (see `winowrite.PHASES`); nowhere, except to be looked into."""
    shared: bool = False
    """Whether the kernel that tinygrad computes it in does more: another convolution, a sum over its outputs, or what
    the program itself gave options."""
    private: frozenset[UOp] = frozenset()
    """Those of its ranges that one kernel alone loops over, in a kernel that can be written anew."""
    kernel: UOp | None = None
    """The STAGE or END of a kernel that computes this and what is elementwise of it, in the loops of its outputs; None
    where it is computed otherwise."""
    stands_for: UOp | None = None
    """The node of the graph that `reduce` is another spelling of (see hidden.py); None: `reduce` itself."""
    place: Callable[[UOp], UOp] = lambda value: value
    """What is put in the graph for a value of `reduce`."""
    place_read: Callable[[UOp], UOp] = lambda value: value
    """Likewise for one that is only read from memory: it need not be stored once more to be read elsewhere."""
    merged: Mapping[UOp, tuple[UOp, int]] = field(default_factory=dict)
    """Loops of the graph that are groups and their outputs in one, each with the group and how many there are, where
    that is all that `reduce` spells otherwise: with these loops apart the graph would have it as it is."""

    @property
    def node(self) -> UOp:
        """The node of the graph that is replaced."""
        return self.reduce if self.stands_for is None else self.stands_for

    @property
    def outputs(self) -> tuple[UOp, ...]:
        """The loops over the outputs of one cout, of all images."""
        return (*self.batch, *(axis.out for axis in self.axes))

    @property
    def loops(self) -> tuple[UOp, ...]:
        """The ranges of its outputs, the outermost loop first."""
        loops = (*self.batch, *self.groups, *self.couts, *(axis.out for axis in self.axes))
        return tuple(sorted(loops, key=lambda r: r.arg))

    @property
    def matrix(self) -> tuple[int, int, int]:
        """Rows, columns and depth of the product of matrices that each group is: couts, outputs of one cout in all
        images, and products that are summed for one output."""
        outs, taps = [axis.out for axis in self.axes], [axis.tap for axis in self.axes]
        rows, columns, depth = (
            math.prod(map(extent, ranges)) for ranges in (self.couts, (*self.batch, *outs), (*self.channels, *taps))
        )
        return rows, columns, depth

    @property
    def dtype(self) -> DType:
        """Of the operands; the sum's is that of `reduce`."""
        return self.activation.dtype

    @cached_property
    def shape(self) -> ConvShape | None:
        """In canonical form; None when no ConvShape describes it (three spatial axes, integers)."""
        if not 1 <= len(self.axes) <= MAX_SPATIAL_DIMS or self.dtype not in _NAMES or self.reduce.dtype not in _NAMES:
            return None
        groups = math.prod(map(extent, self.groups))
        padded = [(a.size - 1) * a.stride + a.dilation * (a.taps - 1) + 1 for a in self.axes]
        padding = tuple(_padding(self.activation, axis, size) for axis, size in zip(self.axes, padded, strict=True))
        return _canonical(
            math.prod(map(extent, self.batch)),
            groups * math.prod(map(extent, self.channels)),
            groups * math.prod(map(extent, self.couts)),
            tuple(size - before - after for size, (before, after) in zip(padded, padding, strict=True)),
            tuple(a.taps for a in self.axes),
            groups,
            tuple(a.stride for a in self.axes),
            tuple(a.dilation for a in self.axes),
            padding,
            _NAMES[self.dtype],
            _NAMES[self.reduce.dtype],
        )


@lru_cache(maxsize=4096)
def _canonical(
    batch: int, cin: int, cout: int, spatial: tuple[int, ...], kernel: tuple[int, ...], groups: int,
    stride: tuple[int, ...], dilation: tuple[int, ...], padding: tuple[tuple[int, int], ...], dtype: str,
    acc_dtype: str,
) -> ConvShape | None:  # fmt: skip
    """The canonical shape of these numbers; None where they make none. A network has few, however deep it is."""
    try:
        return ConvShape(
            batch=batch, cin=cin, cout=cout, spatial=spatial, kernel=kernel, groups=groups, stride=stride,
            dilation=dilation, padding=padding, dtype=dtype, acc_dtype=acc_dtype,
        ).canonical()  # fmt: skip
    except ShapeError:
        return None


def match(reduce: UOp) -> Conv | None:
    """The convolution that this REDUCE computes, or None."""
    if reduce.op is not Ops.REDUCE or reduce.arg != (Ops.ADD, 0):
        return None
    product = reduce.src[0].src[0] if reduce.src[0].op is Ops.CAST else reduce.src[0]
    summed = reduce.src[1:]
    if product.op is not Ops.MUL or not all(is_static_range(r) for r in summed):
        return None
    if any(s.op in BOUNDARY and s.ranges for u in expression(product) for s in u.src):
        return None  # PCONTIG: a buffer that is filled inside this kernel's loops
    device = reduce.device
    if not isinstance(device, str):  # a sharded value: its lowering belongs to several devices at once
        return None
    for operand, weight in (product.src, product.src[::-1]):
        nodes = expression(operand)
        looks = {operand: nodes}
        if any(u.op in DIVISIONS for u in nodes) and (simple := simplified(operand)) is not operand:
            # as it stands, or without what gates make superfluous: the one that shows more axes
            looks[simple] = expression(simple)
        found = {
            look: _axes(nodes, weight, summed) or _pointwise(look, weight, summed) for look, nodes in looks.items()
        }
        activation = max(found, key=lambda look: len(found[look]))
        if axes := found[activation]:
            return _conv(reduce, activation, weight, axes, device)
    return None


def _pointwise(activation: UOp, weight: UOp, summed: tuple[UOp, ...]) -> tuple[Axis, ...]:
    """The axes of a 1x1 convolution, which has no taps."""
    outs = positions(activation, weight, summed)
    strides = strides_in(activation, outs, summed)
    return tuple(Axis(out=out, tap=UOp.const(0), sums=(), stride=strides[out], dilation=1) for out in outs)


def is_static_range(u: UOp) -> bool:
    return u.op is Ops.RANGE and u.src[0].op is Ops.CONST


def _conv(reduce: UOp, activation: UOp, weight: UOp, axes: tuple[Axis, ...], device: str) -> Conv | None:
    in_activation, in_weight = activation.ranges, weight.ranges
    taps, outs = {a.tap for a in axes}, {a.out for a in axes}
    summed = [r for r in reduce.src[1:] if r not in taps]
    loops = [r for r in in_activation if r not in summed and r not in taps and r not in outs]
    if not all(r in in_weight for r in summed):
        return None  # a range that only the activation knows: a product of sums; one that it lacks is broadcast
    if not all(is_static_range(r) for r in (*loops, *outs, *in_weight)):
        return None  # symbolic batch
    by_id = lambda ranges: tuple(sorted(ranges, key=lambda r: r.arg))  # noqa: E731
    return Conv(
        reduce=reduce,
        activation=activation,
        weight=weight,
        axes=axes,
        channels=by_id(summed),
        groups=by_id(r for r in loops if r in in_weight),
        batch=by_id(r for r in loops if r not in in_weight),
        couts=by_id(r for r in in_weight if r not in loops and r not in summed and r not in taps),
        device=device,
    )


def _axes(activation: Collection[UOp], weight: UOp, summed: tuple[UOp, ...]) -> tuple[Axis, ...]:
    """The spatial axes that the nodes of an activation show, in the order of the weight's, whatever becomes of the
    output's."""
    in_weight = weight.ranges
    consumers: dict[UOp, list[UOp]] = {}
    for u in activation:
        for s in u.src:
            users = consumers.setdefault(s, [])
            if not users or users[-1] is not u:  # once, though it may be both of its sources
                users.append(u)
    found = (_axis(tap, consumers) for tap in summed if tap in in_weight and tap in consumers)
    axes = [a for a in found if a is not None and a.out not in summed and a.out not in in_weight]
    if len({a.out for a in axes}) != len(axes):
        return ()
    return tuple(sorted(axes, key=lambda a: a.tap.arg))


def _axis(tap: UOp, consumers: Mapping[UOp, list[UOp]]) -> Axis | None:
    """`tap` as an axis, if it is only read as `out*stride + tap*dilation`, with one `out` that is read nowhere else."""
    scaled, dilation = _scaled(tap, consumers)
    sums = consumers[scaled]
    if any(s.op is not Ops.ADD for s in sums):
        return None
    others = [s.src[0] if s.src[1] is scaled else s.src[1] for s in sums]  # the terms that the tap is added to
    found = [_position(term) for term in others]
    positions = [each for each in found if each is not None]
    outs = {out for out, _ in positions}
    if len(positions) < len(found) or len(outs) != 1:
        return None
    out, strides = outs.pop(), [stride for _, stride in positions]
    stride = max(strides)
    # a gate `2*f + k < 1` reaches us as `f + k < 1`, which is the same; `f + k < 2` would not be `2*f + k < 2`. What is
    # read must be read at one stride, and forwards
    compared = (all(map(_is_below_one, consumers.get(s, ()))) for s in sums)
    if min(strides) < 1 or any(each != stride and not only for each, only in zip(strides, compared, strict=True)):
        return None
    axis = Axis(out=out, tap=tap, sums=tuple(sums), stride=stride, dilation=dilation)
    elsewhere = set(consumers[out]) - {*sums, *(term for term in others if term is not out)}
    # a gate on the output's position alone: what consumes it pads it. Only what moves no loop can bear that.
    if elsewhere and (axis.is_winograd or any(u.op is not Ops.CMPLT for u in elsewhere)):
        return None
    # else a product of matrices whose index happens to be flat
    return axis if windows_share(axis.size, axis.taps, axis.stride, dilation) else None


def _is_below_one(u: UOp) -> bool:
    return u.op is Ops.CMPLT and u.src[1].op is Ops.CONST and u.src[1].val == 1


def _scaled(tap: UOp, consumers: Mapping[UOp, list[UOp]]) -> tuple[UOp, int]:
    """`tap*dilation` and the dilation; the tap itself and 1 where it is read otherwise too."""
    users = consumers[tap]
    factor = _factor(users[0], tap) if len(users) == 1 else None
    return (users[0], factor) if factor is not None else (tap, 1)


def _position(term: UOp) -> tuple[UOp, int] | None:
    """The range and the stride of `out*stride`."""
    if term.op is Ops.RANGE:
        return term, 1
    out = next((s for s in term.src if s.op is Ops.RANGE), None) if term.op is Ops.MUL else None
    stride = _factor(term, out) if out is not None else None
    return (out, stride) if out is not None and stride is not None else None


def _factor(product: UOp, operand: UOp) -> int | None:
    """c of `operand * c`."""
    if product.op is not Ops.MUL:
        return None
    other = product.src[1] if product.src[0] is operand else product.src[0]
    return int(other.val) if other.op is Ops.CONST and isinstance(other.val, int) else None


def _padding(activation: UOp, axis: Axis, padded: int) -> tuple[int, int]:
    """How many positions from either end are zero whatever the other indexes are: what `conv2d(padding=)` wrote."""
    mine = {axis.out, axis.tap}
    gates = [c for gate in zero_gates(activation) for c in conjuncts(gate) if not mine.isdisjoint(c.ranges)]

    def is_zero(position: int) -> bool:
        readers = [(divmod(position - tap * axis.dilation, axis.stride), tap) for tap in range(axis.taps)]
        read = [{axis.out: out, axis.tap: tap} for (out, rest), tap in readers if rest == 0 and 0 <= out < axis.size]
        return bool(read) and all(any(_evaluate(gate, at) is False for gate in gates) for at in read)

    before = next((p for p in range(padded) if not is_zero(p)), padded)
    after = next((p for p in range(padded - before) if not is_zero(padded - 1 - p)), 0)
    return (before, after) if before < padded else (0, 0)


def zero_gates(value: UOp) -> Iterator[UOp]:
    """The conditions outside of which a value is zero."""
    while value.op is Ops.CAST or (value.op is Ops.WHERE and value.src[2].op is Ops.CONST and value.src[2].val == 0):
        if value.op is Ops.WHERE:
            yield value.src[0]
        value = value.src[1] if value.op is Ops.WHERE else value.src[0]


def conjuncts(condition: UOp) -> list[UOp]:
    """What must all hold. A choice of nothing, `WHERE(a, b, Invalid)`, is one of those: it is never asked where a is
    false."""
    if condition.op is Ops.AND:
        return [each for s in condition.src for each in conjuncts(s)]
    if condition.op is Ops.WHERE and condition.src[2].op is Ops.CONST and condition.src[2].val is Invalid:
        return [*conjuncts(condition.src[0]), *conjuncts(condition.src[1])]
    return [] if condition.op is Ops.CONST and condition.val is True else [condition]


def _evaluate(u: UOp, at: Mapping[UOp, int]) -> int | bool | None:
    """An index expression with some ranges fixed, in three-valued logic: None is unknown."""
    if u in at:
        return at[u]
    if u.op is Ops.CONST:
        return u.val if isinstance(u.val, int) else False if u.val is Invalid else None  # nothing is read there
    if u.op is Ops.WHERE and (chosen := _evaluate(u.src[0], at)) is not None:
        return _evaluate(u.src[1] if chosen else u.src[2], at)
    apply = _OPERATORS.get(u.op)
    if apply is None and (u.op not in (Ops.AND, Ops.OR) or u.dtype != dtypes.bool):
        return None
    a, b = _evaluate(u.src[0], at), _evaluate(u.src[1], at)
    if apply is None:
        decided = u.op is Ops.OR  # by one of the two alone
        return decided if a is decided or b is decided else None if a is None or b is None else not decided
    return None if a is None or b is None else apply(a, b)


_OPERATORS: Mapping[Ops, Callable[[int, int], int | bool]] = {
    Ops.ADD: operator.add, Ops.MUL: operator.mul, Ops.CMPLT: operator.lt, Ops.CMPNE: operator.ne,
}  # fmt: skip
