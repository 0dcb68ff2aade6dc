"""A convolution as one product of matrices on tensor cores, its windows gathered by the product itself.

    X[g, c, b, p, e] = the activation, zeros around it included, channels together in groups of 16, of 8 in TF32
    W[g, c, k, o, e] = the weight, likewise
    Y[g, o, (b, y)]  = sum over (c, k, e) of W[g, c, k, o, e] * X[g, c, b, y * stride + k * dilation, e]

Nothing is repeated in memory for the sake of the product, as im2col does: a tap is an offset that all windows share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinygrad.codegen.opt.tc import TensorCore
from tinygrad.helpers import round_up
from tinygrad.uop.ops import AxisType, UOp

from strategies.graph.buffers import Held, stored
from strategies.graph.gemm import Gemm, Store
from strategies.graph.lowered import Lowered
from strategies.graph.match import Axis, Conv
from strategies.graph.ranges import Ranges, bind, count, extent, extents, flatten, unflatten
from strategies.graph.rebuild import defined, gated, rebuild
from strategies.graph.spread import MOST_BLOCKS, in_kernel, threads, threads_along
from strategies.graph.tensor_matmul import Operand, Tiling, arranged, as_multiplied, tensor_core, tensor_matmul

LEAST_LANES = 16
"""Neighbouring positions that the lanes of X's kernel have at least, where there are as many."""


