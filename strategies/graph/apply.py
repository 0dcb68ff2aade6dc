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
    """The UOp that replaces the convolution's REDUCE; None where the strategy leaves it as it is.

    Raises UnknownStrategyError or ParameterError for a candidate of another release.
    """
    strategy = get_strategy(candidate.strategy)
    params = strategy.bound(candidate)
    return None if strategy.lower is None else strategy.lower(conv, params, ranges)
