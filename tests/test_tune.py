"""The whole search against a simulated device: finds the best, crowns no noise, resumes, keeps to its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from memory_store import MemoryStore
from simulated import KEY, OPTIONS, SPACE, SimulatedRunner, best_time_s, time_of

from autotune.job import Budget
from autotune.measurement import Measurement, Status
from autotune.progress import Progress
from autotune.runner import DeviceUnavailableError, Request, RunStoppedError
from autotune.session import Settings
from autotune.tune import MOST_PROMISING, TuneCancelledError, TuneError, tune
from autotune.winner import Winner, WinnerState
from strategies.candidate import Candidate
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape


def run(
    runner: SimulatedRunner, store: MemoryStore | None = None, *, key: ConvKey = KEY, trials: int | None = 30,
    seconds: float | None = None, **options: object,
) -> Winner:  # fmt: skip
    settings = Settings() if seconds is not None else Settings(options_share=0.0)
    arguments = {"space": SPACE, "clock": runner.clock, "now": runner.clock, "settings": settings, **options}
    return tune(
        key, store=store or MemoryStore(), runner=runner, budget=Budget(seconds=seconds, trials=trials), **arguments
    )  # type: ignore[arg-type]


def test_the_winner_is_the_fastest_and_says_what_it_beat() -> None:
    store, runner = MemoryStore(), SimulatedRunner()
    winner = run(runner, store, trials=40)
    assert time_of(winner.candidate) <= 1.1 * best_time_s()
    assert winner.state is WinnerState.VERIFIED
    assert winner.default == Candidate.of("tensor_winograd")
    assert winner.ratio.low <= 0.55 <= winner.ratio.high + 0.06
    assert winner.time_s.low <= winner.time_s.median <= winner.time_s.high < winner.default_time_s.low
    assert len(winner.times_s) == 5
    assert {"direct", "tensor_winograd", str(winner.candidate)} <= winner.times_s.keys()
    assert winner.provenance["trials"] == 40
    assert winner.provenance["attempts"].keys() == winner.times_s.keys()
    assert store.winner(KEY) == winner
    assert {m.attempt for m in store.measurements(KEY)} >= set(winner.provenance["attempts"].values())


def test_a_banned_candidate_is_never_a_finalist_again() -> None:
    store, runner = MemoryStore(), SimulatedRunner()
    first = run(runner, store, trials=40)
    store.set_state(next(number for number, winner in store.history(KEY) if winner == first), WinnerState.BANNED)
    second = run(runner, store, trials=45)
    assert second.candidate != first.candidate
    assert first.candidate not in runner.requests[-1].candidates
    assert store.winner(KEY) == second


def test_the_defaults_are_first_and_in_the_one_final() -> None:
    runner = SimulatedRunner()
    run(runner, trials=20)
    assert [c.strategy for c in runner.measured[:2]] == ["direct", "tensor_winograd"]
    final = runner.requests[-1]
    assert [c.strategy for c in final.candidates[:2]] == ["direct", "tensor_winograd"]
    assert len(final.candidates) == 5
    assert (final.rounds, final.seed) == (21, 1)
    assert [len(r.candidates) for r in runner.requests[:-1]] == [1] * 20


def test_where_nothing_differs_noise_crowns_no_winner() -> None:
    """A/A: every candidate takes equally long, in at most 5% of searches the default loses."""
    false = 0
    for seed in range(60):
        runner = SimulatedRunner(time_of=lambda candidate: 1e-3, noise=0.05, seed=seed)
        winner = run(runner, trials=12, seed=seed)
        false += winner.candidate.strategy not in ("direct", "tensor_winograd")
    assert false <= 3


@pytest.mark.parametrize("default", ["direct", "tensor_winograd"])
def test_where_a_default_is_best_it_wins(default: str) -> None:
    runner = SimulatedRunner(time_of=lambda c: 0.5e-3 if c.strategy == default else time_of(c))
    winner = run(runner)
    assert winner.candidate == winner.default == Candidate.of(default)
    assert winner.ratio.to_json() == [1.0, 1.0, 1.0]


def test_nothing_is_measured_twice_and_trials_are_exact() -> None:
    store, runner = MemoryStore(), SimulatedRunner()
    run(runner, store, trials=25)
    assert len(runner.measured) == len(set(runner.measured)) == 25
    run(runner, store, trials=25)
    assert len(runner.measured) == len(set(runner.measured)) == 50, "a new job goes on where the last one stopped"


class KilledError(BaseException):
    """The process is gone: nothing after it runs."""


class Killed(SimulatedRunner):
    left = 11

    def measure(self, request: Request, **_: Any) -> list[Measurement]:
        self.left -= 1
        if self.left < 0:
            raise KilledError
        return super().measure(request)


@pytest.mark.parametrize("kill_after", [0, 1, 2, 11, 30])
def test_a_killed_job_goes_on_and_counts_what_it_had_measured(kill_after: int) -> None:
    store, killed = MemoryStore(), Killed()
    killed.left = kill_after
    with pytest.raises(KilledError):
        run(killed, store, since=killed.now)
    resumed = SimulatedRunner(now=5000.0)
    winner = run(resumed, store, since=1000.0)
    assert len(killed.measured) + len(resumed.measured) == 30
    assert not set(killed.measured) & set(resumed.measured)
    assert winner.provenance["trials"] == 30
    assert len({m.candidate for m in store.measurements(KEY)}) == 30


def test_seconds_used_before_a_kill_count_and_those_between_do_not() -> None:
    store, killed = MemoryStore(), Killed()
    killed.left = 8
    with pytest.raises(KilledError):
        run(killed, store, trials=None, seconds=40, since=killed.now)
    resumed = SimulatedRunner(now=90_000.0)
    winner = run(resumed, store, trials=None, seconds=40, since=1000.0)
    assert resumed.now - 90_000 <= 40 - (killed.now - 1000) + 1
    assert winner.provenance["used_s"] <= 41


@pytest.mark.parametrize("seconds", [12.0, 30.0, 60.0])
def test_a_budget_in_seconds_holds_with_its_final(seconds: float) -> None:
    runner = SimulatedRunner()
    run(runner, trials=None, seconds=seconds)
    assert 0.7 * seconds <= runner.now - 1000 <= seconds + 1


def test_the_kernels_of_the_best_get_options_that_must_be_worth_it() -> None:
    store, runner = MemoryStore(), SimulatedRunner(gain=0.8)
    winner = run(runner, store, trials=None, seconds=60)
    assert winner.candidate.kernel_options
    searched = [r.options.seconds or 0.0 for r in runner.requests if r.options is not None]
    assert 2 <= len(searched) <= 2 * MOST_PROMISING
    assert 0.3 * 60 <= sum(searched) <= 0.7 * 60
    final = runner.requests[-1].candidates
    assert winner.candidate in final
    assert replace(winner.candidate, kernel_options=()) in final
    assert winner.candidate in {m.candidate for m in store.measurements(KEY)}


def test_of_a_budget_in_trials_too_some_are_for_options() -> None:
    store, runner = MemoryStore(), SimulatedRunner(gain=0.8)
    winner = run(runner, store, trials=40, settings=Settings())
    assert winner.candidate.kernel_options
    tried = [r.options.trials or 0 for r in runner.requests if r.options is not None]
    assert 0.4 * 40 <= sum(tried) <= 0.7 * 40
    assert winner.provenance["trials"] == len({m.candidate for m in store.measurements(KEY)}) + sum(tried) == 40


def test_what_options_leave_over_is_shared_again_and_nothing_is_looked_at_twice() -> None:
    """Kernels that have little to choose from: later candidates get a look too."""

    class Few(SimulatedRunner):
        def measure(self, request: Request, **options: Any) -> list[Measurement]:
            few = request if request.options is None else replace(request, options=Budget(trials=2))
            made = super().measure(few, **options)
            self.requests[-1] = request
            return made

    runner = Few(gain=0.9, time_of=lambda c: 1e-3 if c.params else 4e-3)
    run(runner, trials=80, settings=Settings(patience=None))
    looks = [at for at, r in enumerate(runner.requests) if r.options is not None]
    between = [at for at, r in enumerate(runner.requests) if looks[0] < at < looks[-1] and r.options is None]
    assert between, "candidates between one look and the next"
    before = {r.candidates[0] for r in runner.requests[: between[0]] if r.options is not None}
    after = {r.candidates[0] for r in runner.requests[between[0] :] if r.options is not None}
    assert after
    assert not before & after


def test_options_that_do_not_help_win_nothing() -> None:
    winner = run(SimulatedRunner(gain=0.999, noise=0.001), trials=None, seconds=60)
    plain = run(SimulatedRunner(noise=0.001), trials=None, seconds=60)
    assert replace(winner.candidate, kernel_options=()) == plain.candidate


def test_direct_alone_has_the_whole_budget_for_its_kernel() -> None:
    runner = SimulatedRunner(gain=0.7)
    winner = run(runner, trials=None, seconds=30, space=replace(SPACE, strategies=SPACE.strategies[:1]))
    assert winner.candidate == Candidate(strategy="direct", kernel_options=(("product", OPTIONS),))
    assert winner.ratio.high < 0.8
    given = [r.options.seconds if r.options is not None else None for r in runner.requests]
    assert given == [None, pytest.approx(25, abs=5), None]


class Breaking(SimulatedRunner):
    """Its process ends amid every search for options."""

    def measure(self, request: Request, **options: Any) -> list[Measurement]:
        measured = super().measure(request, **options)
        broken = [replace(m, status=Status.CRASHED, reason="ended", times_s=()) for m in measured]
        return broken if request.options is not None else measured


def test_a_search_for_options_that_breaks_says_nothing_of_the_candidate() -> None:
    store, runner = MemoryStore(), Breaking()
    winner = run(runner, store, trials=None, seconds=60)
    assert any(r.options is not None for r in runner.requests)
    assert all(m.ok for m in store.measurements(KEY))
    assert winner.candidate.strategy == "staged"


def test_the_defaults_are_compared_whatever_the_budget() -> None:
    runner = SimulatedRunner()
    winner = run(runner, trials=None, seconds=0.001)
    assert winner.candidate.strategy == "tensor_winograd"
    assert len(runner.requests) == 3


def test_patience_ends_a_search_early() -> None:
    runner = SimulatedRunner(time_of=lambda candidate: 1e-3, noise=0.0)
    run(runner, trials=200, settings=Settings(patience=7))
    assert len(runner.measured) == len(SPACE.presets) + 7


def test_a_space_of_direct_alone_needs_no_final() -> None:
    runner = SimulatedRunner()
    winner = run(runner, space=replace(SPACE, strategies=SPACE.strategies[:1]))
    assert (winner.candidate.strategy, winner.ratio.median, len(runner.requests)) == ("direct", 1.0, 1)


def test_the_same_program_is_one_contestant() -> None:
    """Candidates that come out as `direct` cannot beat it, and one program takes one place in the final."""
    runner = SimulatedRunner(
        program=lambda c: c.strategy if c.strategy in ("staged", "tensor_winograd") else "direct",
        time_of=lambda c: 1e-3 if c.strategy == "staged" else 2e-3,
    )
    run(runner, trials=20)
    assert sorted(c.strategy for c in runner.requests[-1].candidates) == ["direct", "staged", "tensor_winograd"]


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_candidates_that_fail_never_win(status: Status) -> None:
    runner = SimulatedRunner(broken={"staged": status, "fused": status, "tensor_winograd": status})
    winner = run(runner, trials=20)
    assert winner.candidate == winner.default == Candidate.of("direct")


def test_a_finalist_that_fails_in_the_final_is_out() -> None:
    class FailsLate(SimulatedRunner):
        def measure(self, request: Request, **_: Any) -> list[Measurement]:
            self.broken = {"staged": Status.WRONG} if len(request.candidates) > 1 else {}
            return super().measure(request)

    assert run(FailsLate()).candidate.strategy == "tensor_winograd"


def test_without_direct_there_is_nothing_to_decide() -> None:
    store = MemoryStore()
    with pytest.raises(TuneError, match=r"even direct.*failed on 1x64x56x56 .* \(compile_error\): as told"):
        run(SimulatedRunner(broken={"direct": Status.COMPILE_ERROR}), store)
    assert [m.status for m in store.measurements(KEY)] == [Status.COMPILE_ERROR]
    assert run(SimulatedRunner(), store).ratio.median < 1, "the next job tries again"


def test_cancelling_stops_between_measurements_and_decides_nothing() -> None:
    store, runner = MemoryStore(), SimulatedRunner()
    with pytest.raises(TuneCancelledError, match="after 5 candidates"):
        run(runner, store, should_stop=lambda: len(runner.requests) >= 5)
    assert len(store.measurements(KEY)) == 5
    assert store.winner(KEY) is None


def test_cancelling_ends_a_measurement_and_nothing_is_known_of_its_candidate() -> None:
    class Stopped(SimulatedRunner):
        def measure(self, request: Request, *, should_stop: Callable[[], bool], **_: Any) -> list[Measurement]:
            measured = super().measure(request)
            stop.extend([True] if len(self.requests) == 4 else [])
            if should_stop():
                raise RunStoppedError
            return measured

    store, stop = MemoryStore(), list[bool]()
    with pytest.raises(TuneCancelledError, match="after 3 candidates"):
        run(Stopped(), store, should_stop=lambda: bool(stop))
    assert len(store.measurements(KEY)) == 3


def test_what_was_final_of_a_lost_device_is_kept() -> None:
    class Lost(SimulatedRunner):
        def measure(self, request: Request, **_: Any) -> list[Measurement]:
            measured = super().measure(request)
            if len(self.requests) == 4:
                crashed = replace(measured[0], status=Status.CRASHED)
                raise DeviceUnavailableError("it has fallen off the bus", [crashed])
            return measured

    store = MemoryStore()
    with pytest.raises(DeviceUnavailableError):
        run(Lost(), store)
    assert [str(m.status) for m in store.measurements(KEY)] == ["ok", "ok", "ok", "crashed"]


def test_what_another_driver_measured_is_measured_again() -> None:
    store, runner = MemoryStore(), SimulatedRunner()
    run(runner, store, trials=10)
    newer = replace(KEY, device=replace(KEY.device, driver="2"))
    assert newer.digest == KEY.digest
    run(runner, store, key=newer, trials=5)
    assert [c.strategy for c in runner.measured[10:12]] == ["direct", "tensor_winograd"]


def test_a_coin_flip_does_not_replace_the_default() -> None:
    """1% faster beyond any doubt is not worth it, 4% is."""
    for gain, wins in ((0.99, False), (0.96, True)):
        runner = SimulatedRunner(
            time_of=lambda c, gain=gain: 2e-3 * (gain if c.strategy == "staged" else 1.0), noise=0.001
        )  # fmt: skip
        assert (run(runner).candidate.strategy == "staged") == wins


def test_the_suspiciously_fast_is_measured_again_alone() -> None:
    class Lucky(SimulatedRunner):
        """In company, one candidate takes no time."""

        def measure(self, request: Request, **_: Any) -> list[Measurement]:
            alone = len(request.candidates) == 1
            self.time_of = time_of if alone else lambda c: 1e-5 if c == fastest else time_of(c)
            return super().measure(request)

    fastest = run(SimulatedRunner()).candidate
    winner = run(runner := Lucky())
    assert [r.candidates for r in runner.requests if r.seed == 2] == [(fastest,)]
    assert winner.candidate != fastest
    assert winner.candidate.strategy == "staged"


def test_what_broke_on_a_busy_machine_has_a_second_chance() -> None:
    class Busy(SimulatedRunner):
        def measure(self, request: Request, **_: Any) -> list[Measurement]:
            first = request.candidates not in [r.candidates for r in self.requests]
            self.broken = {"staged": Status.TIMEOUT} if first and len(request.candidates) == 1 else {}
            return [
                replace(m, conditions={**m.conditions, "load": 1e4 if first else 0.1}) for m in super().measure(request)
            ]

    runner = Busy(time_of=lambda c: 1e-3 if c.strategy == "staged" else time_of(c))
    assert run(runner, trials=12).candidate.strategy == "staged"
    again = [c for c in set(runner.measured) if runner.measured.count(c) > 1]
    assert 0 < len(again) <= 3


def test_who_is_hopeless_depends_on_the_best() -> None:
    runner = SimulatedRunner()
    run(runner, trials=30)
    limits = [r.hopeless for r in runner.requests]
    assert limits[0] == 2.0
    assert limits[-1] < 0.5
    assert [r.keep for r in runner.requests[:3]] == [1, 1, 0]
    assert (runner.requests[-1].keep, runner.requests[-1].race) == (2, True)


def test_workspace_above_the_policy_never_wins() -> None:
    class Large(SimulatedRunner):
        def measure(self, request: Request, **_: Any) -> list[Measurement]:
            return [
                replace(m, workspace_bytes=0 if m.candidate.strategy in ("direct", "tensor_winograd") else 1000)
                for m in super().measure(request)
            ]

    policy = Policy(max_workspace_bytes=999)
    assert run(Large(), key=replace(KEY, policy=policy)).candidate.strategy == "tensor_winograd"


def test_progress_tells_how_far_and_how_well() -> None:
    said: list[Progress] = []
    winner = run(SimulatedRunner(), trials=20, on_progress=said.append)
    assert [p.phase for p in said] == ["search"] * 20 + ["final", "done"]
    assert [p.trials for p in said[:20]] == list(range(1, 21))
    assert [p.fraction for p in said] == sorted(p.fraction for p in said)
    assert said[-1].fraction == 1.0
    ratios = [p.ratio for p in said[:20] if p.ratio is not None]
    assert len(ratios) == 20
    assert ratios == sorted(ratios, reverse=True)
    assert said[-1].to_json()["best"] == said[-1].best.to_json()  # type: ignore[union-attr]
    assert winner.provenance["used_s"] == round(said[-1].used_s, 2)


@pytest.fixture(autouse=True)
def strict_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything measured is recorded before anything else is measured."""
    measured, recorded = [0], [0]
    measure, record = SimulatedRunner.measure, MemoryStore.record

    def counting_measure(self: SimulatedRunner, request: Request, **_: Any) -> list[Measurement]:
        assert measured == recorded or isinstance(self, Killed)
        result = measure(self, request)
        measured[0] += 0 if request.options is not None and isinstance(self, Breaking) else len(result)
        return result

    def counting_record(self: MemoryStore, measurement: Measurement) -> bool:
        recorded[0] += 1
        return record(self, measurement)

    monkeypatch.setattr(SimulatedRunner, "measure", counting_measure)
    monkeypatch.setattr(MemoryStore, "record", counting_record)


def test_a_machine_that_compiles_side_by_side_is_asked_for_several_at_once() -> None:
    store, runner = MemoryStore(), SimulatedRunner(at_once=4, cost_s=0.5)
    winner = run(runner, store, trials=23)
    assert winner.provenance["trials"] == 23, "a last request of fewer keeps a budget exact"
    search = [r.candidates for r in runner.requests if r.options is None][:-1]
    measured = [candidate for together in search for candidate in together]
    assert len(measured) == len(set(measured)) == len({m.candidate for m in store.measurements(KEY)})
    assert max(map(len, search)) == 4


def test_large_convolutions_are_not_measured_together() -> None:
    """Of each the buffers are there as long as the request is."""
    large = replace(KEY, shape=ConvShape.of((8, 64, 512, 512), (64, 64, 3, 3), padding=1))
    runner = SimulatedRunner(at_once=8)
    run(runner, MemoryStore(), key=large, trials=12)
    final = runner.requests[-1]
    assert all(len(r.candidates) == 1 for r in runner.requests if r is not final)
