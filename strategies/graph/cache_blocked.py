"""Winograd in one kernel whose intermediates stay in a processor's cache.

Kernel by kernel every intermediate goes through memory: in F(4, 3) they have 2.25 times the elements of the input and
of the output, and four times those of the weight. Here a kernel makes of them what some tiles, and some couts, need,
uses it, and writes over it for the next:

    for each few blocks of tiles
        XHAT[T, c, a, t] = (Bt x Bt) activation, of these tiles and all channels
        for each block of couts
            GHAT[c, a, o] = (G x G) weight, of these couts; or another kernel has filled a buffer with all of it
            MHAT[T, a, o, t] = sum over c of XHAT * GHAT, in registers
            output = (At x At) MHAT, and what the consumer makes of it

Transforms go in lanes: see `lanes`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinygrad.dtype import dtypes
from tinygrad.uop.ops import AxisType, KernelInfo, Ops, UOp

from strategies.graph.buffers import scratch, singly
from strategies.graph.device import most_buffers, opened
from strategies.graph.epilogue import (
    Put,
    is_gatherable,
    parameters,
    reads_what_it_overwrites,
    sources_of,
    uncopied,
    with_epilogue,
)
from strategies.graph.frame import Frame, frame
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.ranges import Index, KernelRanges, Ranges, as_uop, ended, flatten
from strategies.graph.rebuild import defined, rebuild
from strategies.graph.winowrite import GHAT, Stage, filter_of, ghat_of, hold, tile_of, transformed, untiled

FILTERS = Stage(layout="GOCAo", loops="GOCoA", upcast="A", by_hand=True, lanes="o")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Sums of `couts` x `tiles` are in registers at a time, vectors of `tiles` or, with `couts_in_lanes`, of `couts`.
    XHAT of `together` blocks of tiles is held at a time; GHAT of all couts if it is `staged`, else of one block."""

    tile: int
    couts: int
    tiles: int
    together: int
    couts_in_lanes: bool
    staged: bool
    gathered: bool


