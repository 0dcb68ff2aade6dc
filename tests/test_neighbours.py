"""What is known of similar convolutions, and the guesses made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory_store import MemoryStore
from simulated import KEY, SPACE, SimulatedRunner, time_of

from autotune.job import Budget
from autotune.measurement import Measurement
from autotune.neighbours import aged, distance, guess, neighbours, option_hints, prior
from autotune.session import Settings
from autotune.surrogate import Point
from autotune.tune import tune
from autotune.winner import Winner, WinnerState
from strategies.candidate import Candidate, KernelOptions
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape


def key(channels: int = 64, size: int = 56, *, kernel: int = 3) -> ConvKey:
    weight = (channels, channels, kernel, kernel)
    return replace(KEY, shape=ConvShape.of((1, channels, size, size), weight, padding=1))


def tuned(*keys: ConvKey, runner: SimulatedRunner | None = None) -> MemoryStore:
    store, runner = MemoryStore(), runner or SimulatedRunner()
    for item in keys:
        tune(
            item, store=store, runner=runner, budget=Budget(trials=25), space=SPACE, clock=runner.clock,
            now=runner.clock, settings=Settings(options_share=0.0),
        )  # fmt: skip
    return store


def test_distance_counts_powers_of_two_and_kinds() -> None:
    assert distance(key(), key()) == 0
    assert distance(key(64), key(128)) == distance(key(128), key(64)) == 2  # cin and cout
    assert distance(key(), key(size=28)) == 2
    assert distance(key(), replace(key(), policy=Policy(allow_tf32=True))) == 4
    other = replace(KEY, device=replace(KEY.device, device="CUDA"))
    assert distance(KEY, other) == 4
    assert distance(key(), key(kernel=5)) >= 8


def test_a_guess_is_what_neighbours_measured_marked_as_one() -> None:
    store = tuned(key(64), key(128))
    found = guess(store, key(96), SPACE)
    assert found is not None
    assert (found.state, found.key) == (WinnerState.GUESS, key(96))
    assert time_of(found.candidate) < 1.1 * time_of(store.winners()[0][1].candidate)
    assert found.provenance["confidence"] > 0.8
    assert found.provenance["guessed_from"]
    assert found.ratio.low < found.ratio.median < found.ratio.high
    assert Winner.from_json(found.to_json()) == found
    assert store.winner(key(96)) is None, "a guess is made, not kept"


def test_a_guess_is_within_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What neighbours measured beyond it teaches nothing."""
    store = tuned(key(64), key(128))
    measurements = store.measurements

    def with_costs(of: ConvKey) -> list[Measurement]:
        """All but the default have a workspace, and an error that it has not."""
        costs = {True: {"error": 1e-7}, False: {"error": 1e-5, "workspace_bytes": 1000}}
        return [replace(m, **costs[m.candidate == SPACE.defaults[0]]) for m in measurements(of)]

    monkeypatch.setattr(store, "measurements", with_costs)
    for policy in (Policy(max_error=1e-5), Policy(max_workspace_bytes=10_000)):
        found = guess(store, replace(key(96), policy=policy), SPACE)
        assert found is not None
        assert found.candidate != found.default
    for policy in (Policy(max_error=1e-6), Policy(max_workspace_bytes=0)):
        found = guess(store, replace(key(96), policy=policy), SPACE)
        assert found is not None
        assert found.candidate == SPACE.defaults[0]
    assert guess(store, replace(key(96), policy=Policy(max_error=1e-8)), SPACE) is None


def test_where_defaults_win_a_guess_is_the_default() -> None:
    store = tuned(key(64), runner=SimulatedRunner(time_of=lambda c: 1e-3 if c.strategy == "direct" else 4e-3))
    found = guess(store, key(96), SPACE)
    assert found is not None
    assert found.candidate == found.default
    assert found.ratio.to_json() == [1.0, 1.0, 1.0]


def test_nothing_near_no_guess() -> None:
    assert guess(MemoryStore(), KEY, SPACE) is None
    assert guess(tuned(key(64)), key(64, kernel=5), SPACE) is None
    assert neighbours(tuned(key(64)), key(64)) == [], "a key is no neighbour of itself"


def test_another_tinygrad_makes_a_winner_provisional() -> None:
    store = tuned(key())
    newer = replace(KEY, device=replace(KEY.device, tinygrad="0.14.1"))
    found = guess(store, newer, SPACE)
    assert found is not None
    assert (found.state, found.key) == (WinnerState.PROVISIONAL, newer)
    assert found.candidate == store.winners()[0][1].candidate


def test_another_driver_makes_a_winner_provisional_and_it_is_measured_first() -> None:
    store, runner = tuned(key()), SimulatedRunner()
    winner = store.winner(KEY)
    assert winner is not None
    newer = replace(KEY, device=replace(KEY.device, os="now"))
    assert aged(winner, newer).state is WinnerState.PROVISIONAL
    assert aged(winner, KEY) == winner
    assert aged(winner, replace(KEY, device=replace(KEY.device, os=""))) == winner, "nothing is known of the asker"
    pinned = replace(winner, state=WinnerState.PINNED)
    assert aged(pinned, newer) == pinned
    tune(
        newer, store=store, runner=runner, budget=Budget(trials=3), space=SPACE, clock=runner.clock, now=runner.clock
    )  # fmt: skip
    assert runner.measured[1] == winner.candidate
    again = store.winner(newer)
    assert again is not None
    assert (again.key.device.os, again.candidate, again.state) == ("now", winner.candidate, WinnerState.VERIFIED)


@pytest.mark.parametrize("state", [WinnerState.REVOKED, WinnerState.GUESS])
def test_what_was_withdrawn_or_guessed_teaches_nothing(state: WinnerState) -> None:
    store = tuned(key(64))
    store.set_state(1, state)
    assert prior(store, key(96)) == []


def test_hints_are_the_nearest_options_of_the_same_strategy() -> None:
    def with_options(axis: int, **params: int) -> Candidate:
        made = KernelOptions(axes="L4", options=(("UPCAST", axis, 4),))
        return replace(Candidate.of("staged", **params), kernel_options=(("product", made),))

    points = [
        Point(candidate=with_options(0, tile=2), value=-1.0, distance=1.0),
        Point(candidate=with_options(1, tile=4), value=-0.5, distance=2.0),
        Point(candidate=with_options(2, tile=4), value=-0.7, distance=1.0),
        Point(candidate=with_options(2, tile=4), value=-0.6, distance=1.0),
        Point(candidate=Candidate.of("staged", tile=4), value=-2.0, distance=1.0),
    ]
    hints = option_hints(points, Candidate.of("staged", tile=4))
    assert [(role, made.options[0][1]) for role, made in hints] == [("product", 2), ("product", 1)]
    assert option_hints(points, Candidate.of("fused", tile=4)) == []
