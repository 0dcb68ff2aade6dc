"""Winograd as a rewrite of the matched REDUCE, by a Plan: what is materialised, in which order, how blocked.

With no tile at all the same rewrite is im2col: nothing is transformed.

Before: one REDUCE over channels and taps.
After, with everything staged (one kernel each, the last fused with whatever consumes the convolution):

    XHAT[a, c, tile] = (Bt x Bt) activation             a = points of the transform, m + 2 per axis
    GHAT[a, c, cout] = (G x G) weight
    MHAT[a, cout, tile] = sum over c of XHAT * GHAT
    output = (At x At) MHAT

An intermediate is a function from coordinates to a value. Staging one changes only where the value comes from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tinygrad.dtype import dtypes
from tinygrad.uop.ops import AxisType, KernelInfo, Ops, UOp

from strategies.graph.buffers import Held, in_one_piece, staged, stored, stored_singly
from strategies.graph.epilogue import Put, with_epilogue
from strategies.graph.frame import Coords, Frame, frame
from strategies.graph.kron import Known, kron
from strategies.graph.lanes import MOST_LANES, Elements, divided, gathered, lane_of, scattered
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.ranges import Index, KernelRanges, Ranges, as_uop, ended, extent, flatten
from strategies.graph.rebuild import gated, rebuild
from strategies.graph.spread import in_kernel, share
from strategies.transform import Matrix

Intermediate = Callable[[Coords], UOp]

XHAT, GHAT, MHAT = "AGBCTt", "AGCOo", "AGBOoTt"
"""The axes of each."""

PHASES = ("XHAT", "+GHAT", "+MHAT", "+output")
"""What there is after each part of a lowering: an output made of XHAT alone, of XHAT and GHAT, of MHAT, and the real
one. The first three are of the output's shape, each element one of the intermediate's, and compute no convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A materialised intermediate, its axes named by letter as in `frame`, outermost first.

    `layout` orders its buffer, `loops` its kernel's loops (by default the same); `upcast` names the axes held in
    registers, `local` those that the threads of a workgroup divide among them, the innermost to neighbours. With
    `by_hand` these are all the kernel gets: tinygrad's heuristics and BEAM leave it alone. Without `joined` its stores
    are not joined into vectors: see `buffers`. `threaded` divides the outermost loop that divides evenly among the
    threads of a CPU, which tinygrad 0.14.0 runs one after the other. `lanes` names the axis along which a transform is
    computed in vectors, its elements gathered first: see `lanes`.
    """

    layout: str
    loops: str = ""
    upcast: str = ""
    local: str = ""
    by_hand: bool = False
    joined: bool = True
    threaded: bool = False
    lanes: str = ""

    @property
    def in_stage(self) -> bool:
        """Whether it is a STAGE, whose axes can only be ranges; else buffer and store are written out."""
        return self.joined and not self.threaded and not self.lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One point in the space of lowerings by one product, Winograd's and im2col's. An intermediate without a Stage is
    computed where it is used.

    `cout_block` x `tile_block` outputs of the product are computed together (0: no blocks, heuristics decide), with
    `channel_block` channels unrolled. `nested` transforms are REDUCEs over tables, others spelled out (see kron).
    `output` says where the last transform goes: `inline` into the consumer's kernel, or `staged`, whole tiles to a
    buffer of its own; `auto` is inline if tiles cover the output exactly, else staged: the consumer would repeat the
    transform for every element. With `lanes` the consumer's kernel is one of our own, in which it is computed in
    vectors along the innermost axis of a staged MHAT.

    With `tile` 0 nothing is transformed: XHAT are the windows copied out as columns (im2col), GHAT is the weight, and
    outputs take the place of tiles.

    Raises ValueError for lanes along what is no innermost axis.
    """

    tile: int = 4
    xhat: Stage | None = None
    ghat: Stage | None = None
    mhat: Stage | None = None
    output: str = "auto"
    nested: bool = True
    cout_block: int = 0
    tile_block: int = 0
    channel_block: int = 0

    def __post_init__(self) -> None:
        if self.output == "lanes" and (self.mhat is None or self.mhat.layout[-1] not in "to"):
            raise ValueError("lanes are along the innermost axis of a staged MHAT, t or o")


