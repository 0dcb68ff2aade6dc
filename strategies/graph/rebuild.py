"""Replacing nodes within one kernel's expression. Linear in its size, unlike a rewrite to a fixed point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce as fold
from operator import and_

from tinygrad.dtype import Invalid, dtypes
from tinygrad.uop.ops import Ops, UOp
from tinygrad.uop.symbolic import uop_given_valid

BOUNDARY = frozenset({Ops.STAGE, Ops.AFTER, Ops.CALL, Ops.MSTACK, Ops.MSELECT, Ops.PARAM, Ops.BUFFER})
"""What ends a kernel's expression. Beyond it other ranges hold, and a deep network would be walked once per layer."""


DIVISIONS = frozenset({Ops.FLOORDIV, Ops.FLOORMOD})


def expression(root: UOp) -> dict[UOp, None]:
    """The nodes of one kernel's expression under `root`, sources first, not looking past what is materialised."""
    return root.toposort(gate=lambda u: u.op not in BOUNDARY)


def rebuild(root: UOp, replacements: Mapping[UOp, UOp]) -> UOp:
    """`root` with nodes replaced; what a replacement holds is not looked into."""
    done: dict[UOp, UOp] = dict(replacements)
    for u in expression(root):
        if u not in done:
            sources = tuple(done.get(s, s) for s in u.src)
            done[u] = u if sources == u.src else u.replace(src=sources)
    return done.get(root, root)


def defined(value: UOp) -> UOp:
    """An operand with 0 where it is Invalid, tinygrad's mark for what nobody reads.

    tinygrad leaves out a store of it, and an array of ours is read where nothing was stored then. An index, of which
    Invalid means that nothing is read there, is left alone.
    """
    done: dict[UOp, UOp] = {}
    for u in expression(value):
        sources = tuple(done.get(s, s) for s in u.src)
        if u.op is Ops.WHERE and u.dtype != dtypes.weakint:
            sources = (sources[0], *(_zero(u) if s.op is Ops.CONST and s.val is Invalid else s for s in sources[1:]))
        done[u] = u if sources == u.src else u.replace(src=sources)
    return done.get(value, value)


def _zero(like: UOp) -> UOp:
    return UOp.const(False) if like.dtype == dtypes.bool else like.const_like(0)


def simplified(value: UOp) -> UOp:
    """`value` with divisions in the indexes of its gated loads as simple as they are where the gates hold, as tinygrad
    makes them when it lowers a kernel: `(2*f + k + 55) % 56` where `f + k >= 1` is `2*f + k - 1`."""

    def simple(index: UOp) -> UOp:
        gate, position = index.get_valid(), index.get_idx()
        divides = any(u.op in DIVISIONS for u in position.backward_slice_with_self)
        return uop_given_valid(gate, position).valid(gate) if divides and gate.op is not Ops.CONST else index

    loads = {}
    for u in expression(value):
        if u.op is Ops.INDEX and (indexes := tuple(map(simple, u.src[1:]))) != u.src[1:]:
            loads[u] = u.replace(src=(u.src[0], *indexes))
    return rebuild(value, loads) if loads else value


def gated_load(load: UOp, gate: UOp) -> UOp:
    """An INDEX that is taken where the gate holds; a scalar, which there always is, anyway."""
    if len(load.src) == 1:
        return load
    index = load.src[1]
    return load.replace(src=(load.src[0], index.get_idx().valid(index.get_valid() & gate), *load.src[2:]))


def gated(value: UOp, gates: Sequence[UOp]) -> UOp:
    """`value` where every gate holds, else 0. Loads are gated too: beyond there may be NaN, or no memory."""
    if not gates:
        return value
    gate = fold(and_, gates)
    loads = {u: gated_load(u, gate) for u in expression(value) if u.op is Ops.INDEX}
    return gate.where(rebuild(value, loads), value.const_like(0))
