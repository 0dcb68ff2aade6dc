"""Interleaved timing, with a scripted clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from autotune.timing import MAX_RUNS_PER_ROUND, Times, drift, interleaved


class Stand:
    """Contestants of given times; who ran, in order."""

    def __init__(self, **seconds: float | Callable[[int], float]) -> None:
        self.ran: list[str] = []
        self.started: list[str] = []
        self._seconds = seconds

    def contestants(self) -> dict[str, Callable[[], float]]:
        return {name: lambda name=name: self._run(name) for name in self._seconds}  # type: ignore[misc]

    def _run(self, name: str) -> float:
        self.ran.append(name)
        seconds = self._seconds[name]
        return seconds(self.ran.count(name)) if callable(seconds) else seconds

    def times(self, rounds: int = 4, round_s: float = 0.0, prune: bool = True) -> dict[str, Times]:
        return interleaved(
            self.contestants(), yardstick="y", rounds=rounds, round_s=round_s, prune=prune, started=self.started.append
        )


def rounds_of(ran: list[str], names: str) -> Iterator[str]:
    """The order within each round, after the warm-up."""
    measured = ran[2 * len(names) :]
    for start in range(0, len(measured), len(names)):
        yield "".join(measured[start : start + len(names)])


def test_everybody_in_every_round_in_turns() -> None:
    stand = Stand(y=1.0, a=1.1, b=0.9)
    times = stand.times(rounds=4)
    assert stand.ran[:6] == ["y", "y", "a", "a", "b", "b"]  # warm-up, never counted
    assert list(rounds_of(stand.ran, "yab")) == ["yab", "aby", "bya", "yab"]
    assert times == {
        "y": Times(times_s=(1.0,) * 4), "a": Times(times_s=(1.1,) * 4), "b": Times(times_s=(0.9,) * 4),
    }  # fmt: skip
    assert stand.started[:3] == ["y", "a", "b"]
    assert len(stand.started) == 3 + 12


def test_a_round_is_the_median_of_as_many_runs_as_fill_it() -> None:
    stand = Stand(y=0.01, a=lambda run: 0.02 if run % 3 else 5.0)
    times = stand.times(rounds=2, round_s=0.1, prune=False)
    assert stand.ran.count("y") == 2 + 2 * 10
    assert stand.ran.count("a") == 2 + 2 * 5
    assert times["a"].times_s == (0.02, 0.02)  # an outlier in a round moves nothing


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, MAX_RUNS_PER_ROUND), (1e-9, MAX_RUNS_PER_ROUND), (100.0, 1)])
def test_the_runs_of_a_round_have_limits(seconds: float, runs: int) -> None:
    stand = Stand(y=seconds)
    assert len(stand.times(rounds=3, round_s=0.5)["y"].times_s) == 3
    assert stand.ran.count("y") == 2 + 3 * runs


def test_one_that_is_far_too_slow_runs_once() -> None:
    stand = Stand(y=1.0, a=20.1, b=19.9)
    times = stand.times(rounds=4)
    assert stand.ran.count("a") == 1
    assert times["a"] == Times(times_s=(20.1,), pruned=True)
    assert len(times["b"].times_s) == 2


def test_a_first_run_that_had_bad_luck_gets_a_second_look() -> None:
    stand = Stand(y=0.001)
    lucky = iter([0.3])
    contestants = {**stand.contestants(), "a": lambda: next(lucky, 0.0005)}
    times = interleaved(contestants, yardstick="y", rounds=3, round_s=0.0)
    assert times["a"] == Times(times_s=(0.0005,) * 3)


def test_a_race_stops_who_loses_to_the_fastest_round_after_round() -> None:
    stand = Stand(y=1.0, best=0.5, close=0.505, second=0.52, default=0.8)
    times = interleaved(stand.contestants(), yardstick="y", rounds=9, round_s=0.0, race=True, keep=["default"])
    assert {name: (len(t.times_s), t.pruned) for name, t in times.items()} == {
        "y": (9, False), "best": (9, False), "close": (9, False), "second": (6, True), "default": (9, False),
    }  # fmt: skip


def test_drift_is_the_end_over_the_beginning() -> None:
    assert drift([1.0, 1.0, 5.0, 1.0, 1.2, 1.2]) == pytest.approx(1.2)
    assert drift([]) == 1.0


def test_who_cannot_win_is_stopped() -> None:
    stand = Stand(y=1.0, slow=2.01, fair=1.99)
    times = stand.times(rounds=6)
    assert times["slow"] == Times(times_s=(2.01, 2.01), pruned=True)
    assert times["fair"] == Times(times_s=(1.99,) * 6)
    assert len(times["y"].times_s) == 6


def test_one_good_round_is_enough_to_go_on() -> None:
    stand = Stand(y=1.0, a=lambda run: 1.5 if run == 3 else 9.0)
    assert not stand.times(rounds=4)["a"].pruned


def test_a_slow_round_of_the_yardstick_forgives() -> None:
    stand = Stand(y=lambda run: 9.0 if run == 3 else 1.0, a=3.0)
    assert not stand.times(rounds=4)["a"].pruned


def test_it_ends_when_nobody_is_left() -> None:
    stand = Stand(y=1.0, a=5.0)
    times = stand.times(rounds=50)
    assert times["a"].pruned
    assert len(times["y"].times_s) == 2


def test_nobody_is_stopped_in_a_final() -> None:
    times = Stand(y=1.0, a=50.0).times(rounds=5, prune=False)
    assert times["a"] == Times(times_s=(50.0,) * 5)


def test_the_yardstick_warms_the_device_before_the_first_round() -> None:
    stand = Stand(y=1.0, a=1.1)
    clock = iter(range(100))
    times = interleaved(
        stand.contestants(), yardstick="y", rounds=1, round_s=0.0, started=stand.started.append, warm_s=4.0,
        clock=lambda: float(next(clock)),
    )  # fmt: skip
    assert stand.ran == ["y"] * 3 + ["y", "y", "a", "a"] + ["y", "a"]
    assert stand.started[0] == "y"
    assert len(times["y"].times_s) == 1
