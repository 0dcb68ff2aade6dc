"""What every implementation of `autotune.store.Store` must do. A test class per store inherits this one."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import text

from autotune.job import Budget, Claim, Job, JobState, Terms, Waiting, target_of
from autotune.measurement import Measurement, Status
from autotune.winner import Winner, WinnerState
from db import SqlStore, open_store
from db.jobs import parsed_key
from db.migrate import HEAD
from db.store import MERGED_AT_ONCE
from strategies.candidate import Candidate
from tests import any_value
from tests.databases import child
from tests.values import CPU, a_key, a_measurement, a_winner

BUDGET = Budget(trials=4)
ANY_VALUE = settings(
    max_examples=40,
    deadline=None,
    # One store for all examples is meant, and so is one test in several classes.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)

WRITER = """
import sys
from db import open_store
from tests.values import a_key, a_measurement
store = open_store(sys.argv[1])
for number in range(100_000):
    store.record(a_measurement(f"{sys.argv[2]}-{number}", a_key(64 + number % 3)))
    print(f"{sys.argv[2]}-{number}", flush=True)
"""

CLAIMER = """
import sys
from db import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while claim := store.claim(sys.argv[2]):
    print(claim.job.id, flush=True)
"""

OPENER = """
import sys
from db import open_store
print("ready", flush=True)
sys.stdin.readline()
with open_store(sys.argv[1]) as store:
    print(store.revision(), store.record(__import__("tests.values").values.a_measurement(sys.argv[2])))