def lower_cache_blocked(conv: Conv, by: Blocks, ranges: Ranges) -> Lowered | None:
    """What replaces `conv.reduce`; None where no axis has three taps, an operand is more than elementwise of what is in
    memory or in too many buffers, or on a device whose threads would share the scratch buffers."""
    space = frame(conv, ranges, m=by.tile, cout_block=by.couts, tile_block=by.tiles)
    if space is None or conv.dtype not in (dtypes.float32, dtypes.float16, dtypes.bfloat16):
        return None
    if opened(conv.device).renderer.has_local:
        return None
    if not is_gatherable(conv.activation) or not (by.staged or is_gatherable(conv.weight)):
        return None
    together = min(by.together, space.sizes["T"][0])
    points, channels = math.prod(space.sizes["A"]), math.prod(space.sizes["C"])
    xhat, mhat = (
        scratch(together * points * by.tiles * size, device=conv.device, slot=ranges.new_buffer())
        for size in (channels, by.couts)
    )
    if by.staged:
        ghat = hold(space, FILTERS, "GHAT", GHAT, lambda at: ghat_of(space, ranges, FILTERS.lanes, at)).buffer
    else:
        ghat = scratch(channels * points * by.couts, device=conv.device, slot=ranges.new_buffer())
    read = [defined(uncopied(operand)) for operand in (conv.activation, conv.weight)[: 1 if by.staged else 2]]
    operands = list(dict.fromkeys([xhat, ghat, mhat, *(source for value in read for source in sources_of(value))]))
    most = most_buffers(conv.device)
    if most is not None and len(operands) >= most:
        return None
    placed = parameters(operands)
    inside = replace(
        conv, activation=rebuild(read[0], placed), weight=conv.weight if by.staged else rebuild(read[1], placed)
    )

    def kernel(put: Put) -> UOp:
        own = KernelRanges()
        of_kernel = frame(inside, own, m=by.tile, cout_block=by.couts, tile_block=by.tiles)
        assert of_kernel is not None  # it is `space` with other ranges
        body = _Kernel(
            space=of_kernel, by=by, together=together, xhat=placed[xhat], ghat=placed[ghat], mhat=placed[mhat]
        )
        return body.sink(put)

    return with_epilogue(conv, operands, kernel, ranges, apart=reads_what_it_overwrites(conv))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernel:
    """The kernel over parameters that hold XHAT, GHAT and MHAT."""

    space: Frame
    by: Blocks
    together: int
    xhat: UOp
    ghat: UOp
    mhat: UOp

    def sink(self, put: Put) -> UOp:
        new, sizes = self.space.ranges.new, self.space.sizes
        groups = self._loops("G")
        blocks = sizes["T"][0]
        few = new(-(-blocks // self.together))
        xhat = self.xhat.after(self._fill_xhat(groups, few))
        couts = new(sizes["O"][0])
        ghat = self.ghat if self.by.staged else self.ghat.after(self._fill_ghat(groups, couts))
        mhat = self._mhat(groups, couts, xhat, ghat)
        stores, loops = self._output(groups, few, couts, mhat, put)
        done = ended(stores, [*loops, couts, few, *reversed(groups)])
        name = "_".join(
            map(str, ("winograd", self.space.m, *sizes["C"], *sizes["O"], self.by.couts, blocks, self.by.tiles))
        )
        return done.sink(arg=KernelInfo(name=name, opts_to_apply=()))

    def _loops(self, letter: str, kind: AxisType = AxisType.WEAK) -> list[UOp]:
        return [self.space.ranges.new(size, kind) for size in self.space.sizes[letter]]

    def _fill_xhat(self, groups: Sequence[UOp], few: UOp) -> UOp:
        block, channels, tile = self.space.ranges.new(self.together), self._loops("C"), self._loops("t")
        at = {"G": groups, "B": (), "T": (self._block(few, block),), "t": tile, "C": channels}
        lanes = "t" if self.by.gathered else ""
        value = transformed(self.space, self.space.transform.bt, None, lanes, tile_of(self.space, at), at)
        stores = [
            self.xhat.index(self._in_xhat(block, channels, points, tile[0])).store(value(points))
            for points in self._points()
        ]
        return ended(UOp.group(*stores), [block, *channels, *tile])

    def _fill_ghat(self, groups: Sequence[UOp], couts: UOp) -> UOp:
        channels, cout = self._loops("C"), self._loops("o")
        at = {"G": groups, "O": (couts,), "o": cout, "C": channels}
        value = transformed(self.space, self.space.transform.g, None, FILTERS.lanes, filter_of(self.space, at), at)
        stores = [
            self.ghat.index(self._in_ghat(groups, couts, channels, points, cout[0])).store(value(points))
            for points in self._points()
        ]
        return ended(UOp.group(*stores), [*channels, *cout])

    def _points(self) -> list[tuple[int, ...]]:
        """Of the transform, each by itself: spelled out, sums that several of them share are there once."""
        return list(itertools.product(*(range(size) for size in self.space.sizes["A"])))

    def _mhat(self, groups: Sequence[UOp], couts: UOp, xhat: UOp, ghat: UOp) -> UOp:
        points, block = self._loops("A"), self.space.ranges.new(self.together)
        cout, tile = self._loops("o", AxisType.UPCAST)[0], self._loops("t", AxisType.UPCAST)[0]
        channels = self._loops("C", AxisType.REDUCE)
        product = xhat.index(self._in_xhat(block, channels, points, tile)) * ghat.index(
            self._in_ghat(groups, couts, channels, points, cout)
        )
        summed = [r for r in channels if r.op is Ops.RANGE]
        value = product.reduce(*summed, arg=Ops.ADD) if summed else product
        place = singly(self._in_mhat(block, points, cout, tile), points)
        return self.mhat.after(ended(self.mhat.index(place).store(value), [*points, block, cout, tile]))

    def _output(self, groups: Sequence[UOp], few: UOp, couts: UOp, mhat: UOp, put: Put) -> tuple[UOp, tuple[UOp, ...]]:
        """The stores, and what loops of their own they are in."""
        new, blocks = self.space.ranges.new, self.space.sizes["T"][0]
        block = new(self.together)
        sizes = (self.by.tiles, self.by.couts) if self.by.couts_in_lanes else (self.by.couts, self.by.tiles)
        beside, lane, again = new(sizes[0]), new(sizes[1]), new(sizes[1])

        def cout_and_tile(lane: UOp) -> tuple[UOp, UOp]:
            return (lane, beside) if self.by.couts_in_lanes else (beside, lane)

        def element(points: tuple[Index, ...]) -> UOp:
            return mhat.index(self._in_mhat(block, points, *cout_and_tile(lane)))

        cout, tile = cout_and_tile(again)
        at = {"G": groups, "B": (), "T": (self._block(few, block),), "t": (tile,), "O": (couts,), "o": (cout,)}
        gates = [few * self.together + block < blocks] if blocks % self.together else []
        return untiled(self.space, element, lane, again, at, put, gates), (again, beside, block)

    def _block(self, few: UOp, block: UOp) -> UOp:
        """Which block of tiles; beyond the last one that again."""
        index, blocks = few * self.together + block, self.space.sizes["T"][0]
        return index.minimum(blocks - 1) if blocks % self.together else index

    def _in_xhat(self, block: UOp, channels: Sequence[UOp], points: Sequence[Index], tile: UOp) -> UOp:
        sizes = self.space.sizes
        return flatten(
            [block, *channels, *map(as_uop, points), tile], [self.together, *sizes["C"], *sizes["A"], self.by.tiles]
        )

    def _in_ghat(
        self, groups: Sequence[UOp], couts: UOp, channels: Sequence[UOp], points: Sequence[Index], cout: UOp
    ) -> UOp:
        sizes = self.space.sizes
        own, extents = [*channels, *map(as_uop, points), cout], [*sizes["C"], *sizes["A"], self.by.couts]
        if self.by.staged:
            own, extents = [*groups, couts, *own], [*sizes["G"], *sizes["O"], *extents]
        return flatten(own, extents)

    def _in_mhat(self, block: UOp, points: Sequence[Index], cout: UOp, tile: UOp) -> UOp:
        last = ((tile, self.by.tiles), (cout, self.by.couts))
        (a, a_size), (b, b_size) = last if self.by.couts_in_lanes else last[::-1]
        return flatten([block, *map(as_uop, points), a, b], [self.together, *self.space.sizes["A"], a_size, b_size])
