"""A kernel's loops spread over threads by hand, in place of tinygrad's heuristics.

On a GPU neighbouring threads take neighbours along the innermost axis, so that they read and write next to each other.
tinygrad's heuristics put couts, which lie far apart in memory, on the threads of a kernel that transforms tiles back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinygrad.uop.ops import AxisType, Ops, UOp

from strategies.graph.buffers import hand_made
from strategies.graph.device import opened
from strategies.graph.fitting import request_options
from strategies.graph.match import Axis, Conv
from strategies.graph.ranges import Ranges, extent

ROW = 64
"""Threads along one axis, at most: two warps."""
WORKGROUP = 256
"""Threads of a workgroup, at most: enough to hide memory's latency, few enough for their registers."""
MOST_BLOCKS = 65535
"""Along a grid's second and third axis: CUDA's limit, which nothing looks at before the launch."""


def in_kernel(conv: Conv, role: str, value: UOp, *, by_hand: bool = False) -> UOp:
    """`value` with what its kernel is to have: the candidate's options, nothing, or what tinygrad chooses."""
    options = conv.options.get(role)
    if options is not None:
        return request_options(value, role, options, by_hand=by_hand)
    return hand_made(value) if by_hand else value


def threads(sizes: Sequence[int], ranges: Ranges) -> list[UOp]:
    """An index along each axis, innermost first, of `sizes` elements, that threads and then workgroups divide."""
    counts: list[int] = []
    for size in sizes:
        counts.append(divisor(size, min(ROW, WORKGROUP // math.prod(counts))))
    # tinygrad would split one of LOCAL, and order the parts itself
    thread = ranges.new(math.prod(counts), AxisType.WARP)
    result = []
    for size, count in zip(sizes, counts, strict=True):
        result.append(ranges.new(size // count) * count + thread % count)
        thread = thread // count
    return result


def threads_along(size: int) -> int:
    """How many threads of a workgroup share an axis of this size, by `threads`, if no other does."""
    return divisor(size, ROW)


def split_consumer(conv: Conv, axes: Sequence[Axis], m: int, ranges: Ranges) -> dict[UOp, UOp] | None:
    """The ranges of the kernel that consumes the convolution, as indexes of threads and, along `axes`, of up to `m`
    elements that one thread computes.

    None where that kernel has them otherwise than as plain loops of its own: it sums over some, or they are split.
    """
    loops = [axis.out for axis in reversed(conv.axes)] + list(reversed(conv.couts))
    if not all(r.op is Ops.RANGE and r.arg[-1] is AxisType.WEAK and r in conv.private for r in loops):
        return None
    tiled = {axis.out for axis in axes}
    own = [divisor(extent(r), m) if r in tiled else 1 for r in loops]
    outer = threads([extent(r) // count for r, count in zip(loops, own, strict=True)], ranges)
    return {
        r: index * count + ranges.new(count, AxisType.UPCAST) for r, index, count in zip(loops, outer, own, strict=True)
    }


def share(sizes: Sequence[int], device: str) -> tuple[int, int]:
    """Which of these loops, the outermost first, the threads of a CPU divide among them, and among how many.

    The most threads that divide a loop evenly: the slowest ends the kernel.
    """
    renderer = opened(device).renderer
    most = renderer.global_max[0] if renderer.has_threads and renderer.global_max is not None else 1
    shares = [divisor(size, max(1, most)) for size in sizes]
    return shares.index(max(shares)), max(shares)


def divisor(size: int, limit: int) -> int:
    """The largest divisor of `size` that is at most `limit`."""
    return next(d for d in range(min(size, limit), 0, -1) if size % d == 0)
