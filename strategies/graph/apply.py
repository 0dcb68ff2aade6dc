"""A candidate applied to a matched convolution."""

from __future__ import annotations

from dataclasses import replace

from tinygrad.uop.ops import UOp

from strategies.candidate import Candidate, KernelOptions
from strategies.graph.buffers import staged
from strategies.graph.fitting import wanting
from strategies.graph.kron import Ranges
from strategies.graph.match import Conv, extent
from strategies.graph.rebuild import rebuild
from strategies.registry import get_strategy


class NotApplicableError(Exception):
    """The strategy does not apply to this convolution."""


def lower(conv: Conv, candidate: Candidate, ranges: Ranges, *, until: str = "") -> UOp | None:
    """The UOp that replaces the convolution's REDUCE; None if the candidate is tinygrad's own lowering as it is.

    `until` stops a Winograd lowering on its way: see winowrite.PHASES.

    Its kernels get the candidate's options once they are known: see `fitting`.

    Raises NotApplicableError where it does not apply, UnknownStrategyError or ParameterError for a candidate of another
    release.
    """
    strategy = get_strategy(candidate.strategy)
    params = strategy.bound(candidate)
    options = dict(candidate.kernel_options)
    if strategy.lower is None:
        wanted = options.get("convolution")
        return _in_its_kernel(conv, wanted, ranges) if wanted is not None else None
    new = strategy.lower(replace(conv, options=options, until=until), params, ranges)
    if new is None:
        raise NotApplicableError(f"{candidate} does not apply to this convolution")
    return new


def _in_its_kernel(conv: Conv, options: KernelOptions, ranges: Ranges) -> UOp:
    """tinygrad's own lowering with options, which were found for a kernel that computes nothing but this convolution.

    A kernel that two of them share, such as a residual block's last with its projection, would have neither's; so this
    one gets a buffer of its own.
    """
    if not conv.shared:
        return wanting(conv.reduce, "convolution", options)
    loops = [*conv.batch, *conv.groups, *conv.couts, *(axis.out for axis in conv.axes)]
    loops.sort(key=lambda r: r.arg)
    own = [ranges.new(extent(r)) for r in loops]
    body = rebuild(conv.reduce, dict(zip(loops, own, strict=True)))
    return staged(wanting(body, "convolution", options), own, device=conv.device).read(loops)