def winowrite(conv: Conv, plan: Plan, ranges: Ranges) -> Lowered | None:
    """What replaces `conv.reduce`, or None where the plan does not apply: of another type, or without an axis of three
    taps. Raises ValueError for a plan whose layouts leave out an axis."""
    if conv.dtype not in (dtypes.float32, dtypes.float16, dtypes.bfloat16):
        return None
    space = frame(conv, ranges, m=plan.tile, cout_block=plan.cout_block, tile_block=plan.tile_block)
    if space is None:
        return None
    nested = ranges if plan.nested else None
    xhat_lanes, ghat_lanes = (stage.lanes if stage is not None else "" for stage in (plan.xhat, plan.ghat))
    operands = partial(xhat_of, space, nested, xhat_lanes), partial(ghat_of, space, nested, ghat_lanes)
    if plan.output == "lanes" and plan.mhat is not None and conv.until not in PHASES[:-1]:
        return _in_lanes(space, plan.mhat, _product(space, plan, *operands))
    mhat = _staged(space, plan.mhat, "product", MHAT, _product(space, plan, *operands))
    if conv.until in PHASES[:-1]:
        return Lowered(value=_stopped(space, plan, mhat, *operands), until=conv.until)
    inline = plan.output == "inline" or (plan.output == "auto" and space.exact)
    value = untiled_inline(space, nested, mhat) if inline else _tiled(space, nested, mhat)
    return Lowered(value=in_kernel(conv, "output", value.cast(conv.reduce.dtype)))


def _staged(space: Frame, stage: Stage | None, role: str, letters: str, value: Intermediate) -> Intermediate:
    """`value` itself, or reads of a buffer that holds it."""
    if stage is None:
        return value
    held = hold(space, stage, role, letters, value)
    layout = [letter for letter in stage.layout if letter in letters]
    return lambda at: held.read([as_uop(index) for letter in layout for index in at[letter]])


def hold(
    space: Frame, stage: Stage, role: str, letters: str, value: Intermediate, *, written_out: bool = False
) -> Held:
    """`value` in a buffer, which is no STAGE if it is to be `written_out`. Raises ValueError for a stage whose layout
    or loops leave out an axis."""
    loops = [letter for letter in stage.loops or stage.layout if letter in letters]
    layout = [letter for letter in stage.layout if letter in letters]
    if sorted(loops) != sorted(layout) or any(space.sizes[letter] and letter not in layout for letter in letters):
        raise ValueError(f"layout {stage.layout!r} and loops {stage.loops!r} must each name all of {letters!r} once")
    at = _loops(space, stage, loops)
    body = value({letter: at.get(letter, ()) for letter in letters})
    body = in_kernel(space.conv, role, body, by_hand=stage.by_hand)
    axes = [r for letter in layout for r in at[letter]]
    sizes = [size for letter in layout for size in space.sizes[letter]]
    if not stage.joined:
        return stored_singly(body, axes, sizes, device=space.conv.device, slot=space.ranges.new_buffer())
    if written_out or not stage.in_stage:
        return stored(body, axes, sizes, device=space.conv.device, slot=space.ranges.new_buffer())
    return staged(body, axes, device=space.conv.device)