def lower_tensor_cores(conv: Conv, by: Tiling, ranges: Ranges) -> Lowered | None:
    """What replaces `conv.reduce`, or None where the device has no tensor cores for it or the convolution's
    positions are not known one by one.

    Where the sum is whole and its kernel does nothing but what is elementwise of it, the product does that too.
    """
    core = tensor_core(conv.device, conv.dtype, by.group)
    if core is None or by.fault() is not None or not all(_is_placed(conv, axis) for axis in conv.axes):
        return None
    product = _Product(conv=conv, by=by, core=core, ranges=ranges)
    if product.steps % by.parts or product.columns // by.columns > MOST_BLOCKS:
        return None
    return Gemm(
        conv=conv, parts=by.parts, rows=product.rows, columns=product.columns, operands=product.operands,
        kernel=product.kernel, ranges=ranges,
    ).lowered()  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """The product that a convolution is: its rows are couts, its columns windows, its depth channels and taps."""

    conv: Conv
    by: Tiling
    core: TensorCore
    ranges: Ranges

    @property
    def steps(self) -> int:
        """Of all parts: groups of channels, and within them taps."""
        return self.taps * self.together // self.by.groups

    @property
    def taps(self) -> int:
        return math.prod(axis.taps for axis in self.conv.axes)

    @property
    def together(self) -> int:
        """Groups of channels, filled up to whole steps."""
        return -(-count(self.conv.channels) // self.by.depth) * self.by.groups

    @property
    def rows(self) -> int:
        return round_up(count(self.conv.couts), self.by.rows)

    @property
    def columns(self) -> int:
        return round_up(count(self.conv.outputs), self.by.columns)

    def operands(self) -> tuple[UOp, UOp]:
        weight = _weight(self.conv, self.by, self.together, self.rows, self.ranges)
        return weight.buffer, _activation(self.conv, self.by, self.together, self.ranges).buffer

    def kernel(self, store: Store) -> UOp:
        groups, steps = count(self.conv.groups), self.steps // self.by.parts
        channels = groups * self.together * self.by.group
        return tensor_matmul(
            groups, self.rows, self.columns, steps,
            Operand(size=channels * self.taps * self.rows, group=self._group_of_weight),
            Operand(size=channels * math.prod(_places(self.conv)), group=self._group_of_window),
            self.by, store, core=self.core, device=self.conv.device,
            name=f"tensor_{groups}_{self.rows}_{self.columns}_{steps * self.by.depth}",
        )  # fmt: skip

    def _group_of_weight(self, item: UOp, step: UOp, index: UOp, row: UOp) -> UOp:
        channel = step // self.taps * self.by.groups + index
        return ((item * self.together + channel) * self.taps + step % self.taps) * self.rows + row

    def _group_of_window(self, item: UOp, step: UOp, index: UOp, column: UOp) -> UOp:
        conv, places = self.conv, _places(self.conv)
        channel = step // self.taps * self.by.groups + index
        windows = count(conv.outputs)
        # what only pads a block repeats the last window
        window = unflatten(column.minimum(windows - 1) if self.columns > windows else column, extents(conv.outputs))
        images, outs = window[: len(conv.batch)], window[len(conv.batch) :]
        tap = unflatten(step % self.taps, [axis.taps for axis in conv.axes])
        first = flatten([*images, *(out * _stride(a) for out, a in zip(outs, conv.axes, strict=True))], places)
        beyond = flatten([t * a.dilation for t, a in zip(tap, conv.axes, strict=True)], places[len(images) :])
        return (item * self.together + channel) * math.prod(places) + first + beyond


def _activation(conv: Conv, by: Tiling, together: int, ranges: Ranges) -> Held:
    """X. Four lanes have a group of channels of one position or of two, the next four that of the next."""
    groups, outer = [ranges.new(extent(r)) for r in conv.groups], ranges.new(together)
    sizes = _places(conv)
    own = 2 if sizes[-1] % 2 == 0 else 1
    low, *places = threads([by.group // by.vector, sizes[-1] // own, *reversed(sizes[:-1])], ranges)
    places.reverse()
    places[-1] = places[-1] * own + ranges.new(own, AxisType.UPCAST)
    inner = low * by.vector + ranges.new(by.vector, AxisType.UPCAST)
    where, gates = _channels(conv, outer * by.group + inner)
    where |= dict(zip(conv.groups, groups, strict=True)) | dict(zip(conv.batch, places, strict=False))
    for axis, position in zip(conv.axes, places[len(conv.batch) :], strict=True):
        where |= _placed(axis, position.minimum(_positions(axis) - 1))  # what only pads repeats the last one
    body = as_multiplied(gated(rebuild(defined(conv.activation), where), gates), conv.dtype)
    shape = [*extents(conv.groups), together, *sizes, by.group]
    return _held(conv, "XHAT", body, [*groups, outer, *places, inner], shape, ranges)


def _weight(conv: Conv, by: Tiling, together: int, m: int, ranges: Ranges) -> Held:
    """W. As many lanes as a group has channels have those of a cout; what only pads a block repeats the last cout."""
    groups, outer = [ranges.new(extent(r)) for r in conv.groups], ranges.new(together)
    inner, line = threads([by.group, m], ranges)
    taps = [ranges.new(axis.taps, AxisType.UPCAST) for axis in conv.axes]
    row, number = arranged(line, inner, by.item_bytes)
    where, gates = _channels(conv, outer * by.group + number)
    couts = count(conv.couts)
    cout = unflatten(row.minimum(couts - 1) if m > couts else row, extents(conv.couts))
    where |= dict(zip(conv.groups, groups, strict=True)) | dict(zip(conv.couts, cout, strict=True))
    where |= {axis.tap: tap for axis, tap in zip(conv.axes, taps, strict=True) if axis.sums}
    body = as_multiplied(gated(rebuild(defined(conv.weight), where), gates), conv.dtype)
    shape = [*extents(conv.groups), together, *(axis.taps for axis in conv.axes), m, by.group]
    return _held(conv, "GHAT", body, [*groups, outer, *taps, line, inner], shape, ranges)


def _held(conv: Conv, role: str, body: UOp, axes: Sequence[UOp], sizes: Sequence[int], ranges: Ranges) -> Held:
    body = in_kernel(conv, role, body, by_hand=True)
    return stored(body, axes, sizes, device=conv.device, slot=ranges.new_buffer())


def _channels(conv: Conv, channel: UOp) -> tuple[dict[UOp, UOp], list[UOp]]:
    """The ranges of the channels at this one, and the gate beyond which there are none."""
    channels = count(conv.channels)
    return bind(conv.channels, channel), [channel < channels] if int(channel.vmax) >= channels else []


def _is_placed(conv: Conv, axis: Axis) -> bool:
    """Whether what is read at a position along the axis is the same whichever output reads it, and each position has an
    output and a tap that read it, or stands for itself.

    It is not the same where the gate of a consumer that pads the output is in the activation.
    """
    if not axis.sums:
        return True
    elsewhere = rebuild(conv.activation, dict.fromkeys(axis.sums, UOp.const(0))).ranges
    reached = axis.stride == 1 or (axis.dilation == 1 and axis.stride <= axis.taps)
    return reached and axis.out not in elsewhere


def _stride(axis: Axis) -> int:
    """Positions from one output's window to the next. Without taps there are no positions between outputs."""
    return axis.stride if axis.sums else 1


def _positions(axis: Axis) -> int:
    """How many positions the axis's windows reach over."""
    return (axis.size - 1) * _stride(axis) + (axis.taps - 1) * axis.dilation + 1


def _places(conv: Conv) -> list[int]:
    """The extents of X's batch and positions. Along the last axis there are as many positions as lanes share well."""
    sizes = [*map(extent, conv.batch), *map(_positions, conv.axes)]
    sizes[-1] = next(size for size in itertools.count(sizes[-1]) if threads_along(size) >= min(size, LEAST_LANES))
    return sizes


def _placed(axis: Axis, position: UOp) -> dict[UOp, UOp]:
    """The axis's ranges such that the activation is read at this position."""
    if not axis.sums:
        return {axis.out: position}
    if axis.stride == 1:
        return dict.fromkeys(axis.sums, position)
    out = (position // axis.stride).minimum(axis.size - 1)
    return {axis.out: out, axis.tap: position - out * axis.stride}
