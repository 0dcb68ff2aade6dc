"""The search over options: on made-up kernels what it finds and what it costs, on a real one all the way to a
Measurement."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.option_search import KernelSearch, Options
from autotune.runner import TRIED, Limits, Request
from strategies.candidate import Candidate, KernelOptions
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.shape import ConvShape

A, B, C, THREAD = ("UPCAST", 0, 4), ("UPCAST", 1, 4), ("UNROLL", 0, 4), ("THREAD", 0, 2)


@dataclass
class MadeUp:
    """A kernel that takes `seconds` of its options, and says how often it ran."""

    seconds: Callable[[Options], float]
    default: Options = (A,)
    runs: int = 0
    prepared: list[Options] = field(default_factory=list)

    def more(self, options: Options) -> Sequence[Options]:
        return [(*options, option) for option in (THREAD, A, B, C) if option not in options]

    def other(self, options: Options) -> Sequence[Options]:
        return [options[:i] + options[i + 1 :] for i in range(len(options))]

    def prepare(self, several: Sequence[Options]) -> None:
        self.prepared += several

    def runner(self, options: Options) -> Callable[[], float]:
        seconds = self.seconds(options)

        def run() -> float:
            self.runs += 1
            return seconds

        return run


def gain(options: Options) -> float:
    """Best with B, C and threads, and without A, which the default has."""
    factors = {A: 1.2, B: 0.7, C: 0.8, THREAD: 0.5}
    seconds = 1.0
    for option in options:
        seconds *= factors[option]
    return seconds


def still() -> float:
    return 0.0


def search(kernel: MadeUp, clock: Callable[[], float] = still, *, at_once: int = 1, seed: int = 0) -> KernelSearch:
    return KernelSearch(kernel, clock, random.Random(seed), at_once)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_from_a_bad_default(at_once: int, seed: int) -> None:
    assert set(search(MadeUp(gain), at_once=at_once, seed=seed).run(until=1.0)) == {B, C, THREAD}


def test_the_default_stays_where_nothing_is_better_beyond_noise() -> None:
    assert search(MadeUp(lambda options: 1.0 - 0.01 * len(options))).run(until=1.0) == (A,)


def test_what_was_fast_only_once_is_not_taken() -> None:
    lucky = iter([0.1])
    kernel = MadeUp(lambda options: next(lucky, 1.0) if B in options else 1.0)
    assert search(kernel).run(until=1.0) == (A,)


def test_what_fails_is_no_option() -> None:
    def fragile(options: Options) -> float:
        if C in options:
            raise RuntimeError("too many registers")
        return gain(options)

    assert set(search(MadeUp(fragile)).run(until=1.0)) == {B, THREAD}


def test_a_default_that_fails_is_replaced() -> None:
    def fragile(options: Options) -> float:
        if A in options:
            raise RuntimeError("no")
        return gain(options)

    assert set(search(MadeUp(fragile)).run(until=1.0)) == {B, C, THREAD}


def test_nothing_is_begun_when_the_time_is_over() -> None:
    now = iter(range(1000))
    kernel = MadeUp(gain)
    found = search(kernel, lambda: float(next(now))).run(until=3.0)
    assert gain(found) <= gain(kernel.default)
    assert len(kernel.prepared) <= 3


def test_a_second_search_goes_on_where_the_first_ended() -> None:
    first = search(MadeUp(gain))
    first.clock = lambda: float(first.tried)
    first.run(until=3.0)
    known = dict(first.times)
    second = KernelSearch(MadeUp(gain), still, random.Random(1), times=first.times)
    assert set(second.run(until=1.0)) == {B, C, THREAD}
    assert first.times.items() >= known.items()
    assert second.tried == len(second.times) - len(known) > 0


def test_what_is_hopeless_is_not_run_again() -> None:
    kernel = MadeUp(lambda options: 0.001 if options == (A,) else 1.0)
    tried = search(kernel)
    assert tried.run(until=1.0) == (A,)
    assert kernel.runs <= 2 * len(tried.times) + 20


def test_a_runner_measures_a_candidate_with_the_options_found() -> None:
    """In the child process, on the device: what comes back is the candidate with options, verified and timed."""
    key = ConvKey(shape=ConvShape.of((1, 8, 16, 16), (8, 8, 3, 3), padding=1), device=describe_device("CPU"))
    candidate = Candidate.of("four_buffer", tile=2, output="auto")
    with LocalRunner("CPU") as runner:
        request = Request(
            key=key, candidates=(candidate,), rounds=2, keep=1, options=Budget(seconds=60.0, trials=9), limits=Limits()
        )
        [measured] = runner.measure(request)
    assert measured.ok, measured.reason
    assert 1 <= measured.conditions[TRIED] <= 9 + 1
    assert measured.candidate.strategy == "four_buffer"
    assert {role for role, _ in measured.candidate.kernel_options} <= {"XHAT", "GHAT", "product", "output"}


def test_hints_are_tried_first_and_misfits_cost_nothing_else() -> None:
    def fragile(options: Options) -> float:
        if options == (C, C):
            raise RuntimeError("does not fit")
        return gain(options)

    kernel = MadeUp(fragile)
    hinted = search(kernel)
    hinted.hints = ((C, C), (THREAD, B))
    assert set(hinted.run(until=1.0)) == {B, C, THREAD}
    assert list(hinted.times)[:3] == [(A,), (C, C), (THREAD, B)]


def test_a_request_with_hints_survives_json() -> None:
    key = ConvKey(shape=ConvShape.of((1, 8, 16, 16), (8, 8, 3, 3), padding=1), device=describe_device("CPU"))
    made = KernelOptions(axes="L4 L8", options=(A, ("TC", 0, (-1, 2, 1))))
    request = Request(
        key=key, candidates=(Candidate.of("direct"),), options=Budget(trials=7), hints=(("product", made),)
    )
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