def _loops(space: Frame, stage: Stage, letters: Sequence[str]) -> dict[str, list[UOp]]:
    """An index along every axis, from loops of the kinds that the stage asks for, the first outermost."""
    kinds = dict.fromkeys(stage.upcast, AxisType.UPCAST) | dict.fromkeys(stage.local, AxisType.LOCAL)
    sizes = [(letter, size) for letter in letters for size in space.sizes[letter]]
    shared, cores = None, 1
    if stage.threaded:
        shared, cores = share([size if letter not in kinds else 1 for letter, size in sizes], space.conv.device)
    at: dict[str, list[UOp]] = {letter: [] for letter in letters}
    for position, (letter, size) in enumerate(sizes):
        if position == shared:
            core = in_one_piece(space.ranges.new(cores, AxisType.THREAD))
            at[letter].append(core * (size // cores) + space.ranges.new(size // cores))
        elif letter == stage.lanes and size > MOST_LANES:
            at[letter].append(divided(size, space.ranges))
        else:
            loop = space.ranges.new(size, kinds.get(letter, AxisType.WEAK))
            in_registers = letter in stage.upcast and not stage.in_stage
            at[letter].append(in_one_piece(loop) if in_registers else loop)
    return at


def transformed(
    space: Frame, matrix: Matrix, nested: Ranges | None, lanes: str, elements: Elements, at: Coords
) -> Elements:
    """(matrix x matrix) of the elements, by point; in vectors along the axis of this letter, if it is one."""
    lane = lane_of(at[lanes][-1]) if lanes and space.axes and at[lanes] else None
    if lane is not None:
        elements = gathered(elements, len(matrix[0]), len(space.axes), lane, space.ranges)
    known: Known = {}
    return lambda points: kron(matrix, points, elements, nested, known)


def xhat_of(space: Frame, nested: Ranges | None, lanes: str, at: Coords) -> UOp:
    """(Bt x Bt) activation, of one tile and channel, in float32."""
    return transformed(space, space.transform.bt, nested, lanes, tile_of(space, at), at)(tuple(at["A"]))


def ghat_of(space: Frame, nested: Ranges | None, lanes: str, at: Coords) -> UOp:
    """(G x G) weight, of one cout and channel, in float32."""
    return transformed(space, space.transform.g, nested, lanes, filter_of(space, at), at)(tuple(at["A"]))


def tile_of(space: Frame, at: Coords) -> Elements:
    """The activation within a tile of one channel, in float32."""
    conv = space.conv
    batch, tiles = space.batch_and_tiles(at)
    placed = _bind(conv.channels, at["C"]) | _bind(conv.groups, at["G"]) | _bind(conv.batch, batch)

    def element(inner: tuple[Index, ...]) -> UOp:
        where, gates = dict(placed), []
        for axis, tile, i in zip(space.axes, tiles, inner, strict=True):
            position = as_uop(tile) * space.m + as_uop(i)
            where |= dict.fromkeys(axis.sums, position)
            if not space.is_read(axis, i):
                gates.append(position < axis.size + axis.taps - 1)
        return _float32(gated(rebuild(conv.activation, where), gates))

    return element


def filter_of(space: Frame, at: Coords) -> Elements:
    """The weight of one cout and channel by its taps, in float32."""
    conv = space.conv
    placed = _bind(conv.channels, at["C"]) | _bind(conv.groups, at["G"]) | _bind(conv.couts, space.couts(at))
    return lambda taps: _float32(rebuild(conv.weight, placed | _bind([axis.tap for axis in space.axes], taps)))


def _mhat(space: Frame, channel_block: int, xhat: Intermediate, ghat: Intermediate, at: Coords) -> UOp:
    """sum over channels of XHAT * GHAT."""
    channels: list[UOp] = []
    summed: list[UOp] = []
    for position, size in enumerate(space.sizes["C"]):
        last = position == len(space.sizes["C"]) - 1
        block = channel_block if last and 1 < channel_block < size and size % channel_block == 0 else 1
        outer = space.ranges.new(size // block, AxisType.REDUCE)
        inner = space.ranges.new(block, AxisType.UNROLL)
        channels.append(outer * block + inner if block > 1 else outer)
        summed += [r for r in (outer, inner) if r.op is Ops.RANGE]
    everywhere = {**at, "C": channels}
    product = xhat(everywhere) * ghat(everywhere)
    return product.reduce(*summed, arg=Ops.ADD) if summed else product


def _product(space: Frame, plan: Plan, xhat: Intermediate, ghat: Intermediate) -> Intermediate:
    """MHAT as a REDUCE where it is used, over operands staged or not."""
    xhat = _staged(space, plan.xhat, "XHAT", XHAT, xhat)
    ghat = _staged(space, plan.ghat, "GHAT", GHAT, ghat)
    return partial(_mhat, space, plan.channel_block, xhat, ghat)


def untiled_inline(space: Frame, nested: Ranges | None, mhat: Intermediate) -> UOp:
    """(At x At) MHAT at the consumer's own indexes: it is computed in the consumer's kernel."""
    conv, outs = space.conv, [axis.out for axis in space.axes]
    at = space.coordinates(conv.groups, conv.batch, conv.couts, [out // space.m for out in outs])
    return kron(space.transform.at, [out % space.m for out in outs], lambda a: mhat({**at, "A": a}), nested)


def _in_lanes(space: Frame, stage: Stage, product: Intermediate) -> Lowered:
    """(At x At) MHAT of all of a block's tiles (or couts) in an array, then one by one to where they belong."""
    mhat = hold(space, stage, "product", MHAT, product, written_out=True)
    layout = [letter for letter in stage.layout if space.sizes[letter]]
    letters = [letter for letter in layout[:-1] if letter != "A"]
    sizes = [size for letter in layout for size in space.sizes[letter]]
    array = UOp.placeholder((math.prod(sizes),), dtypes.float32, slot=1)

    def kernel(put: Put) -> UOp:
        ranges = KernelRanges()
        own = replace(space, ranges=ranges)
        at: dict[str, Sequence[Index]] = dict.fromkeys("GBOoTt", ())
        at |= {letter: [ranges.new(size) for size in space.sizes[letter]] for letter in letters}
        lane, again = (ranges.new(space.sizes[layout[-1]][0]) for _ in range(2))

        def element(points: tuple[Index, ...]) -> UOp:
            where = {**at, layout[-1]: [lane], "A": points}
            return array.index(flatten([as_uop(index) for letter in layout for index in where[letter]], sizes))

        stores = untiled(own, element, lane, again, {**at, layout[-1]: [again]}, put)
        loops = [again, *(as_uop(index) for letter in letters for index in at[letter])]
        done = ended(stores, loops)
        return done.sink(arg=KernelInfo(name=f"untile_{'_'.join(map(str, sizes))}", opts_to_apply=()))

    return with_epilogue(space.conv, [mhat.buffer], kernel, space.ranges)


def untiled(
    space: Frame, element: Elements, lane: UOp, again: UOp, at: Coords, put: Put, gates: Sequence[UOp] = ()
) -> UOp:
    """Stores of the outputs of tiles whose points are the elements, at `lane`, in lanes: see `lanes.scattered`. `at`
    has them at `again`, where there are some if the gates hold."""
    conv, m = space.conv, space.m
    rows = list(itertools.product(range(m), repeat=len(space.axes)))
    batch, tiles = space.batch_and_tiles(at)
    where = _bind(conv.groups, at["G"]) | _bind(conv.batch, batch) | _bind(conv.couts, space.couts(at))
    gates = [*gates, *space.gates(at)]

    def put_one(number: int, value: UOp) -> UOp:
        positions = [as_uop(tile) * m + r for tile, r in zip(tiles, rows[number], strict=True)]
        beyond = [p < axis.size for axis, p in zip(space.axes, positions, strict=True) if axis.size % m]
        return put(where | _bind([axis.out for axis in space.axes], positions), [*gates, *beyond], value)

    known: Known = {}
    values = [kron(space.transform.at, row, element, known=known) for row in rows]
    return scattered(values, lane, again, put_one, slot=space.ranges.new_buffer())


def _stopped(space: Frame, plan: Plan, mhat: Intermediate, *operands: Intermediate) -> UOp:
    """One element of the intermediates for each of the output's."""
    conv, outs = space.conv, [axis.out for axis in space.axes]
    at = {
        **space.coordinates(conv.groups, conv.batch, conv.couts, [out // space.m for out in outs]),
        "A": [out % space.m for out in outs],
    }
    if conv.until == "+MHAT":
        return mhat(at).cast(conv.reduce.dtype)
    cout = conv.couts[-1] if conv.couts else UOp.const(0)
    at["C"] = [cout % size for size in space.sizes["C"]]
    result = _staged(space, plan.xhat, "XHAT", XHAT, operands[0])(at)
    if conv.until == "+GHAT":
        result = result + _staged(space, plan.ghat, "GHAT", GHAT, operands[1])(at)
    return result.cast(conv.reduce.dtype)


def _tiled(space: Frame, nested: Ranges | None, mhat: Intermediate) -> UOp:
    """(At x At) MHAT of whole tiles in a buffer of their own, which the consumer reads without what is left over."""
    body, axes = tiles_of(space, nested, mhat)
    return untiled_read(space, staged(in_kernel(space.conv, "tiles", body), axes, device=space.conv.device))


def tiles_of(
    space: Frame, nested: Ranges | None, mhat: Intermediate, kind: AxisType = AxisType.WEAK,
    spread: Callable[[Sequence[int]], Sequence[UOp]] | None = None,
) -> tuple[UOp, list[UOp]]:  # fmt: skip
    """(At x At) MHAT of whole tiles, and the indexes of all, outermost first: those of tiles by `spread`, or a loop for
    each axis; those of a tile's elements loops of this kind."""
    conv, new = space.conv, space.ranges.new
    groups, batch, couts = ([new(extent(r)) for r in ranges] for ranges in (conv.groups, conv.batch, conv.couts))
    tiles = spread(space.tiles) if spread is not None else [new(count) for count in space.tiles]
    rows = [new(space.m, kind) for _ in space.axes]
    at = space.coordinates(groups, batch, couts, tiles)
    body = kron(space.transform.at, rows, lambda a: mhat({**at, "A": a}), nested)
    return body, [*groups, *batch, *couts, *(index for pair in zip(tiles, rows, strict=True) for index in pair)]


def untiled_read(space: Frame, tiles: Held) -> UOp:
    """What the consumer reads of a buffer of `tiles_of`."""
    conv = space.conv
    pieces = [piece for axis in space.axes for piece in (axis.out // space.m, axis.out % space.m)]
    return tiles.read([*conv.groups, *conv.batch, *conv.couts, *pieces])


def _bind(ranges: Sequence[UOp], indexes: Sequence[Index]) -> dict[UOp, UOp]:
    return {r: as_uop(index) for r, index in zip(ranges, indexes, strict=True)}


def _float32(value: UOp) -> UOp:
    return value if value.dtype == dtypes.float32 else value.cast(dtypes.float32)