"""

FORKER = """
import os, sys
from db import open_store
from tests.values import a_measurement
store = open_store(sys.argv[1])
store.record(a_measurement("before"))
child = os.fork()
store.record(a_measurement("child" if child == 0 else "parent"))
if child == 0:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class StoreContract:
    """Needs a fixture `address`: an empty database."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def store(self, address, clock):
        with open_store(address, clock=clock) as store:
            yield store

    # Measurements

    def test_a_measurement_comes_back_as_it_was(self, store: SqlStore) -> None:
        measurement = a_measurement("one")
        assert store.record(measurement)
        assert store.measurements(a_key()) == [measurement]
        assert store.measurements(a_key(8)) == []

    def test_an_attempt_counts_once(self, store: SqlStore) -> None:
        assert store.record(a_measurement("one"))
        assert not store.record(a_measurement("one"))
        assert not store.record(a_measurement("one", a_key(8)))
        assert [m.attempt for m in store.measurements(a_key())] == ["one"]

    def test_without_an_attempt_the_content_counts_once(self, store: SqlStore) -> None:
        assert store.record(a_measurement(""))
        assert store.record(a_measurement("", measured_at=2.0))
        assert not store.record(a_measurement(""))
        assert len(store.measurements(a_key())) == 2

    def test_measurements_are_oldest_first(self, store: SqlStore) -> None:
        for attempt, measured_at in (("b", 2.0), ("c", 2.0), ("a", 1.0)):
            store.record(a_measurement(attempt, measured_at=measured_at))
        assert [m.attempt for m in store.measurements(a_key())] == ["a", "b", "c"]

    def test_another_driver_is_the_same_key_and_is_kept(self, store: SqlStore) -> None:
        other = a_key(device=dataclasses.replace(CPU, driver="clang 19"))
        store.record(a_measurement("old"))
        store.record(a_measurement("new", other))
        assert [m.key.device.driver for m in store.measurements(a_key())] == ["clang 14", "clang 19"]
        store.record(a_measurement("metal", a_key(device=dataclasses.replace(CPU, device="METAL"))))
        assert [device.driver for device in store.devices("CPU", 9)] == ["clang 14", "clang 19"]
        assert [device.driver for device in store.devices("CPU", 1)] == ["clang 19"]
        assert store.devices("NONE", 9) == []

    def test_old_measurements_go_and_the_last_of_each_candidate_stays(self, store: SqlStore) -> None:
        for number in range(5):
            store.record(a_measurement(f"a{number}", measured_at=float(number)))
        other = dataclasses.replace(a_measurement("other", measured_at=0.5), candidate=Candidate.of("direct"))
        store.record(other)
        store.record(a_measurement("elsewhere", a_key(8), measured_at=0.25))
        count = {"measurements": 3, "winners": 0, "jobs": 0, "tasks": 0, "workers": 0}
        assert store.prunable(3.0) == count
        assert store.prune(3.0) == count
        assert [m.attempt for m in store.measurements(a_key())] == ["other", "a3", "a4"]
        assert [m.attempt for m in store.measurements(a_key(8))] == ["elsewhere"]
        assert store.prune(100.0)["measurements"] == 1
        assert [m.attempt for m in store.measurements(a_key())] == ["other", "a4"]
        assert not any(store.prune(100.0).values())

    def test_what_went_well_and_what_a_winner_rests_on_stays(self, store: SqlStore) -> None:
        def record(attempt: str, at: float, **changed: Any) -> None:
            store.record(dataclasses.replace(a_measurement(attempt, measured_at=at), **changed))

        here, there = a_key(), a_key(device=dataclasses.replace(CPU, driver="clang 19"))
        for attempt, key in (("here", here), ("there", there)):
            record(f"{attempt}-decided", 1.0, key=key)
            record(f"{attempt}-older", 2.0, key=key)
            record(f"{attempt}-ok", 3.0, key=key)
            record(f"{attempt}-crashed", 4.0, key=key, status=Status.CRASHED)
            record(f"{attempt}-last", 5.0, key=key, status=Status.TIMEOUT)
        for attempts in ({"direct": "here-older"}, {"direct": "here-decided"}):
            store.decide(dataclasses.replace(a_winner(decided_at=6.0), provenance={"attempts": attempts}))
        assert store.prunable(100.0)["measurements"] == store.prune(100.0)["measurements"] == 5
        assert {m.attempt for m in store.measurements(here)} == {
            "here-decided", "here-ok", "here-last", "there-ok", "there-last",
        }  # fmt: skip

    def test_what_is_old_is_found_however_much_of_it_stays(
        self, store: SqlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("db.retention.ROWS_AT_ONCE", 3)
        for number in range(10):
            store.record(a_measurement(f"last{number}", a_key(number + 1), measured_at=2.0))
        for number in range(10):
            store.record(a_measurement(f"old{number}", a_key(number + 1), measured_at=1.0))
        assert store.prune(3.0)["measurements"] == 10
        assert store.counts()["measurements"] == 10
        asked = iter([False] * 4)
        for number in range(10):
            store.record(a_measurement(f"old{number}", a_key(number + 1), measured_at=1.0))
        # Four transactions of three rows: the ten that stay, and two of those that go.
        assert store.prune(3.0, should_stop=lambda: next(asked, True))["measurements"] == 2

    def test_former_winners_go_once_they_were_superseded_long_ago(self, store: SqlStore) -> None:
        ids = [store.decide(a_winner(decided_at=float(at), tile=at)) for at in range(1, 6)]
        store.decide(a_winner(a_key(8), decided_at=1.0))
        assert store.prunable(3.5)["winners"] == 2
        assert store.prune(3.5)["winners"] == 2  # the third was superseded at 4
        assert [winner_id for winner_id, _ in store.history(a_key())] == ids[:1:-1]
        store.set_state(ids[2], WinnerState.VERIFIED)  # somebody goes back to it
        assert store.prune(100.0)["winners"] == 1
        assert store.winner(a_key()) == a_winner(decided_at=3.0, tile=3)
        assert [winner_id for winner_id, _ in store.history(a_key())] == [ids[4], ids[2]]
        assert store.lookup([a_key(8).digest]) == {a_key(8).digest: a_winner(a_key(8))}

    def test_where_nothing_is_old_no_winner_is_forgotten(self, store: SqlStore) -> None:
        for at in (1.0, 2.0):
            store.decide(a_winner(decided_at=at))
        before = store.changes()
        assert store.prune(1.5)["winners"] == 0
        assert store.changes() == before
        assert store.prune(3.0)["winners"] == 1
        assert store.changes() > before

    @pytest.mark.parametrize("state", ["pinned", "revoked", "banned"])
    def test_what_a_person_said_of_a_winner_holds_for_ever(self, store: SqlStore, state: str) -> None:
        said = store.decide(a_winner(decided_at=1.0, tile=2))
        store.set_state(said, WinnerState(state))
        for at in (2.0, 3.0):
            store.set_state(store.decide(a_winner(decided_at=at, tile=4)), WinnerState.VERIFIED)
        assert store.prune(100.0)["winners"] == 1
        assert [winner.state for _, winner in store.history(a_key())] == ["verified", state]
        if state == "banned":
            store.decide(a_winner(decided_at=4.0, tile=2))
            assert store.winner(a_key()) == a_winner(decided_at=3.0)

    def test_old_jobs_go_with_their_keys_once_they_have_ended(
        self, store: SqlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("db.retention.ROWS_AT_ONCE", 2)
        done, cancelled, running, waiting = (
            store.submit([a_key(10 * number + n) for n in range(1, 4)], BUDGET, Terms(priority=-number))
            for number in range(4)
        )
        for _ in done.keys:
            store.finish(store.claim("w"), "no such luck")
        store.cancel(cancelled.id)
        claim = store.claim("w")
        assert claim.job.id == running.id
        assert store.prune(store.now() - 3600.0)["jobs"] == 0
        later = store.now() + 3600.0
        assert store.prunable(later)["jobs"] == 2
        assert store.prune(later)["jobs"] == 2
        assert [job.id for job in store.jobs()] == [waiting.id, running.id]
        assert store.counts()["job_keys"] == 6
        assert store.progress(claim, {})
        store.finish(claim)
        assert store.job(running.id).done_keys == 1
        assert store.submit(done.keys, BUDGET).id != done.id
        assert store.check() == []

    @ANY_VALUE
    @given(measurement=any_value.measurements)
    def test_any_measurement_comes_back_as_it_was(self, store: SqlStore, measurement: Measurement) -> None:
        if store.record(measurement):
            assert measurement in store.measurements(measurement.key)

    # Winners

    def test_the_last_decision_is_the_winner(self, store: SqlStore) -> None:
        assert store.winner(a_key()) is None
        first, second = a_winner(tile=2), a_winner(tile=4, decided_at=2.0)
        first_id, second_id = store.decide(first), store.decide(second)
        assert store.winner(a_key()) == second
        assert store.winners() == [(second_id, second)]
        assert store.winner_by_id(first_id) == first
        assert store.history(a_key()) == [(second_id, second), (first_id, first)]
        assert store.history(a_key(16)) == []
        assert store.lookup([a_key().digest, a_key(8).digest, "\x00", "x"]) == {a_key().digest: second}

    def test_the_same_decision_again_changes_nothing(self, store: SqlStore) -> None:
        assert store.decide(a_winner()) == store.decide(a_winner())
        assert store.counts()["winners"] == 1

    @pytest.mark.parametrize("held", [WinnerState.PINNED, WinnerState.REVOKED])
    def test_what_a_person_said_stays(self, store: SqlStore, held: WinnerState) -> None:
        first_id = store.decide(a_winner(tile=2))
        assert store.set_state(first_id, held).state is held
        second_id = store.decide(a_winner(tile=4, decided_at=2.0))
        assert store.decide(a_winner(tile=4, decided_at=2.0)) == second_id
        assert store.winners() == [(first_id, a_winner(tile=2, state=held))]
        assert store.winner_by_id(second_id) == a_winner(tile=4, decided_at=2.0)
        found = store.lookup([a_key().digest])
        assert found == ({} if held is WinnerState.REVOKED else {a_key().digest: a_winner(tile=2, state=held)})

    def test_a_banned_candidate_does_not_win_again_and_another_does(self, store: SqlStore) -> None:
        first_id = store.decide(a_winner(tile=2))
        assert store.set_state(first_id, WinnerState.BANNED).state is WinnerState.BANNED
        assert store.lookup([a_key().digest]) == {}
        again_id = store.decide(a_winner(tile=2, decided_at=2.0))
        assert store.winner_by_id(again_id) == a_winner(tile=2, decided_at=2.0)
        assert store.lookup([a_key().digest]) == {}
        other = a_winner(tile=4, decided_at=3.0)
        store.decide(other)
        assert store.lookup([a_key().digest]) == {a_key().digest: other}
        assert store.merge([a_winner(tile=2, decided_at=4.0)]) == 1
        assert store.winner(a_key()) == other
        store.set_state(first_id, WinnerState.VERIFIED)
        store.decide(a_winner(tile=2, decided_at=5.0))
        assert store.winner(a_key()) == a_winner(tile=2, decided_at=5.0)

    def test_a_former_decision_can_be_pinned(self, store: SqlStore) -> None:
        first_id, second_id = store.decide(a_winner(tile=2)), store.decide(a_winner(tile=4, decided_at=2.0))
        store.set_state(first_id, WinnerState.REVOKED)
        assert store.winner(a_key()) == a_winner(tile=4, decided_at=2.0)
        store.set_state(first_id, WinnerState.PINNED)
        assert store.winner(a_key()) == a_winner(tile=2, state="pinned")
        assert store.winner_by_id(second_id) == a_winner(tile=4, decided_at=2.0)

    @pytest.mark.parametrize("winner_id", [0, -1, 7, 2**31, 2**70])
    def test_an_unknown_winner(self, store: SqlStore, winner_id: int) -> None:
        assert store.winner_by_id(winner_id) is None
        with pytest.raises(LookupError, match=f"found none with {winner_id}"):
            store.set_state(winner_id, WinnerState.PINNED)

    def test_winners_by_device_and_page(self, store: SqlStore) -> None:
        metal = dataclasses.replace(CPU, device="METAL")
        for number in range(5):
            store.decide(a_winner(a_key(64 + number), decided_at=number))
        store.decide(a_winner(a_key(device=metal), decided_at=9.0))
        assert [winner.decided_at for _, winner in store.winners()] == [9.0, 4.0, 3.0, 2.0, 1.0, 0.0]
        assert [winner.decided_at for _, winner in store.winners(device="METAL")] == [9.0]
        assert [winner.decided_at for _, winner in store.winners(device="CPU", limit=2, offset=1)] == [3.0, 2.0]
        assert store.winners(device="nothing \x00 \ud800") == []
        assert store.winners(limit=-1) == store.winners(offset=2**80) == []

    def test_a_winner_must_be_finite(self, store: SqlStore) -> None:
        with pytest.raises(ValueError, match="must be finite"):
            store.decide(dataclasses.replace(a_winner(), error=float("nan")))
        assert store.counts()["winners"] == 0

    def test_a_merge_keeps_what_says_more(self, store: SqlStore) -> None:
        store.decide(a_winner(a_key(1), tile=2, decided_at=5.0))
        store.set_state(store.decide(a_winner(a_key(2), tile=2)), WinnerState.REVOKED)
        newer = a_winner(a_key(3), decided_at=9.0)
        store.decide(newer)
        incoming = [a_winner(a_key(cout), decided_at=7.0) for cout in (1, 2, 3, 4)]
        assert store.merge(incoming) == 2
        assert store.merge(incoming) == 0
        assert store.winner(a_key(1)) == incoming[0]
        assert store.winner(a_key(2)) == a_winner(a_key(2), tile=2, state="revoked")
        assert store.winner(a_key(3)) == newer
        assert store.winner(a_key(4)) == incoming[3]
        assert store.counts()["winners"] == 5
        with pytest.raises(ValueError, match="must be finite"):
            store.merge([a_winner(a_key(5)), dataclasses.replace(a_winner(a_key(6)), error=float("nan"))])
        assert store.winner(a_key(5)) is None

    def test_a_merge_of_thousands(self, store: SqlStore) -> None:
        incoming = [a_winner(a_key(1 + number)) for number in range(MERGED_AT_ONCE + 100)]
        assert store.merge(iter(incoming)) == len(incoming)
        assert [winner for _, winner in store.winners(limit=9999)][::-1] == incoming

    def test_whether_it_can_be_written_to_is_found_out_by_writing(self, store: SqlStore, address: str) -> None:
        query = text("SELECT count FROM probe")
        changes, often = store.changes(), 600 if store.serves_fleet else 5
        for _ in range(often):
            store.expect_writable()
        with open_store(address) as other, other._reading() as connection:
            assert connection.execute(query).scalar_one() == often
            if store.serves_fleet:  # what is written again and again stays small
                size = connection.execute(text("SELECT pg_relation_size('probe')")).scalar_one()
                assert size <= 2 * 8192
        assert store.changes() == changes  # and what is remembered of winners holds
        with store._writing() as connection:
            connection.execute(text("DELETE FROM probe"))
        store.expect_writable()
        with store._reading() as connection:
            assert connection.execute(query).scalar_one() == 1

    def test_what_is_remembered_is_right_after_every_write(self, store: SqlStore, address: str) -> None:
        digest = a_key().digest

        def strategy() -> object:
            found = store.lookup([digest, a_key(1).digest])
            return dict(found[digest].candidate.params)["tile"] if digest in found else None

        assert strategy() is None
        winner_id = store.decide(a_winner(tile=2))
        assert strategy() == 2
        with open_store(address) as other:
            other.decide(a_winner(tile=4, decided_at=2.0))
            assert strategy() == 4
            other.set_state(winner_id, WinnerState.PINNED)
            assert strategy() == 2
            before = store.changes()
            other.record(a_measurement("one"))
            other.submit([a_key()], BUDGET)
            assert store.changes() == before
        with store._writing() as connection:  # somebody with a SQL shell
            connection.exec_driver_sql("DELETE FROM winners")
        assert strategy() is None

    def test_nothing_stale_is_ever_read_while_others_write(self, store: SqlStore) -> None:
        """A reader sees every decision that was acknowledged before it asked."""
        acknowledged, seen, done = [0.0], list[tuple[float, float]](), threading.Event()
        store.decide(a_winner(decided_at=0.0))

        def read() -> None:
            while not done.is_set():
                before = acknowledged[0]
                seen.append((before, store.lookup([a_key().digest])[a_key().digest].decided_at))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for number in range(1, 60):
            store.decide(a_winner(decided_at=float(number)))
            acknowledged[0] = float(number)
        done.set()
        for reader in readers:
            reader.join()
        assert all(before <= found for before, found in seen)
        assert len({found for _, found in seen}) > 3

    def test_many_keys_at_once(self, store: SqlStore) -> None:
        keys = [a_key(1 + number) for number in range(1100)]
        store.submit(keys, BUDGET)
        store.decide(a_winner(keys[-1]))
        assert store.lookup([key.digest for key in keys]).keys() == {keys[-1].digest}

    @ANY_VALUE
    @given(winner=any_value.winners)
    def test_any_winner_comes_back_as_it_was(self, store: SqlStore, winner: Winner) -> None:
        assert store.winner_by_id(store.decide(winner)) == winner

    # Jobs

    def test_a_claim_reads_one_key_however_many_its_job_has(self, store: SqlStore) -> None:
        job = store.submit([a_key(cout) for cout in range(1, 601)], BUDGET)
        parsed_key.cache_clear()
        claims = [_claim(store), _claim(store)]
        assert [(claim.key, claim.index, claim.job.total_keys) for claim in claims] == [
            (a_key(1), 0, 600), (a_key(2), 1, 600),
        ]  # fmt: skip
        assert parsed_key.cache_info().misses == 2
        store.finish(claims[1])
        store.release(claims[0])
        again = store.job(job.id)
        assert again is not None
        assert again.states[:3] == (JobState.QUEUED, JobState.DONE, JobState.QUEUED)

    def test_a_job_from_queue_to_end(self, store: SqlStore, clock: Clock) -> None:
        keys = (a_key(8), a_key(4), a_key(8))
        queued = (JobState.QUEUED,) * 2
        job = store.submit(keys, Budget(seconds=1.5, trials=3), Terms(priority=2, deadline=9000.0, idle=True))
        assert job == Job(
            id=job.id, keys=keys[:2], budget=Budget(seconds=1.5, trials=3), created_at=1000.0, states=queued,
            terms=Terms(priority=2, deadline=9000.0, idle=True),
        )  # fmt: skip
        assert store.job(job.id) == job
        clock.now_s = 1001.0
        first = store.claim("me")
        assert first is not None
        assert first.job == dataclasses.replace(
            job, state=JobState.RUNNING, keys=keys[:1], states=(JobState.RUNNING,), omitted=1, started_at=1001.0
        )
        assert (first.index, first.key) == (0, keys[0])
        second = store.claim("me too")
        assert second is not None
        assert store.claim("me") is None
        assert store.progress(second, {"best": "hybrid_grid"})
        assert store.job(job.id).progress == {"best": "hybrid_grid"}
        clock.now_s = 1002.0
        store.finish(second)
        half = store.job(job.id)
        assert half is not None
        assert (half.state, half.done_keys, half.states[1]) == (JobState.RUNNING, 1, JobState.DONE)
        store.finish(first)
        ended = store.job(job.id)
        assert ended is not None
        assert (ended.state, ended.done_keys, ended.ended_at) == (JobState.DONE, 2, 1002.0)
        store.finish(first, error="too late")
        assert store.job(job.id) == ended
        assert not store.progress(first, {})
        assert store.jobs(state=JobState.DONE) == [ended]
        assert store.jobs(state=JobState.QUEUED) == []

    def test_a_failed_job_says_why(self, store: SqlStore) -> None:
        job = store.submit([a_key()], BUDGET)
        store.finish(_claim(store), error="no \x00 compiler \ud800")
        failed = store.job(job.id)
        assert failed is not None
        assert (failed.state, failed.error) == (JobState.FAILED, f"{a_key()}: no \\x00 compiler \\ud800")

    def test_a_key_that_fails_leaves_the_others(self, store: SqlStore) -> None:
        job = store.submit([a_key(4), a_key(8)], BUDGET)
        store.finish(_claim(store), error="unlucky")
        assert store.job(job.id).state is JobState.QUEUED
        store.finish(_claim(store))
        failed = store.job(job.id)
        assert failed is not None
        assert failed.states == (JobState.FAILED, JobState.DONE)
        assert failed.error == f"1 of 2 shapes failed, the first: {a_key(4)}: unlucky"

    def test_the_same_keys_are_the_same_job_while_it_is_active(self, store: SqlStore) -> None:
        job = store.submit([a_key(4), a_key(8)], BUDGET)
        again = store.submit([a_key(8), a_key(4)], Budget(trials=9), Terms(priority=3))
        assert (again.id, again.terms.priority) == (job.id, 3)
        assert store.submit([a_key(8)], BUDGET).id != job.id
        first = _claim(store)
        assert store.submit([a_key(4), a_key(8)], BUDGET).id == job.id
        store.finish(first)
        store.finish(_claim(store))
        assert store.submit([a_key(4), a_key(8)], BUDGET, retry_of=job.id).id != job.id
        assert store.jobs()[0].retry_of == job.id

    def test_who_asks_for_the_same_gets_what_satisfies_both(self, store: SqlStore) -> None:
        soon = Terms(priority=5, deadline=store.now() + 60, idle=True)
        job = store.submit([a_key(4)], Budget(seconds=60.0, trials=9), soon)
        later = Terms(priority=-1, deadline=store.now() + 90, idle=True)
        both = store.submit([a_key(4)], Budget(seconds=10.0, trials=20), later)
        assert both == store.job(job.id)
        assert (both.budget, both.terms) == (Budget(seconds=60.0, trials=20), dataclasses.replace(later, priority=5))
        assert store.submit([a_key(4)], Budget(seconds=5.0)).budget == Budget(seconds=60.0)
        last = store.submit([a_key(4)], Budget(trials=500))  # which no number of seconds is equal to
        assert (last.budget, last.terms) == (Budget(seconds=60.0), Terms(priority=5))

    def test_a_job_needs_a_key(self, store: SqlStore) -> None:
        with pytest.raises(ValueError, match="at least one key"):
            store.submit([], BUDGET)

    def test_the_oldest_is_claimed_first_and_keeps_its_place(self, store: SqlStore) -> None:
        first, second = (store.submit([a_key(cout)], BUDGET).id for cout in (4, 8))
        assert [job.id for job in store.jobs()] == [second, first]
        assert [job.id for job in store.jobs(limit=1, offset=1)] == [first]
        claim = _claim(store)
        assert claim.job.id == first
        store.release(claim)
        assert [_claim(store).job.id for _ in range(2)] == [first, second]

    def test_a_higher_priority_goes_first(self, store: SqlStore) -> None:
        for cout, priority in ((4, 0), (8, -1), (16, 5), (32, 5)):
            store.submit([a_key(cout)], BUDGET, Terms(priority=priority))
        assert [_claim(store).key for _ in range(4)] == [a_key(cout) for cout in (16, 32, 4, 8)]

    def test_each_kind_of_device_has_its_keys(self, store: SqlStore, clock: Clock) -> None:
        metal = dataclasses.replace(CPU, device="METAL", driver="14.5")
        beam = dataclasses.replace(CPU, flags=(("BEAM", "2"),))
        store.submit([a_key(4), a_key(8, metal), a_key(8, beam)], BUDGET)
        clock.now_s += 1
        store.submit([a_key(16, metal)], BUDGET)
        assert store.waiting() == [
            Waiting(target=target_of(device), device=device, keys=2, since=1000.0)
            for device in sorted((CPU, metal), key=target_of)
        ]
        newer = dataclasses.replace(metal, driver="15.0")
        assert [store.claim("m", target=target_of(newer)).key for _ in range(2)] == [a_key(8, metal), a_key(16, metal)]
        assert store.claim("m", target=target_of(newer)) is None
        assert [store.claim("c", target=target_of(CPU)).key for _ in range(2)] == [a_key(4), a_key(8, beam)]
        assert store.waiting() == []

    def test_a_key_is_tuned_by_one_at_a_time(self, store: SqlStore) -> None:
        store.submit([a_key(4)], BUDGET)
        other = store.submit([a_key(4), a_key(8)], BUDGET)
        first = _claim(store)
        assert _claim(store).key == a_key(8)
        assert store.claim("me") is None
        store.finish(first)
        assert _claim(store).job.id == other.id

    def test_what_waits_for_an_idle_device(self, store: SqlStore) -> None:
        store.submit([a_key(4)], BUDGET, Terms(idle=True))
        assert store.claim("me", busy=True) is None
        assert store.claim("me") is not None

    def test_after_its_deadline_a_job_has_failed(self, store: SqlStore, clock: Clock) -> None:
        job = store.submit([a_key(4), a_key(8)], BUDGET, Terms(deadline=1010.0))
        store.finish(_claim(store))
        claim = _claim(store)
        assert store.expire() == 0
        clock.now_s = 1010.0
        assert store.expire() == 1
        late = store.job(job.id)
        assert late is not None
        assert (late.state, late.states) == (JobState.FAILED, (JobState.DONE, JobState.FAILED))
        assert late.error == f"1 of 2 shapes failed, the first: {a_key(8)}: its deadline passed"
        assert not store.progress(claim, {})
        assert store.expire() == 0

    def test_what_a_kill_left_running_goes_back(self, store: SqlStore, clock: Clock) -> None:
        job = store.submit([a_key(4), a_key(8)], BUDGET)
        dead, alive = store.claim("dead"), store.claim("alive")
        assert store.progress(dead, {"trial": 3})
        clock.now_s += 60.0
        store.beat(["alive"])
        assert store.recover(idle_s=61.0) == 0
        assert store.recover(idle_s=60.0) == 1
        assert store.job(job.id).states == (JobState.QUEUED, JobState.RUNNING)
        assert not store.progress(dead, {})
        assert store.progress(alive, {"trial": 3})
        clock.now_s -= 3600.0  # set back: what is said to come from the future is idle, too
        assert store.recover(idle_s=60.0) == 1
        assert store.job(job.id).state is JobState.QUEUED
        again = store.claim("new")
        assert again is not None
        assert (again.key, again.job.progress) == (a_key(4), {"trial": 3})
        assert store.recover() == 1

    def test_a_former_owner_is_not_heard(self, store: SqlStore) -> None:
        job = store.submit([a_key()], BUDGET)
        old = store.claim("old")
        store.recover()
        new = store.claim("new")
        assert not store.progress(old, {})
        store.release(old)
        store.finish(old)
        assert store.job(job.id).states == (JobState.RUNNING,)
        assert store.progress(new, {})
        store.finish(new)
        assert [job.state for job in store.jobs()] == [JobState.DONE]

    def test_a_cancelled_job_stays_cancelled(self, store: SqlStore) -> None:
        job = store.submit([a_key(4), a_key(8)], BUDGET)
        claim = _claim(store)
        assert store.cancel(job.id).state is JobState.CANCELLED
        assert store.job(job.id).states == (JobState.CANCELLED,) * 2
        assert not store.progress(claim, {})
        store.release(claim)
        store.finish(claim)
        assert store.cancel(job.id).state is JobState.CANCELLED
        assert store.claim("me") is None

    @pytest.mark.parametrize("job_id", ["nothing", "", "\x00", "\ud800"])
    def test_an_unknown_job(self, store: SqlStore, job_id: str) -> None:
        assert store.job(job_id) is None
        nobodys = Claim(job=Job(id=job_id, keys=(a_key(),), budget=BUDGET), index=0, owner="me")
        assert not store.progress(nobodys, {})
        store.release(nobodys)
        for change in (lambda: store.cancel(job_id), lambda: store.finish(nobodys)):
            with pytest.raises(LookupError, match="expected the id of a job"):
                change()

    # Threads and processes

    def test_threads_share_a_store(self, store: SqlStore) -> None:
        jobs: list[str] = []

        def work(number: int) -> None:
            jobs.append(store.submit([a_key(4), a_key(8)], BUDGET).id)
            store.decide(a_winner(decided_at=number))
            for attempt in range(5):
                store.record(a_measurement(f"{number}-{attempt}", a_key(32 + attempt)))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(jobs) == 8
        assert len(set(jobs)) == 1
        assert {table: count for table, count in store.counts().items() if count} == {
            "devices": 1, "keys": 8, "measurements": 40, "winners": 8, "jobs": 1, "job_keys": 2, "changes": 1,
            "probe": 1,
        }  # fmt: skip
        assert len(store.winners()) == 1

    @pytest.mark.parametrize("acknowledged", [1, 40])
    def test_nothing_acknowledged_is_lost_by_kill_9(self, store: SqlStore, address: str, acknowledged: int) -> None:
        with child(WRITER, address, "a") as first, child(WRITER, address, "b") as second:
            assert first.stdout
            assert second.stdout
            said = [first.stdout.readline().strip() for _ in range(acknowledged)]
            first.kill()
            second.kill()
            said += first.stdout.read().split() + second.stdout.read().split()
        found = {m.attempt for cout in range(64, 67) for m in store.measurements(a_key(cout))}
        assert len(said) >= acknowledged
        assert set(said) <= found
        assert len(found) <= len(said) + 2  # each may have been between its commit and its word
        assert store.check() == []
        assert store.record(a_measurement("after"))

    def test_no_two_processes_claim_the_same_job(self, store: SqlStore, address: str) -> None:
        jobs = [store.submit([a_key(1 + number)], BUDGET).id for number in range(60)]
        with child(CLAIMER, address, "a") as first, child(CLAIMER, address, "b") as second:
            claimed = _together(first, second)
        assert sorted(claimed[0] + claimed[1]) == sorted(jobs)
        assert {job.state for job in store.jobs()} == {JobState.RUNNING}

    def test_two_processes_open_a_fresh_database(self, address: str) -> None:
        with child(OPENER, address, "a") as first, child(OPENER, address, "b") as second:
            said = _together(first, second)
        assert said == [[HEAD, "True"]] * 2
        with open_store(address) as store:
            assert store.counts()["measurements"] == 2
            assert store.check() == []

    def test_a_forked_child_goes_on(self, store: SqlStore, address: str) -> None:
        with child(FORKER, address) as parent:
            assert parent.communicate(timeout=60)[0].strip() == "0"
        assert {m.attempt for m in store.measurements(a_key())} == {"before", "child", "parent"}
        assert store.check() == []


def _claim(store: SqlStore) -> Claim:
    claim = store.claim("me")
    assert claim is not None
    return claim


def _together(*children) -> list[list[str]]:
    """What each printed after all were ready and let go at once."""
    for process in children:
        assert process.stdout.readline() == "ready\n"
    for process in children:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0].split() for process in children]
