"""Winograd on a GPU, its product's operands in the memory that a workgroup's threads share: the kernel of `matmul`.

The transforms are those of `winowrite`. The product has its operands in buffers as it needs them, over blocks of its
rows (couts) and columns (tiles), and the kernels around it are spread over threads by hand, neighbours at neighbouring
tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinygrad.dtype import dtypes
from tinygrad.uop.ops import AxisType, UOp

from strategies.graph.buffers import computed, stored
from strategies.graph.device import has_shared_memory
from strategies.graph.frame import Coords, Frame, frame
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.matmul import Blocking, matmul
from strategies.graph.ranges import Ranges, as_uop, extents
from strategies.graph.spread import MOST_BLOCKS, in_kernel, split_consumer, threads
from strategies.graph.winowrite import (
    GHAT,
    XHAT,
    Intermediate,
    Stage,
    ghat_of,
    hold,
    tiles_of,
    untiled_inline,
    untiled_read,
    xhat_of,
)  # fmt: skip

FILTERS = Stage(layout="AGCOo", loops="GCOoA", upcast="A", local="o", by_hand=True)
WINDOWS = Stage(layout="AGCTt", loops="GCTtA", upcast="A", local="t", by_hand=True)


def lower_shared_memory(conv: Conv, by: Blocking, ranges: Ranges, *, tile: int, inline: bool) -> Lowered | None:
    """What replaces `conv.reduce`: F(tile, 3), the last transform `inline`, in the consumer's kernel, where that
    computes nothing else. None where threads share no memory, no axis has three taps or the blocks do not fit."""
    if not has_shared_memory(conv.device) or by.fault() is not None:
        return None
    if conv.dtype not in (dtypes.float32, dtypes.float16, dtypes.bfloat16):
        return None
    space = frame(conv, ranges, m=tile, cout_block=by.rows, tile_block=by.columns)
    if space is None or not _fits(space, by):
        return None
    mhat = _mhat(space, by)
    if inline and not conv.shared:  # whatever else that kernel computes, threads for our tiles are not for it
        value = untiled_inline(space, ranges, mhat)
    else:
        value = _tiled(space, mhat)
    value = value.cast(conv.reduce.dtype)
    split = split_consumer(conv, space.axes, space.m, ranges)
    if split is None:
        return Lowered(value=in_kernel(conv, "output", value))
    return Lowered(value=in_kernel(conv, "output", value, by_hand=True), split=split)


def _fits(space: Frame, by: Blocking) -> bool:
    """Whether channels divide into the blocks' depth, and there are no more blocks than a grid has room for."""
    points, groups, channels, couts = (math.prod(space.sizes[letter]) for letter in ("A", "G", "C", "O"))
    fills = channels % (by.depth * by.parts) == 0
    return fills and max(points * groups * by.parts, couts * space.cout_block // by.rows) <= MOST_BLOCKS


def _mhat(space: Frame, by: Blocking) -> Intermediate:
    """sum over channels of XHAT * GHAT, one matrix product for each point and group, in a kernel of our own."""
    ranges = space.ranges
    sizes = [size for letter in "AGOoTt" for size in space.sizes[letter]]
    batch, m, n, k = (
        math.prod(size for letter in letters for size in space.sizes[letter]) for letters in ("AG", "Oo", "Tt", "C")
    )
    operands = [
        hold(space, FILTERS, "GHAT", GHAT, lambda at: ghat_of(space, ranges, "", at)),
        hold(space, WINDOWS, "XHAT", XHAT, lambda at: xhat_of(space, ranges, "", at)),
    ]
    held = computed(
        matmul(batch, m, n, k, by), [operand.buffer for operand in operands], [by.parts, *sizes],
        dtype=dtypes.float32, device=space.conv.device, slot=ranges.new_buffer(),
    )  # fmt: skip

    def read(at: Coords) -> UOp:
        indexes = [as_uop(index) for letter in "AGOoTt" for index in at[letter]]
        return UOp.usum(*(held.read([UOp.const(part), *indexes]) for part in range(by.parts)))

    return read


def _tiled(space: Frame, mhat: Intermediate) -> UOp:
    """Whole tiles in a buffer of their own, each computed by one thread."""
    conv, ranges = space.conv, space.ranges

    def spread(tiles: Sequence[int]) -> Sequence[UOp]:
        return threads(tiles[::-1], ranges)[::-1]

    body, axes = tiles_of(space, ranges, mhat, AxisType.UPCAST, spread)
    body = in_kernel(conv, "tiles", body, by_hand=True)
    outer = extents((*conv.groups, *conv.batch, *conv.couts))
    sizes = [*outer, *(size for count in space.tiles for size in (count, space.m))]
    return untiled_read(space, stored(body, axes, sizes, device=conv.device, slot=ranges.new_buffer()))
