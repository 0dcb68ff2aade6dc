"""A CPU's transforms in vectors: what a tile reads is gathered first, what it makes is scattered last.

A tile's elements lie apart in memory, those of neighbouring tiles interleaved, at the border with a condition each. A
C compiler makes no vectors of that, and computes tile by tile, element by element: on one core of an AMD EPYC the
transforms of a Winograd convolution then take longer than its product. So a kernel moves and computes in turns:

    for each block of tiles (couts, channels)
        for each tile, for each element        one load and one store, to an array that stays in the first cache
        for each tile                          the transform: this loop the compiler makes vectors of
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.schedule.indexing import BufferizeOpts
from tinygrad.uop.ops import KernelInfo, Ops, UOp

from strategies.graph.kron import Index, Ranges
from strategies.graph.rebuild import rebuild

Elements = Callable[[tuple[Index, ...]], UOp]
"""From a position along each axis to what a tile, or a filter, has there."""

MOST_LANES = 32
"""Elements of one array, of each position: two vectors of the longest that there are."""


def lane_of(index: UOp) -> UOp | None:
    """The innermost loop of an index, which neighbours in memory are neighbours along; None if there is none."""
    return max(index.ranges, key=lambda r: r.arg, default=None)


def gathered(elements: Elements, size: int, axes: int, lane: UOp, ranges: Ranges) -> Elements:
    """The same elements, `size` along each of the `axes`, read from an array that those of every value of `lane` have
    been copied to."""
    other = ranges.new(int(lane.vmax) + 1)
    places = tuple(ranges.new(size) for _ in range(axes))
    body = rebuild(elements(places), {lane: other})
    # in registers, as tinygrad calls what only this loop sees; on a CPU that is an array on the stack
    opts = BufferizeOpts(device=None, addrspace=AddrSpace.REG, removable=False)
    array = UOp(Ops.STAGE, src=(body, *places, other), arg=opts)
    return lambda at: array.index(*(i if isinstance(i, UOp) else UOp.const(i) for i in at), lane)


def scattered(
    outer: Sequence[int],
    lanes: int,
    compute: Callable[[Sequence[UOp], UOp], Sequence[UOp]],
    store: Callable[[Sequence[UOp], UOp, int, UOp], UOp],
    *,
    name: str,
) -> UOp:
    """A kernel of loops over `outer` and, innermost, over `lanes`: what `compute` makes of each lane, all in float32,
    is kept until it is there for every lane; then `store` puts the values, each by its number, where they belong."""
    loops = [UOp.range(size, at) if size > 1 else UOp.const(0) for at, size in enumerate(outer)]
    lane, again = (UOp.range(lanes, len(outer) + at) for at in range(2))
    values = compute(loops, lane)
    array = UOp.placeholder((len(values), lanes), dtypes.float32, slot=0, addrspace=AddrSpace.REG)
    array = array.after(*(r for r in loops if r.op is Ops.RANGE))
    kept = array.after(UOp.group(*(array[at, lane].store(value) for at, value in enumerate(values))).end(lane))
    stores = [store(loops, again, at, kept[at, again]) for at in range(len(values))]
    done = UOp.group(*stores).end(again, *(r for r in reversed(loops) if r.op is Ops.RANGE))
    return done.sink(arg=KernelInfo(name=name, opts_to_apply=()))
