"""Presets of a strategy whose blocks are more than can be timed: the best of each kind by an estimate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from strategies.candidate import Value
from strategies.key import ConvKey
from strategies.parameter import parameters_of

P = TypeVar("P", bound=Hashable)
"""A frozen dataclass of parameters."""


def elsewhere_than_on_a_cpu(key: ConvKey | None) -> Sequence[Mapping[str, Value]]:
    """The defaults, and nothing on a CPU: there `blocked` keeps in registers and caches what these move through memory,
    and a search has better to do than to see each of them lose. It may still come to them."""
    return () if key is not None and key.device.device == "CPU" else ({},)


def every(params: type[P], **given: Value) -> Iterator[P]:
    """One of each combination of choices, the last parameter's changing fastest; those `given` are as they are."""
    open_ = [parameter for parameter in parameters_of(params) if parameter.name not in given]
    for values in itertools.product(*(parameter.choices for parameter in open_)):
        chosen: dict[str, Any] = dict(zip((parameter.name for parameter in open_), values, strict=True))
        yield params(**chosen, **given)


def best_of_each(
    several: Iterable[P], kind: Callable[[P], Hashable], estimate_us: Callable[[P], float], most: int
) -> tuple[Mapping[str, Value], ...]:
    """The values of at most `most`, the shortest estimate first; of each `kind` the one with the shortest, of equals
    the first. Without kinds the best would be much alike, and a search would begin in one corner."""
    best: dict[Hashable, tuple[float, P]] = {}
    for params in several:
        found, of = (estimate_us(params), params), kind(params)
        best[of] = min(best.get(of, found), found, key=lambda item: item[0])
    ranked = sorted(best.values(), key=lambda item: item[0])[:most]
    return tuple({p.name: getattr(params, p.name) for p in parameters_of(type(params))} for _, params in ranked)
