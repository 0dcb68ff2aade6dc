"""Statistics on simulated times: no false winners, no missed ones, and the algebra that must hold for any times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.statistics import Contestant, decide, median, median_interval, paired_ratio

times = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)


def rounds(rng: np.random.Generator, count: int, *true_s: float) -> np.ndarray:
    """Times of contestants in interleaved rounds on a bad machine: drift that rounds share, 5% noise, one round in
    ten up to three times too slow. Shape (contestants, rounds)."""
    drift = np.exp(0.1 * np.sin(np.linspace(0, 3, count) + rng.uniform(0, 6)))
    noise = rng.lognormal(0, 0.05, (len(true_s), count))
    spikes = np.where(rng.random((len(true_s), count)) < 0.1, rng.uniform(1, 3, (len(true_s), count)), 1)
    return np.array(true_s)[:, None] * drift * noise * spikes


def contestants(table: np.ndarray, *names: str) -> list[Contestant]:
    """The first is `direct` and the yardstick."""
    return [
        Contestant(
            name=name, times_s=tuple(row), yardstick_times_s=tuple(table[0]), default=name in ("direct", "tensor")
        )
        for name, row in zip(names, table, strict=True)
    ]


@given(times, st.integers(0, 99))
def test_an_interval_holds_the_median_and_is_reproducible(values: list[float], seed: int) -> None:
    interval = median_interval(values, seed=seed)
    assert min(values) <= interval.low <= interval.median <= interval.high <= max(values)
    assert interval.median == median(values)
    assert interval == median_interval(values, seed=seed)
    assert interval == median_interval(values[::-1], seed=seed)


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3)), min_size=1, max_size=30), st.integers(-8, 8))
def test_a_ratio_knows_no_unit(pairs: list[tuple[float, float]], power: int) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    assert paired_ratio(a, b) == paired_ratio([x * 2.0**power for x in a], [x * 2.0**power for x in b])
    assert paired_ratio(a, a).ratio.to_json() == [1.0, 1.0, 1.0]
    assert not paired_ratio(a, a).faster


@given(st.lists(st.floats(1e-6, 1e-5), min_size=1, max_size=5))
def test_five_rounds_are_never_enough_for_a_winner(fast: list[float]) -> None:
    """All of five equal contestants' rounds are on one side in 3% of cases, more than the 2.5% of a 95% interval."""
    assert not paired_ratio(fast, [1.0] * len(fast)).faster
    assert paired_ratio([0.5] * 6, [1.0] * 6).faster


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_a_minority_of_outliers_changes_no_decision(seed: int, outliers: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.90, 0.92, 21), rng.uniform(0.99, 1.01, 21)
    a[rng.choice(21, outliers, replace=False)] *= 100
    assert paired_ratio(a, b).faster


@pytest.mark.parametrize(
    ("values", "what"), [([], "at least one"), ([1.0, float("nan")], "finite"), ([0.0], "positive"), ([-1.0], "posi")]
)
def test_times_that_are_none_are_refused(values: list[float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        median(values)


def test_rounds_must_pair() -> None:
    with pytest.raises(ValueError, match="same rounds: got 2 and 1"):
        paired_ratio([1.0, 1.0], [1.0])


@pytest.mark.parametrize("count", [7, 9, 21])
def test_the_interval_holds_the_true_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    hits = 0
    for seed in range(400):
        interval = median_interval(rng.lognormal(0, 0.3, count), seed=seed)
        hits += interval.low <= 1.0 <= interval.high
    assert hits / 400 >= 0.94


@pytest.mark.parametrize("challengers", [1, 3])
@pytest.mark.parametrize("count", [9, 21])
def test_equal_contestants_crown_a_winner_in_at_most_one_of_twenty(count: int, challengers: int) -> None:
    names = ["direct", "tensor", *(f"c{i}" for i in range(challengers))]
    rng, runs = np.random.default_rng(5), 400
    false = 0
    for seed in range(runs):
        decision = decide(contestants(rounds(rng, count, *[1e-3] * len(names)), *names), seed=seed)
        false += decision.winner not in ("direct", "tensor")
    assert false <= 0.05 * runs


def test_a_contestant_fifteen_percent_faster_is_nearly_always_found() -> None:
    rng = np.random.default_rng(6)
    won = [
        decide(contestants(rounds(rng, 21, 1e-3, 1.2e-3, 0.85e-3, 1e-3), "direct", "tensor", "a", "b")).winner
        for _ in range(100)
    ]
    assert won.count("a") >= 95
    assert won.count("b") == 0


def test_the_better_default_is_the_one_to_beat() -> None:
    rng = np.random.default_rng(7)
    decision = decide(contestants(rounds(rng, 21, 1e-3, 0.5e-3, 0.8e-3), "direct", "tensor", "a"))
    assert (decision.winner, decision.default) == ("tensor", "tensor")
    assert decision.comparison.ratio.to_json() == [1.0, 1.0, 1.0]
    assert decision.comparisons["a"].ratio.low > 1


def test_a_decision_needs_a_default() -> None:
    with pytest.raises(ValueError, match="needs a default"):
        decide([Contestant(name="a", times_s=(1.0,), yardstick_times_s=(1.0,))])
