"""A convolution as one product of matrices on tensor cores, its windows gathered by the product itself.

    X[g, c, b, p, 16] = the activation, zeros around it included, 16 channels together
    W[g, c, k, o, 16] = the weight, likewise
    Y[g, o, (b, y)]   = sum over (c, k, 16) of W[g, c, k, o] * X[g, c, b, y * stride + k * dilation]

Nothing is repeated in memory for the sake of the product, as im2col does: a tap is an offset that all windows share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tinygrad.codegen.opt.tc import TensorCore
from tinygrad.dtype import dtypes
from tinygrad.uop.ops import AxisType, UOp

from strategies.graph.buffers import Held, computed, hand_made, stored
from strategies.graph.fitting import request_options
from strategies.graph.frame import flatten, unflatten
from strategies.graph.kron import Ranges
from strategies.graph.lowered import Lowered
from strategies.graph.match import Axis, Conv, extent
from strategies.graph.rebuild import gated, rebuild
from strategies.graph.spread import lanes, split_consumer, threads
from strategies.graph.tensor_matmul import GROUP, VECTOR, Operand, Tiling, tensor_core, tensor_matmul

LEAST_LANES = 16
"""Neighbouring positions that the lanes of X's kernel have at least, where there are as many."""


def implicit(conv: Conv, by: Tiling, ranges: Ranges) -> Lowered | None:
    """What replaces `conv.reduce`, or None where the device has no tensor cores for it or the convolution's
    positions are not known one by one."""
    core = tensor_core(conv.device, conv.dtype)
    if core is None or by.fault() is not None or not all(map(_is_placed, conv.axes)):
        return None
    steps = math.prod(axis.taps for axis in conv.axes) * -(-_count(conv.channels) // by.depth)
    if steps % by.parts:
        return None
    value = _product(conv, by, core, steps // by.parts, ranges)
    value = value.cast(conv.reduce.dtype)
    split = split_consumer(conv, conv.axes[-1:], VECTOR, ranges)
    if (options := conv.options.get("output")) is not None:
        value = request_options(value, "output", options, by_hand=split is not None)
    elif split is not None:
        value = hand_made(value)
    return Lowered(value=value, split=split or {})


def _product(conv: Conv, by: Tiling, core: TensorCore, steps: int, ranges: Ranges) -> UOp:
    """The sum at the consumer's own indexes."""
    groups, couts, columns = (_count(loops) for loops in (conv.groups, conv.couts, (*conv.batch, *_outs(conv))))
    m, n = (-(-size // block) * block for size, block in ((couts, by.rows), (columns, by.columns)))
    sixteens = -(-_count(conv.channels) // by.depth) * by.groups
    taps = [axis.taps for axis in conv.axes]
    places = _places(conv)

    def group_of_weight(item: UOp, step: UOp, index: UOp, row: UOp) -> UOp:
        channel = step // math.prod(taps) * by.groups + index
        return ((item * sixteens + channel) * math.prod(taps) + step % math.prod(taps)) * m + row

    def group_of_window(item: UOp, step: UOp, index: UOp, column: UOp) -> UOp:
        channel = step // math.prod(taps) * by.groups + index
        # what only pads a block repeats the last window
        window = unflatten(column.minimum(columns - 1) if columns % by.columns else column, _sizes(conv))
        images, outs = window[: len(conv.batch)], window[len(conv.batch) :]
        tap = unflatten(step % math.prod(taps), taps)
        first = flatten([*images, *(out * a.stride for out, a in zip(outs, conv.axes, strict=True))], places)
        beyond = flatten([t * a.dilation for t, a in zip(tap, conv.axes, strict=True)], places[len(images) :])
        return (item * sixteens + channel) * math.prod(places) + first + beyond

    weight, windows = _weight(conv, sixteens, m, ranges), _activation(conv, sixteens, ranges)
    out = conv.dtype if by.parts == 1 else dtypes.float32
    kernel = tensor_matmul(
        groups, m, n, steps,
        Operand(size=groups * sixteens * math.prod(taps) * m * GROUP, group=group_of_weight),
        Operand(size=groups * sixteens * math.prod(places) * GROUP, group=group_of_window),
        by, core=core, device=conv.device, out=out, name=f"tensor_{groups}_{m}_{n}_{steps * by.depth}",
    )  # fmt: skip
    held = computed(
        kernel, [weight.buffer, windows.buffer], [by.parts, groups, m, n], dtype=out, device=conv.device,
        slot=ranges.new_buffer(),
    )  # fmt: skip
    row, column = flatten(conv.couts, _extents(conv.couts)), flatten([*conv.batch, *_outs(conv)], _sizes(conv))
    item = flatten(conv.groups, _extents(conv.groups))
    parts = [held.read([UOp.const(part), item, row, column]) for part in range(by.parts)]
    return UOp.usum(*(part.cast(dtypes.float32) for part in parts))


def _activation(conv: Conv, sixteens: int, ranges: Ranges) -> Held:
    """X. Four lanes have the 16 channels of a position, the next four the next position's."""
    groups, outer = [ranges.new(extent(r)) for r in conv.groups], ranges.new(sixteens)
    sizes = _places(conv)
    low, *places = threads([GROUP // VECTOR, *reversed(sizes)], ranges)
    places.reverse()
    inner = low * VECTOR + ranges.new(VECTOR, AxisType.UPCAST)
    where, gates = _channels(conv, outer * GROUP + inner)
    where |= dict(zip(conv.groups, groups, strict=True)) | dict(zip(conv.batch, places, strict=False))
    for axis, position in zip(conv.axes, places[len(conv.batch) :], strict=True):
        where |= _placed(axis, position.minimum(_positions(axis) - 1))  # what only pads repeats the last one
    body = gated(rebuild(conv.activation, where), gates).cast(conv.dtype)
    shape = [*_extents(conv.groups), sixteens, *sizes, GROUP]
    return _filled(conv, body, [*groups, outer, *places, inner], shape, ranges)


def _weight(conv: Conv, sixteens: int, m: int, ranges: Ranges) -> Held:
    """W. Sixteen lanes have the 16 channels of a cout; what only pads a block repeats the last cout."""
    groups, outer = [ranges.new(extent(r)) for r in conv.groups], ranges.new(sixteens)
    inner, row = threads([GROUP, m], ranges)
    taps = [ranges.new(axis.taps, AxisType.UPCAST) for axis in conv.axes]
    where, gates = _channels(conv, outer * GROUP + inner)
    couts = _count(conv.couts)
    cout = unflatten(row.minimum(couts - 1) if m > couts else row, _extents(conv.couts))
    where |= dict(zip(conv.groups, groups, strict=True)) | dict(zip(conv.couts, cout, strict=True))
    where |= {axis.tap: tap for axis, tap in zip(conv.axes, taps, strict=True) if axis.sums}
    body = gated(rebuild(conv.weight, where), gates).cast(conv.dtype)
    shape = [*_extents(conv.groups), sixteens, *(axis.taps for axis in conv.axes), m, GROUP]
    return _filled(conv, body, [*groups, outer, *taps, row, inner], shape, ranges)


def _filled(conv: Conv, body: UOp, axes: Sequence[UOp], sizes: Sequence[int], ranges: Ranges) -> Held:
    return stored(hand_made(body), axes, sizes, device=conv.device, slot=ranges.new_buffer())


def _channels(conv: Conv, channel: UOp) -> tuple[dict[UOp, UOp], list[UOp]]:
    """The ranges of the channels at this one, and the gate beyond which there are none."""
    count = _count(conv.channels)
    where = dict(zip(conv.channels, unflatten(channel, _extents(conv.channels)), strict=True))
    return where, [channel < count] if int(channel.vmax) >= count else []


def _is_placed(axis: Axis) -> bool:
    """Whether every position along the axis has an output and a tap that read it, or stands for itself."""
    return axis.stride == 1 or (axis.dilation == 1 and axis.stride <= axis.taps)


def _positions(axis: Axis) -> int:
    """How many positions the axis's windows reach over."""
    return (axis.size - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1


def _places(conv: Conv) -> list[int]:
    """The extents of X's batch and positions. Along the last axis there are as many positions as lanes share well."""
    sizes = [*map(extent, conv.batch), *map(_positions, conv.axes)]
    sizes[-1] = next(size for size in itertools.count(sizes[-1]) if lanes(size) >= min(size, LEAST_LANES))
    return sizes


def _placed(axis: Axis, position: UOp) -> dict[UOp, UOp]:
    """The axis's ranges such that the activation is read at this position."""
    if not axis.sums:
        return {axis.out: position}
    if axis.stride == 1:
        return dict.fromkeys(axis.sums, position)
    out = (position // axis.stride).minimum(axis.size - 1)
    return {axis.out: out, axis.tap: position - out * axis.stride}


def _outs(conv: Conv) -> list[UOp]:
    return [axis.out for axis in conv.axes]


def _sizes(conv: Conv) -> list[int]:
    return [*map(extent, conv.batch), *(axis.size for axis in conv.axes)]


def _extents(loops: Sequence[UOp]) -> list[int]:
    return [extent(r) for r in loops]


def _count(loops: Sequence[UOp]) -> int:
    return math.prod(map(extent, loops))
