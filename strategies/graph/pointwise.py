"""1x1 convolutions, which have no taps: what tells them from other products of matrices is where positions lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tinygrad.uop.ops import Ops, UOp

from strategies.graph.rebuild import expression


def positions(activation: UOp, weight: UOp, summed: tuple[UOp, ...]) -> tuple[UOp, ...]:
    """The ranges of an image that a 1x1 convolution runs over, in order; none if this is another product.

        y[n, o, h, w] = sum over c of x[n, c, h, w] * weight[o, c]

    Of two matrices the right one looks the same with one range in place of h and w, and so do attention's values:
    only two ranges or more that index the activation alone, and lie within its channels in memory, make an image.
    """
    in_activation, in_weight = activation.ranges, weight.ranges
    if not summed or not all(c in in_activation and c in in_weight for c in summed):
        return ()
    loops = [r for r in in_activation if r not in summed and r not in in_weight]
    if len(loops) < 2:
        return ()
    loads = [u for u in expression(activation) if u.op is Ops.INDEX and all(c in u.ranges for c in summed)]
    if not loads:
        return ()
    found = [r for r in loops if all(_within(load, r, summed) for load in loads if r in load.ranges)]
    found = [r for r in found if any(r in load.ranges for load in loads)]
    return tuple(sorted(found, key=lambda r: r.arg)) if len(found) > 1 else ()


def strides_in(activation: UOp, outs: Sequence[UOp], summed: Sequence[UOp]) -> dict[UOp, int]:
    """The stride along each of the `positions`. Memory tells products: of an image w wide that is read at every second
    pixel of every second row, the steps are 2 and 2*w.

    Where w is not known the stride is the same along both axes, or, if rows were too short for that, as large as they
    allow. 1 where loads disagree.
    """
    loads = [u for u in expression(activation) if u.op is Ops.INDEX and all(r in u.ranges for r in (*outs, *summed))]
    found = [_strides({out: _step(load, out) or 1 for out in outs}) for load in loads]
    return found[0] if found and all(each == found[0] for each in found) else dict.fromkeys(outs, 1)


def _strides(steps: Mapping[UOp, int]) -> dict[UOp, int]:
    """`steps` in elements. From the innermost axis outwards: what is inside of an axis is at least `inside` long."""
    strides: dict[UOp, int] = {}
    stride, inside = 0, 1
    for out, step in sorted(steps.items(), key=lambda item: item[1]):
        possible = [s for s in range(1, step // inside + 1) if step % s == 0]
        stride = stride if stride in possible else max(possible, default=1)
        strides[out] = stride
        inside = step // stride * (int(out.vmax) * stride + 1)
    return strides


def _within(load: UOp, r: UOp, channels: tuple[UOp, ...]) -> bool:
    """Whether steps of `r` are shorter, in memory, than steps of every channel."""
    step, others = _step(load, r), [_step(load, c) for c in channels]
    return step is not None and step > 0 and all(other is not None and step < other for other in others)


def _step(load: UOp, r: UOp) -> int | None:
    """Elements from where `r` is 0 to where it is 1, all other ranges at 0; None if that is not known."""
    first = dict.fromkeys(load.ranges, UOp.const(0))
    strides = strides_of(load.src[0]) if len(load.src) > 2 else (1,)
    if strides is None:
        return None
    step = 0
    for index, stride in zip(load.src[1:], strides, strict=True):
        before, after = (index.get_idx().substitute({**first, r: UOp.const(at)}).simplify() for at in (0, 1))
        if not (before.op is after.op is Ops.CONST and isinstance(before.val, int) and isinstance(after.val, int)):
            return None
        step += (after.val - before.val) * stride
    return step


def strides_of(buffer: UOp) -> tuple[int, ...] | None:
    """Of a buffer's axes in elements, the last one 1; None for a symbolic shape."""
    sizes = [size for size in buffer.shape if isinstance(size, int)]
    if len(sizes) != len(buffer.shape):
        return None
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
