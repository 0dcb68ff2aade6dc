"""A candidate applied to a matched convolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strategies.candidate import Candidate
from strategies.graph.buffers import staged
from strategies.graph.fitting import request_options
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv, match
from strategies.graph.ranges import Ranges, extent
from strategies.graph.rebuild import rebuild
from strategies.graph.winowrite import PHASES
from strategies.registry import Strategy, get_strategy

LAST = frozenset({"convolution", "output"})
"""Roles of kernels that whatever consumes the convolution is computed in."""


class NotApplicableError(Exception):
    """The strategy does not apply to this convolution."""


def lower(conv: Conv, candidate: Candidate, ranges: Ranges, *, until: str = "") -> Lowered | None:
    """What replaces the convolution's REDUCE; None if the candidate is tinygrad's own lowering as it is.

    `until` stops a Winograd lowering on its way: see winowrite.PHASES.

    Its kernels get the candidate's options once they are known: see `fitting`.

    Raises NotApplicableError where it does not apply or cannot be stopped there, UnknownStrategyError or ParameterError
    for a candidate of another release, ValueError for a place to stop that nobody knows.
    """
    if until and until not in PHASES:
        raise ValueError(f"expected one of {', '.join(PHASES)}, found {until!r}")
    strategy = get_strategy(candidate.strategy)
    params = strategy.bound(candidate)
    conv = replace(conv, options=dict(candidate.kernel_options), until=until)
    if strategy.lower is None and "convolution" not in conv.options:
        return None
    apart = conv.shared and not LAST.isdisjoint(conv.options)
    new = _lowered_alone(conv, strategy, params, ranges) if apart else _lowered(conv, strategy, params, ranges)
    if new is None:
        raise NotApplicableError(f"{candidate} does not apply to this convolution")
    if until in PHASES[:-1] and new.until != until:
        raise NotApplicableError(f"{candidate} is made as one: it cannot be stopped after {until}")
    return new


def _lowered(conv: Conv, strategy: Strategy, params: Any, ranges: Ranges) -> Lowered | None:
    if strategy.lower is not None:
        return strategy.lower(conv, params, ranges)
    return Lowered(value=request_options(conv.reduce, "convolution", conv.options["convolution"]))


def _lowered_alone(conv: Conv, strategy: Strategy, params: Any, ranges: Ranges) -> Lowered | None:
    """The lowering in loops and a buffer of its own.

    Options were found for a kernel that computes nothing but this convolution. One that two of them share, such as a
    residual block's last with its projection, has other loops, and could have the options of one of them at most.
    """
    own = [ranges.new(extent(r)) for r in conv.loops]
    alone = match(rebuild(conv.reduce, dict(zip(conv.loops, own, strict=True))))
    if alone is None:
        return None
    new = _lowered(replace(alone, options=conv.options, until=conv.until), strategy, params, ranges)
    if new is None:
        return None
    return Lowered(value=staged(new.value, own, device=conv.device).read(conv.loops), until=new.until)
