"""A candidate applied to a matched convolution."""

from __future__ import annotations

from tinygrad.uop.ops import UOp

from strategies.candidate import Candidate
from strategies.graph.kron import Ranges
from strategies.graph.match import Conv
from strategies.registry import get_strategy


class NotApplicableError(Exception):
    """The strategy does not apply to this convolution."""


def lower(conv: Conv, candidate: Candidate, ranges: Ranges) -> UOp | None:
    """The UOp that replaces the convolution's REDUCE; None if the candidate is tinygrad's own lowering.

    Raises NotApplicableError where it does not apply, UnknownStrategyError or ParameterError for a candidate of another
    release.
    """
    if candidate.kernel_options:
        raise NotApplicableError("it has options for kernels, which this release does not apply: install a newer one")
    strategy = get_strategy(candidate.strategy)
    params = strategy.bound(candidate)
    if strategy.lower is None:
        return None
    new = strategy.lower(conv, params, ranges)
    if new is None:
        raise NotApplicableError(f"{candidate} does not apply to this convolution")
    return new
