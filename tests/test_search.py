"""What the search proposes, and what it makes of what it is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import KEY, SPACE, Fused, Nothing, SimulatedRunner, best_time_s, made, rugged_time_of, time_of

from autotune.measurement import Measurement, Status
from autotune.runner import Request
from autotune.search import Search
from autotune.space import Space
from autotune.surrogate import Point
from strategies.candidate import Candidate, KernelOptions, Value
from strategies.parameter import ParameterError, param


def measured(candidate: Candidate, runner: SimulatedRunner | None = None) -> Measurement:
    [result] = (runner or SimulatedRunner()).measure(Request(key=KEY, candidates=(candidate,)))
    return result


def run(search: Search, runner: SimulatedRunner, trials: int) -> list[Candidate]:
    asked = []
    while len(asked) < trials and (candidate := search.ask()) is not None:
        search.tell(measured(candidate, runner))
        asked.append(candidate)
    return asked


def test_the_defaults_come_first_then_what_strategies_declare_as_good_then_every_strategy() -> None:
    class Good(Fused):
        presets = ({}, {"tile": 4, "unroll": 4})

    space = Space((made("aaa", Fused), made("bbb", Good), made("direct", Nothing), made("tensor_winograd", Nothing)))
    assert [str(c) for c in islice(iter(Search(space).ask, None), 5)] == [
        "direct", "tensor_winograd", "bbb(tile=2, unroll=1)", "bbb(tile=4, unroll=4)", "aaa(tile=2, unroll=1)",
    ]  # fmt: skip


def test_a_space_holds_every_combination_that_means_something() -> None:
    everything = list(SPACE)
    assert len(everything) == len(set(everything)) == 3 * 3 + 3 * 3 * (1 + 25)
    assert all(SPACE.choices(candidate) is not None for candidate in everything)


@given(st.randoms(use_true_random=False))
def test_choices_make_the_candidate_again(rng: random.Random) -> None:
    candidate = SPACE.sample(rng)
    assert candidate is not None
    choices = SPACE.choices(candidate)
    assert choices is not None
    assert SPACE.choose(lambda name, values: choices[name][0]) == candidate
    for other in SPACE.neighbours(candidate):
        shared = dict(candidate.params).items() & dict(other.params).items()
        assert other.strategy == candidate.strategy
        assert SPACE.choices(other) is not None
        assert len(shared) < len(candidate.params) or len(other.params) != len(candidate.params)


def test_a_parameter_added_since_has_its_default() -> None:
    before = Candidate.of("fused", tile=2)
    assert SPACE.choices(before) == SPACE.choices(Candidate.of("fused", tile=2, unroll=1))


NO_OPTIONS = KernelOptions(axes="g4", options=())


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate.of("unknown", tile=2), Candidate.of("direct"), Candidate.of("fused", tile=3, unroll=1),
        Candidate.of("fused", tile=2, unroll=1, more=1),
        replace(Candidate.of("fused", tile=2, unroll=1), kernel_options=(("product", NO_OPTIONS),)),
    ],
)  # fmt: skip
def test_what_is_not_in_the_space_has_no_choices_and_does_no_harm(candidate: Candidate) -> None:
    assert SPACE.choices(candidate) is None
    assert list(SPACE.neighbours(candidate)) == []
    search = Search(SPACE, history=[measured(Candidate.of("direct")), replace(measured(SPACE.presets[0]))])
    search.tell(replace(measured(Candidate.of("direct")), candidate=candidate))
    assert search.ask() is not None


def test_nothing_is_proposed_twice_and_a_space_ends() -> None:
    space = Space((made("direct", Nothing), made("fused", Fused)))
    asked = run(Search(space, seed=1), SimulatedRunner(), 1000)
    assert sorted(map(str, asked)) == sorted(map(str, {*space, *space.presets}))


def test_a_space_without_parameters_ends_after_its_presets() -> None:
    space = Space((made("direct", Nothing),))
    assert [str(c) for c in run(Search(space), SimulatedRunner(), 10)] == ["direct"]


@pytest.mark.parametrize("true_s", [time_of, rugged_time_of])
def test_thirty_of_243_candidates_find_the_best_within_a_twentieth(true_s: Callable[[Candidate], float]) -> None:
    """In at least 4 of 5 searches, by the model. Random search and TPE need more: see the next test."""
    assert sum(found(Search(SPACE, seed=seed), seed, true_s) for seed in range(5)) >= 4


def found(search: Search, seed: int, true_s: Callable[[Candidate], float] = rugged_time_of, trials: int = 30) -> bool:
    asked = run(search, SimulatedRunner(seed=seed, time_of=true_s), trials)
    assert len(set(asked)) == trials
    assert search.best is not None
    return true_s(search.best.candidate) <= 1.05 * best_time_s(SPACE, true_s)


@pytest.mark.parametrize("sampler", ["tpe", "steps", "random"])
def test_the_other_samplers_work_and_find_it_less_often(sampler: str) -> None:
    assert sum(found(Search(SPACE, seed=seed, sampler=sampler), seed) for seed in range(3)) < 3
    with pytest.raises(ValueError, match="must be one of model, tpe, steps, random"):
        Search(SPACE, sampler="luck")


def test_what_neighbours_say_comes_first() -> None:
    good, bad = Candidate.of("staged", tile=4, layout="panels", blocked=False), Candidate.of("fused", tile=2, unroll=1)
    prior = [
        Point(candidate=replace(c, params=tuple(sorted(dict(c.params).items()))), value=v, distance=0.25)
        for c, v in ((good, -1.5), (bad, 1.5), (Candidate.of("fused", tile=4, unroll=1), 1.8))
    ]
    asked = list(islice(iter(Search(SPACE, prior=prior).ask, None), 4))
    assert [c.strategy for c in asked] == ["direct", "tensor_winograd", "staged", "fused"]
    seeded = Search(SPACE, prior=[Point(candidate=c, value=float(np.log(time_of(c) / 7e-3)), distance=0.5)
                                  for c in list(SPACE)[::4]])  # fmt: skip
    run(seeded, SimulatedRunner(), 10)
    assert seeded.best is not None
    assert time_of(seeded.best.candidate) <= 1.1 * best_time_s()


def test_a_seed_makes_a_search_reproducible() -> None:
    runs = [run(Search(SPACE, seed=seed), SimulatedRunner(), 30) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@dataclass(frozen=True)
class Wide:
    a: int = param(0, (0, 1, 2, 3))
    b: int = param(0, (0, 1, 2, 3))
    c: int = param(0, (0, 1, 2, 3))
    d: int = param(0, (0, 1, 2, 3))


def test_failures_are_learned_from() -> None:
    """Whatever `staged` does, it fails: the search goes elsewhere."""
    failing = SimulatedRunner(broken={"staged": Status.COMPILE_ERROR})
    space = Space((
        made("direct", Nothing), made("staged", SPACE.strategies[2].params), made("wide", Wide)
    ))  # fmt: skip
    runner = replace(failing, time_of=lambda c: 1e-3 if c.strategy == "wide" else 7e-3)
    asked = run(Search(space, seed=0), runner, 60)
    assert sum(c.strategy == "staged" for c in asked[20:]) <= 10


def test_the_same_program_counts_once() -> None:
    """Two names, one fingerprint: one value, one place in the ranking, whatever the noise said."""
    a, b = Candidate.of("fused", tile=2, unroll=1), Candidate.of("fused", tile=2, unroll=2)
    search = Search(SPACE)
    search.tell(replace(measured(a), fingerprint="f"))
    search.tell(replace(measured(b), fingerprint="f"))
    search.tell(measured(Candidate.of("direct")))
    assert [str(m.candidate) for m in search.ranked()] == ["direct", str(a)]
    assert search.ratio(search.ranked()[1]) == search.ratio(measured(b)) != search.ratio(search.ranked()[0])


def test_patience_counts_what_was_sampled_since_the_best_improved() -> None:
    search, runner = Search(SPACE), SimulatedRunner(time_of=lambda c: 7e-3, noise=0.0)
    run(search, runner, len(SPACE.presets))
    assert search.since_better == 0
    run(search, runner, 5)
    assert search.since_better == 5
    candidate = search.ask()
    assert candidate is not None
    search.tell(measured(candidate, SimulatedRunner(time_of=time_fast, noise=0.0)))
    assert search.since_better == 0


def time_fast(candidate: Candidate) -> float:
    return 7e-3 if candidate.strategy == "direct" else 1e-3


def test_a_measurement_without_times_is_a_failure_and_no_fault() -> None:
    search = Search(SPACE, history=[replace(measured(Candidate.of("direct")), yardstick_times_s=())])
    assert search.best is None


def test_what_was_pruned_has_its_ratio_and_never_wins() -> None:
    search, candidate = Search(SPACE), Candidate.of("fused", tile=2, unroll=1)
    pruned = replace(measured(candidate), status=Status.PRUNED)
    search.tell(pruned)
    assert search.ratio(pruned) == pytest.approx(20 / 7, rel=0.1)
    assert search.ranked() == []


def test_choosing_outside_the_space_is_an_error() -> None:
    def wrong(name: str, values: Sequence[Value]) -> Value:
        return values[0] if name == "strategy" else "no such value"

    with pytest.raises(ParameterError):
        SPACE.choose(wrong)


def test_asked_for_several_at_once_a_search_comes_as_far() -> None:
    """What the first of them are expected to come to counts for those after them, so that they are not all alike."""
    reached: dict[int, list[float]] = {1: [], 6: []}
    for seed, several in ((seed, several) for seed in range(5) for several in reached):
        runner, search = SimulatedRunner(noise=0.01, seed=seed), Search(SPACE, seed=seed)
        asked: list[Candidate] = []
        while len(asked) < 36:
            together = search.ask_for(several)
            assert 0 < len(together) <= several
            asked += together
            for candidate in together:
                search.tell(measured(candidate, runner))
        assert len(set(asked)) == len(asked)
        reached[several].append(min(map(time_of, asked)) / best_time_s())
        assert search.ask_for(0) == []
    assert np.mean(reached[6]) <= 1.05 * np.mean(reached[1])
