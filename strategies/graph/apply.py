"""A candidate applied to a matched convolution."""

from __future__ import annotations

from dataclasses import replace

from tinygrad.uop.ops import UOp

from strategies.candidate import Candidate
from strategies.graph.fitting import wanting
from strategies.graph.kron import Ranges
from strategies.graph.match import Conv
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
        return wanting(conv.reduce, "convolution", wanted) if wanted is not None else None
    new = strategy.lower(replace(conv, options=options, until=until), params, ranges)
    if new is None:
        raise NotApplicableError(f"{candidate} does not apply to this convolution")
    return new
