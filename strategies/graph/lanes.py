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
from tinygrad.uop.ops import UOp

from strategies.graph.ranges import Index, Ranges, as_uop
from strategies.graph.rebuild import rebuild
from strategies.graph.spread import divisor

Elements = Callable[[tuple[Index, ...]], UOp]
"""From a position along each axis to what a tile, or a filter, has there."""

MOST_LANES = 32
"""Elements of an array, of each position: two vectors of the longest that there are."""


def divided(size: int, ranges: Ranges) -> UOp:
    """An index of so many values, its innermost loop over as many as one array has room for and divide it."""
    lanes = divisor(size, MOST_LANES)
    return ranges.new(size // lanes) * lanes + ranges.new(lanes)


def lane_of(index: Index) -> UOp | None:
    """The innermost loop of an index; None where there is none, or an array has no room for all of it."""
    loops = as_uop(index).ranges
    lane = max(loops, key=lambda r: r.arg, default=None)
    return lane if lane is not None and lane.vmax < MOST_LANES else None


def gathered(elements: Elements, size: int, axes: int, lane: UOp, ranges: Ranges) -> Elements:
    """The same elements, `size` along each of the `axes`, read from an array to which those of every value of `lane`
    have been copied."""
    other = ranges.new(int(lane.vmax) + 1)
    places = tuple(ranges.new(size) for _ in range(axes))
    body = rebuild(elements(tuple(map(ranges.known, places))), {lane: ranges.known(other)})
    read = ranges.array(body, [*places, other])
    return lambda at: read([*map(as_uop, at), lane])


def scattered(values: Sequence[UOp], lane: UOp, again: UOp, put: Callable[[int, UOp], UOp], *, slot: int) -> UOp:
    """Stores of `values`, in float32, which a loop over `lane` has computed and put into an array (the kernel's own of
    this slot) before a loop over `again` takes each, by its number, and has it `put` where it belongs. The second loop,
    and those around both, are left to be ended."""
    lanes = int(lane.vmax) + 1
    array = UOp.placeholder((len(values) * lanes,), dtypes.float32, slot=slot, addrspace=AddrSpace.REG)
    filled = UOp.group(*(array.index(lane + at * lanes).store(value) for at, value in enumerate(values))).end(lane)
    kept = array.after(filled)
    return UOp.group(*(put(at, kept.index(again + at * lanes)) for at in range(len(values))))
