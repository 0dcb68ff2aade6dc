"""Two ways to hold an intermediate in a buffer. Each gives its reader: from one index per axis to the value there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce as fold

from tinygrad.dtype import AddrSpace
from tinygrad.schedule.indexing import BufferizeOpts
from tinygrad.uop.ops import AxisType, Ops, ParamArg, UOp, shape_to_shape_arg

from strategies.graph.match import extent

Reader = Callable[[Sequence[UOp]], UOp]

NEVER_SET = 1 << 24
"""A bit that no range reaches: ranges of a kernel are far shorter."""


def hand_made(body: UOp) -> UOp:
    """`body` in a kernel that tinygrad's heuristics and BEAM leave as its ranges say: an empty tuple of options."""
    return UOp(Ops.CONTIGUOUS, src=(body,), arg=())


def staged(body: UOp, axes: Sequence[UOp], *, device: str) -> Reader:
    """A STAGE, which tinygrad turns into a buffer and a kernel that fills it."""
    stage = UOp(Ops.STAGE, src=(body, *axes), arg=BufferizeOpts(device=device, removable=False))
    return lambda indexes: stage.index(*indexes)


def stored_singly(body: UOp, axes: Sequence[UOp], *, device: str, slot: int) -> Reader:
    """The buffer and the store written out, with an index in which tinygrad sees no multiple of two or four.

    tinygrad joins neighbouring stores by four. A C compiler grows its vectors from the stores, so it then stays at
    four as well, whatever the processor has. The index gets a term that is always zero: tinygrad cannot know that
    and leaves single stores, the compiler knows and joins them as wide as the processor allows.
    """
    sizes = [extent(axis) if axis.op is Ops.RANGE else 1 for axis in axes]
    arg = ParamArg(slot, body.dtype, device=device, addrspace=AddrSpace.GLOBAL)
    buffer = UOp(Ops.BUFFER, src=(shape_to_shape_arg((math.prod(sizes),)),), arg=arg)
    ranges = sorted((axis for axis in axes if axis.op is Ops.RANGE), key=lambda r: r.arg)
    loops = [r for r in ranges if r.arg[-1] is AxisType.WEAK]
    index = _flat(axes, sizes) + (loops[0] & NEVER_SET) if loops else _flat(axes, sizes)
    filled = buffer.after(buffer.index(index).store(body).end(*ranges))
    return lambda indexes: filled.index(_flat(indexes, sizes))


def _flat(indexes: Sequence[UOp], sizes: Sequence[int]) -> UOp:
    return fold(lambda flat, item: flat * item[1] + item[0], zip(indexes, sizes, strict=True), UOp.const(0))
