"""What a lowering makes of a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tinygrad.uop.ops import UOp


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """`value` replaces the convolution's REDUCE.

    `split` has the ranges of the kernel around it that become several, each with its index in terms of those. Only
    ranges in `Conv.private` may: no other kernel loops over them.
    """

    value: UOp
    split: Mapping[UOp, UOp] = field(default_factory=dict)
