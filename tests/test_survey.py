"""What a network's convolutions cost, and how one budget is shared among them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from simulated import SimulatedRunner
from values import a_key

from autotune.survey import SETTLED_S, Part, allotted, survey, tunable, tune_parts
from autotune.winner import WinnerState
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape


def parts_of(*weights_s: float) -> list[Part]:
    return [Part(key=a_key(cout=index + 1), count=1, direct_s=weight) for index, weight in enumerate(weights_s)]


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12), st.floats(1.0, 1e4))
def test_the_budget_goes_where_the_time_goes(weights_s: list[float], budget_s: float) -> None:
    parts = parts_of(*weights_s)
    shares = allotted(parts, budget_s, least_s=8.0)
    assert math.isclose(sum(shares.values()), budget_s)
    costliest = max(parts, key=lambda part: part.weight_s)
    assert max(shares.values()) == shares[costliest.key]
    if len(shares) > 1:
        assert min(shares.values()) >= 8.0 * (1 - 1e-9)
        by_key = {part.key: part.weight_s for part in parts}
        for key, share_s in shares.items():
            behind_s = SETTLED_S * math.log(costliest.weight_s / by_key[key])
            assert math.isclose(shares[costliest.key] - share_s, behind_s, abs_tol=1e-6)
        cheapest = min(by_key[key] for key in shares)
        assert all(part.weight_s <= cheapest for part in parts if part.key not in shares)


def times(candidate: Candidate) -> float:
    return {"direct": 7e-3, "tensor_winograd": 2e-3, "blocked": 1e-3}.get(candidate.strategy, 3e-3)


def test_one_budget_is_kept_and_shared() -> None:
    runner, store, begun = SimulatedRunner(time_of=times, cost_s=2.0), MemoryStore(), []
    said = lambda part, seconds: begun.append((part.key, seconds))  # noqa: E731
    parts = parts_of(7.0, 2.0, 1.0, 0.01)
    start = runner.now
    winners = tune_parts(parts, 200.0, store=store, runner=runner, on_part=said, clock=runner.clock)
    assert [key for key, _ in begun[:2]] == [part.key for part in parts[:2]]
    assert begun[0][1] == pytest.approx(allotted(parts, 200.0)[parts[0].key], rel=0.01)
    assert runner.now - start <= 260.0  # a final that has begun is finished
    assert set(winners) == {key for key, _ in begun}
    assert winners[parts[0].key].candidate.strategy == "blocked"

    begun.clear()
    known = [part for part in parts if part.key in winners]
    again = tune_parts(known, 100.0, store=store, runner=runner, on_part=said, clock=runner.clock)
    assert begun == []
    assert again == winners
    revoked = next(i for i, winner in store.winners() if winner.key == parts[0].key)
    store.set_state(revoked, WinnerState.REVOKED)
    tune_parts(known, 100.0, store=store, runner=runner, on_part=said, clock=runner.clock)
    assert [key for key, _ in begun] == [parts[0].key]


def test_what_is_left_is_no_search_when_it_is_too_short_for_one() -> None:
    """A winner that nobody looked for would be kept, and the convolution not tuned the next time."""
    runner, store = SimulatedRunner(time_of=times, cost_s=6.0), MemoryStore()
    parts = parts_of(7.0, 6.0)
    winners = tune_parts(parts, 5.0, store=store, runner=runner, clock=runner.clock)
    assert set(winners) == {parts[0].key}
    assert set(tune_parts(parts, 30.0, store=store, runner=runner, clock=runner.clock)) == {p.key for p in parts}


def test_what_has_no_choice_is_not_tuned() -> None:
    strided = ConvShape.of((1, 8, 16, 16), (8, 8, 5, 5), stride=2)
    part = Part(key=ConvKey(shape=strided, device=a_key().device), count=3, direct_s=1.0)
    if tunable(part):
        pytest.skip("another strategy has learned to lower strided convolutions")
    assert tune_parts([part], 60.0, store=MemoryStore(), runner=SimulatedRunner()) == {}


def test_a_survey_times_each_convolution_on_the_device() -> None:
    small, large = ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3)), ConvShape.of((1, 16, 32, 32), (32, 16, 3, 3), padding=1)
    parts = survey({small: 2, large: 1}, describe_device("CPU"), policy=Policy())
    assert [(part.key.shape, part.count) for part in parts] == [(large, 1), (small, 2)]
    assert all(0 < part.direct_s < 10 for part in parts)
    assert parts[1].weight_s == 2 * parts[1].direct_s
