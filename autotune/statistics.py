"""What times say beyond noise: medians, intervals by bootstrap over rounds, and the rule that makes a winner.

Everything is a pure function of its arguments; random numbers come from a seed. Times are in seconds. Medians bear
with outliers (another process woke up, a page fault) as long as they are fewer than half of the rounds; what a round
has in common (heat, clock, load) cancels in the ratio of two contestants of the same round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autotune.measurement import Measurement
from autotune.winner import Interval

CONFIDENCE = 0.95
MIN_GAIN = 0.02
"""A default is given up only for more than this: what the noise of a quiet machine could make of equals."""
RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One contestant over another: `ratio` below 1 is faster. `rounds` is how many pairs it rests on.

    `enough` is false if so few rounds allow no statement at this confidence, however far apart the times are.
    """

    ratio: Interval
    rounds: int
    enough: bool

    @property
    def faster(self) -> bool:
        """Faster beyond noise."""
        return self.enough and self.ratio.high < 1.0

    @property
    def worthwhile(self) -> bool:
        """Faster beyond noise, and by more than a default is given up for."""
        return self.faster and self.ratio.median < 1.0 - MIN_GAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One candidate in a final: seconds per round, and the yardstick's in the same rounds. `default`: it is one of
    those that win unless they are beaten."""

    name: str
    times_s: tuple[float, ...]
    yardstick_times_s: tuple[float, ...]
    default: bool = False

    @classmethod
    def of(cls, name: str, measurement: Measurement, *, default: bool = False) -> Contestant:
        return cls(
            name=name, times_s=measurement.times_s, yardstick_times_s=measurement.yardstick_times_s, default=default
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`winner` and the better default, by name, and every contestant over that default."""

    winner: str
    default: str
    comparisons: dict[str, Comparison]

    @property
    def comparison(self) -> Comparison:
        """The winner over the better default."""
        return self.comparisons[self.winner]


def median(values: ArrayLike) -> float:
    """Raises ValueError if there are none, or one that is no positive finite time."""
    return float(np.median(_checked(values)))


def median_ratio(times_s: ArrayLike, over_s: ArrayLike) -> float:
    """The median of the rounds' ratios; below 1, the first is faster."""
    return float(np.median(_paired(times_s, over_s)))


def median_interval(values: ArrayLike, *, confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """The median and its bootstrap interval, in the unit of `values`.

    Where few values make the percentile bootstrap too narrow, the interval is widened to the order statistics that
    hold the median with this confidence whatever the distribution: over 7 values the bootstrap alone would miss
    the true median in 12% of cases.
    """
    x = np.sort(_checked(values))
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(x, size=(RESAMPLES, x.size)), axis=1)
    tail = (1 - confidence) / 2
    rank = _rank(x.size, tail)
    return Interval(
        median=float(np.median(x)),
        low=float(min(np.quantile(medians, tail), x[rank])),
        high=float(max(np.quantile(medians, 1 - tail), x[x.size - 1 - rank])),
    )


def paired_ratio(times_s: ArrayLike, over_s: ArrayLike, *, confidence: float = CONFIDENCE, seed: int = 0) -> Comparison:
    """Compare by the median of the rounds' ratios. Raises ValueError unless there is one pair per round."""
    return _compared(_paired(times_s, over_s), confidence, seed)


def decide(contestants: Sequence[Contestant], *, confidence: float = CONFIDENCE, seed: int = 0) -> Decision:
    """A winner must beat the better default beyond noise (the upper end of its ratio below 1) and by more than
    MIN_GAIN, or the default wins.

    Of several that do, the one with the lowest median ratio. Since each of them is a chance to be fooled, the
    error allowed by `confidence` is shared among them (Bonferroni). Raises ValueError if there is no default.
    """
    relative = {c.name: _paired(c.times_s, c.yardstick_times_s) for c in contestants}
    defaults = [c.name for c in contestants if c.default]
    if not defaults or len(relative) != len(contestants):
        raise ValueError(f"a decision needs a default and distinct names: got {[c.name for c in contestants]}")
    default = min(defaults, key=lambda name: float(np.median(relative[name])))
    challengers = [c.name for c in contestants if not c.default]
    shared = 1 - (1 - confidence) / max(len(challengers), 1)
    comparisons = {}
    for name, values in relative.items():
        rounds = min(values.size, relative[default].size)  # they differ only if one was measured again apart
        level = shared if name in challengers else confidence
        comparisons[name] = _compared(values[:rounds] / relative[default][:rounds], level, seed)
    beating = [name for name in challengers if comparisons[name].worthwhile]
    winner = min(beating, key=lambda name: comparisons[name].ratio.median, default=default)
    return Decision(winner=winner, default=default, comparisons=comparisons)


def _paired(times_s: ArrayLike, over_s: ArrayLike) -> NDArray[np.float64]:
    a, b = _checked(times_s), _checked(over_s)
    if a.size != b.size:
        raise ValueError(f"paired times need the same rounds: got {a.size} and {b.size}")
    return a / b


def _compared(ratios: NDArray[np.float64], confidence: float, seed: int) -> Comparison:
    interval = median_interval(ratios, confidence=confidence, seed=seed)
    # all of n ratios lie on one side of the true median with probability 2 ** -n each
    enough = 0.5**ratios.size <= (1 - confidence) / 2
    return Comparison(ratio=interval, rounds=int(ratios.size), enough=enough)


def _rank(count: int, tail: float) -> int:
    """The largest k such that the k-th smallest of `count` values (from 0) is above their true median with at most
    probability `tail`; 0 if none is."""
    below, k = 0.0, 0
    while k < count:
        below += math.comb(count, k) * 0.5**count
        if below > tail:
            break
        k += 1
    return max(k - 1, 0)


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0 or not np.all(np.isfinite(x)) or np.any(x <= 0):
        raise ValueError(f"times must be positive, finite and at least one: got {x[:8].tolist()}")
    return x
