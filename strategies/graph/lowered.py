"""What a lowering makes of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tinygrad.uop.ops import UOp


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What a kernel makes of a convolution's sum: `value`, stored in `buffer` at `index`, in terms of its loops."""

    value: UOp
    buffer: UOp
    index: tuple[UOp, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """`value` replaces the convolution's REDUCE.

    `split` has the ranges of the kernel around it that become several, each with its index in terms of those. Only
    ranges in `Conv.private` may: no other kernel loops over them.

    With `whole`, which only a convolution with a `Conv.kernel` can have, nothing is replaced but that kernel, by the
    call that `whole` returns for what it makes of the sum.
    """

    value: UOp
    split: Mapping[UOp, UOp] = field(default_factory=dict)
    whole: Callable[[Tail], UOp] | None = None
    is_read: bool = False
    """Whether `value` does nothing but read what a kernel has stored."""
    until: str = ""
    """Where it stops on its way, if it does: `Conv.until`."""
