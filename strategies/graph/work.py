"""How much a kernel computes, from its graph alone: for a look at whether it could win, before it is compiled."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tinygrad.dtype import dtypes
from tinygrad.uop.ops import GroupOp, Ops, UOp


def arithmetic(kernels: Iterable[UOp]) -> int:
    """Floating-point operations, a multiplication that is added to a sum counting as two.

    As often as the loops around it run, so as if everything were computed in the outermost loop that it can be. What
    is multiplied by a constant table is counted whole, zeros included: a transform is overestimated a few times.
    """
    return sum(_arithmetic(kernel) for kernel in kernels)


def _arithmetic(kernel: UOp) -> int:
    total = 0
    for node in kernel.toposort():
        if node.op is Ops.REDUCE:
            total += _runs(node.src[0]) if dtypes.is_float(node.dtype) else 0
        elif node.op in GroupOp.ALU and dtypes.is_float(node.dtype):
            total += _runs(node)
    return total


def _runs(node: UOp) -> int:
    return math.prod(int(r.vmax) + 1 for r in node.ranges)
