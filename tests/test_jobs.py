"""Jobs: they survive kills, end when told to, and fail with a reason."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from databases import KINDS, child, new_database
from served import CPU, UNLUCKY, NoRunner, OneDevice, body, ended, key_of, scripted_tune, served, until
from sqlalchemy import event
from starlette.datastructures import Headers

from api.authority import PRESENTED, Authority
from api.jobs import JobRunner, Work
from api.lanes import LocalLanes, Offer, as_measured_by
from api.problem import ProblemError
from api.readiness import Readiness
from api.routes import health
from api.routes import jobs as routes
from api.runners import Runners
from api.service import Service
from api.shared import Followed, Shared
from autotune.device_lock import DeviceBusyError
from autotune.job import Budget, Claim, Job, JobState, Terms, Waiting, target_of
from autotune.runner import DeviceUnavailableError
from autotune.session import TuneCancelledError
from autotune.winner import Winner
from db import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnreachableError,
    Scope,
    SqlStore,
    StatementRefusedError,
    open_store,
)
from db.address import dialect_for
from strategies.key import ConvKey, DeviceSpec

FEW = Budget(trials=3)


def submit(http: httpx.Client, *shapes: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = http.post("/tune", json={"shapes": list(shapes), **more})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    return job


def events(
    http: httpx.Client, job_id: str, last_event_id: str = "", *, begun: threading.Event | None = None
) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) until the stream ends; `begun` is set once there is one."""
    found = []
    with http.stream("GET", f"/jobs/{job_id}/events", headers={"Last-Event-ID": last_event_id}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if not line and "data" in fields:
                found.append((fields["id"], fields["event"], json.loads(fields["data"])))
                if begun is not None:
                    begun.set()
                fields = {}
            elif line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
    return found


def test_job_is_followed_to_its_end(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", trial_s=0.5) as service:
        job = submit(service.http, body(16), body(32))
        stream = events(service.http, job["id"])
        ids, names, states = zip(*stream, strict=True)
        assert len(set(ids)) == len(ids) >= 3
        assert names == ("job",) * (len(names) - 1) + ("end",)
        assert states[-1]["state"] == "done"
        assert [state["done_keys"] for state in states] == sorted(state["done_keys"] for state in states)
        assert any(state["progress"].get("best") for state in states)
        # a client that saw all is told not to come back; one that missed the end is told the end
        seen_all = service.http.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": ids[-1]})
        assert seen_all.status_code == 204
        assert events(service.http, job["id"], ids[0]) == stream[-1:]
        [listed] = service.http.get("/jobs").json()["jobs"]
        assert (listed["id"], listed["total_keys"], "keys" in listed) == (job["id"], 2, False)


def test_same_keys_are_the_same_job(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", trial_s=5.0) as service:
        job = submit(service.http, body(16))
        assert submit(service.http, body(16), body(16))["id"] == job["id"]
        assert submit(service.http, body(32))["id"] != job["id"]
        assert submit(service.http, {**body(16), "policy": {"allow_tf32": True}})["id"] != job["id"]


def test_cancel_queued_and_running(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", trial_s=0.2) as service:
        running = submit(service.http, body(16), trials=1000)
        queued = submit(service.http, body(32))
        until(lambda: service.http.get(f"/jobs/{running['id']}").json()["state"] == "running")
        assert service.http.delete(f"/jobs/{queued['id']}").json()["state"] == "cancelled"
        assert service.http.delete(f"/jobs/{running['id']}").json()["state"] == "cancelled"
        assert ended(service.http, submit(service.http, body(48))["id"])["state"] == "done"  # the thread is free
        assert service.http.get(f"/jobs/{running['id']}").json()["state"] == "cancelled"
        assert service.http.delete(f"/jobs/{running['id']}").json()["state"] == "cancelled"


def test_one_shape_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    with served(tmp_path / "a.db") as service:
        job = ended(service.http, submit(service.http, body(16), body(UNLUCKY), body(32))["id"])
        assert (job["state"], job["done_keys"]) == ("failed", 3)
        assert job["error"].startswith("1 of 3 shapes failed, the first: 1x13x56x56")
        assert job["error"].endswith("even direct failed on two lines")
        found = service.http.post("/lookup", json={"shapes": [body(16), body(UNLUCKY), body(32)]}).json()
        assert set(found["winners"]) == {key_of(16).digest, key_of(32).digest}
        assert service.http.get("/readyz").status_code == 200


def test_killed_service_goes_on_where_it_was(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    with served(database, trial_s=0.4) as service:
        first = submit(service.http, body(16), body(32), trials=4)
        second = submit(service.http, body(48))

        def amid_its_second_key() -> bool:
            job = service.http.get(f"/jobs/{first['id']}").json()
            return (job["done_keys"], job["state"]) == (1, "running")  # between two keys it is queued

        until(amid_its_second_key)
        service.kill()
    with open_store(database) as store:
        before = len(store.measurements(key_of(16)))
        assert [job.id for job in store.jobs(state=JobState.RUNNING)] == [first["id"]]
    with served(database) as service:
        assert ended(service.http, first["id"])["state"] == "done"
        assert ended(service.http, second["id"])["state"] == "done"
    with open_store(database) as store:
        assert before == len(store.measurements(key_of(16))) == 4
        assert len(store.measurements(key_of(32))) == 4
        assert store.check() == []


def test_stopped_service_puts_its_job_back(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    with served(database, trial_s=0.1) as service:
        job = submit(service.http, body(16), trials=1000)
        until(lambda: service.http.get(f"/jobs/{job['id']}").json()["progress"].get("trials"))
        begun = threading.Event()
        stream = threading.Thread(target=events, args=(service.http, job["id"]), kwargs={"begun": begun})
        stream.start()
        assert begun.wait(20)  # an open stream does not keep the service from ending
        assert service.stop() == 0
        stream.join(10)
    with open_store(database) as store:
        found = store.job(job["id"])
        assert found is not None
        assert (found.state, bool(store.measurements(key_of(16)))) == (JobState.QUEUED, True)


class Scripted:
    """A search that raises what it is told, call by call, then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, key: ConvKey, **options: Any) -> Winner:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return scripted_tune(0.0)(key, **options)


def lanes_of(runner: type[NoRunner] = NoRunner) -> LocalLanes:
    return LocalLanes(OneDevice(), lambda _: runner())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with open_store(tmp_path / "a.db") as store:
        yield store


def work(
    store: SqlStore, tune: Callable[..., Winner], keys: Sequence[ConvKey], budget: Budget = FEW
) -> tuple[JobRunner, str]:
    jobs = JobRunner(store, lanes_of(), tune=tune)
    job_id = store.submit(keys, budget).id
    jobs.start()
    return jobs, job_id


def state_of(store: SqlStore, job_id: str) -> JobState:
    job = store.job(job_id)
    assert job is not None
    return job.state


def test_busy_device_is_waited_for(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.jobs.BUSY_S", 0.05)
    tune = Scripted(DeviceBusyError("CPU is in use"), DeviceBusyError("CPU is in use"))
    jobs, job_id = work(store, tune, [key_of()])
    until(lambda: state_of(store, job_id) is JobState.DONE)
    assert tune.calls == 3
    jobs.stop()


def test_device_that_is_gone_fails_the_job(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one whose process was killed once or twice."""
    monkeypatch.setattr("api.jobs.BUSY_S", 0.05)
    gone = DeviceUnavailableError("CPU cannot be used: unplugged")
    tune = Scripted(*[gone] * 5)
    jobs, job_id = work(store, tune, [key_of()])
    until(lambda: state_of(store, job_id) is JobState.FAILED)
    job = store.job(job_id)
    assert job is not None
    assert (job.error, tune.calls) == (f"{key_of()}: CPU cannot be used: unplugged", 3)
    again = store.submit([key_of(32)], FEW)
    jobs.wake()
    until(lambda: state_of(store, again.id) is JobState.DONE)
    jobs.stop()


def test_a_device_that_cannot_be_used_fails_one_key_not_the_queue(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lane rests, which is said, and is tried anew: the first key that it can be used for ends that."""
    monkeypatch.setattr("api.jobs.BUSY_S", 0.01)
    gone = DeviceUnavailableError("CPU cannot be used: its process was killed")
    tune = Scripted(*[gone] * 6)
    jobs, job_id = work(store, tune, [key_of(20 + number) for number in range(12)])
    until(jobs.faults, 60)
    assert jobs.faults() == ["the lane local:CPU rests: CPU cannot be used: its process was killed"]
    said = "waiting until CPU can be used: CPU cannot be used: its process was killed"
    until(lambda: jobs.explained(store.job(job_id)).progress.get("waiting_for") == said, 60)
    assert (tune.calls, store.job(job_id).states.count(JobState.FAILED)) == (6, 1)
    jobs._rests["local:CPU"] = (time.monotonic(), "over")
    jobs.wake()
    until(lambda: state_of(store, job_id) is JobState.FAILED, 60)
    assert store.job(job_id).states.count(JobState.DONE) == 11
    assert jobs.alive
    jobs.stop()


def test_a_key_whose_flags_keep_its_process_from_beginning_fails(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: they say nothing of the device, and others must not wait for them."""
    monkeypatch.setattr("api.jobs.BUSY_S", 0.01)
    flagged = [replace(key_of(cin), device=replace(CPU, flags=(("NOOPT", "1"),))) for cin in (8, 9, 10)]
    tune = Scripted(*[DeviceUnavailableError("CPU cannot be used: not with that")] * 9)
    jobs, job_id = work(store, tune, [*flagged, key_of()])
    until(lambda: state_of(store, job_id) is JobState.FAILED, 60)
    assert [str(state) for state in store.job(job_id).states] == ["failed", "failed", "failed", "done"]
    jobs.stop()


def test_database_that_is_busy_for_a_while_fails_nothing(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.jobs.BUSY_S", 0.05)
    tune = Scripted(DatabaseBusyError("locked"), DatabaseBusyError("locked"))
    jobs, job_id = work(store, tune, [key_of()])
    until(lambda: state_of(store, job_id) is JobState.DONE)
    assert jobs.alive
    jobs.stop()
    assert not jobs.alive


def test_readers_do_not_wait_behind_writers(tmp_path: Path) -> None:
    """Another process keeps the file from being written: more requests wait for it than there are threads."""
    with served(tmp_path / "a.db", busy_timeout_s=200) as service, ThreadPoolExecutor(60) as threads:
        holder = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        posts = [threads.submit(httpx.post, f"{service.url}/tune", json=body(20 + n), timeout=300) for n in range(60)]
        time.sleep(3.0)  # until they wait: sooner asked, the answer says less
        known = [httpx.get(f"{service.url}/jobs", timeout=100).status_code]
        known.append(httpx.post(f"{service.url}/lookup", json={"shapes": [body()]}, timeout=100).status_code)
        waiting = [post for post in posts if not post.done()]
        holder.execute("ROLLBACK")
        holder.close()
        assert (known, len(waiting)) == ([200, 200], 60)
        assert {post.result().status_code for post in posts} == {202}


def test_what_the_database_never_takes_fails_its_key(store: SqlStore) -> None:
    tune = Scripted(StatementRefusedError("expected a server that accepts a statement, found: no rights"))
    jobs, job_id = work(store, tune, [key_of()])
    until(lambda: state_of(store, job_id) is JobState.FAILED)
    jobs.stop()
    job = store.job(job_id)
    assert job is not None
    assert (job.error, tune.calls) == (f"{key_of()}: expected a server that accepts a statement, found: no rights", 1)


class Measuring:
    """A search that is amid a measurement until it is told to stop, or until it is `released` if the runner is deaf."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.deaf, self.begun, self.released = deaf, threading.Event(), threading.Event()

    def __call__(self, key: ConvKey, *, should_stop: Callable[[], bool], **_: Any) -> Winner:
        self.begun.set()
        while not self.released.wait(0.01):
            if should_stop() and not self.deaf:
                break
        raise TuneCancelledError


def test_stop_does_not_wait_for_a_runner_that_does_not_listen(store: SqlStore) -> None:
    tune = Measuring(deaf=True)
    jobs, job_id = work(store, tune, [key_of()])
    assert tune.begun.wait(10)
    jobs.stop(timeout_s=0.05)
    assert (len(jobs._working), state_of(store, job_id)) == (1, JobState.QUEUED)
    tune.released.set()
    until(lambda: not jobs._working)
    assert state_of(store, job_id) is JobState.QUEUED


class ManyLanes(LocalLanes):
    """Eight devices of one kind."""

    def offer(self, waiting: Sequence[Waiting]) -> Offer:
        lanes = super().offer(waiting).lanes
        return Offer(lanes=tuple(replace(lane, name=f"{lane.name}-{i}") for lane in lanes for i in range(8)))


class Asked(OneDevice):
    """Notes each device that somebody has to be asked for."""

    def __init__(self) -> None:
        self.names_asked: set[str | None] = set()

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        self.names_asked.add(name)
        return super().describe("CPU")


def test_numbers_in_keys_open_no_devices() -> None:
    """Each would be a process in the thread in which all lanes are opened."""
    specs = [replace(CPU, device=f"CPU:{number}") for number in range(200)]
    waiting = [Waiting(target=target_of(spec), device=spec, keys=1, since=0.0) for spec in (*specs, CPU)]
    offer = LocalLanes(devices := Asked(), lambda _: NoRunner()).offer(waiting)
    assert devices.names_asked == {"CPU"}
    assert [lane.name for lane in offer.lanes] == ["local:CPU"]
    assert "another CPU:7 than this machine's" in str(offer.missing[target_of(specs[7])])


def test_stop_waits_for_a_database_that_is_away_but_once(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def release(claim: Claim) -> None:
        asked.append(claim.index)
        raise DatabaseUnreachableError("away")  # found out in 10 s, or more

    tune = Measuring(deaf=True)
    jobs = JobRunner(store, ManyLanes(OneDevice(), lambda _: NoRunner()), tune=tune)
    store.submit([key_of(8 + number) for number in range(8)], FEW)
    jobs.start()
    until(lambda: sum(work.claim is not None for work in jobs._working.values()) == 8)
    monkeypatch.setattr(store, "release", release)
    jobs.stop(timeout_s=0.05)
    assert len(asked) == 1
    tune.released.set()
    until(lambda: not jobs._working)


def test_cancelling_frees_the_thread_amid_a_measurement(store: SqlStore) -> None:
    tune = Measuring()
    jobs, job_id = work(store, tune, [key_of(), key_of(32)])
    assert tune.begun.wait(10)
    assert jobs.cancel(job_id).state is JobState.CANCELLED
    tune.begun.clear()
    store.submit([key_of(48)], FEW)
    jobs.wake()
    assert tune.begun.wait(5)
    jobs.stop()
    assert state_of(store, job_id) is JobState.CANCELLED


class Deaf:
    """A search that hears of nothing and works until it is `released`."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()

    def __call__(self, key: ConvKey, **options: Any) -> Winner:
        self.begun.set()
        assert self.released.wait(10)
        return scripted_tune(0.0)(key, **{**options, "should_stop": lambda: False, "on_progress": lambda _: None})


def test_a_job_that_was_cancelled_and_removed_costs_no_lane(
    store: SqlStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: died.append(str(failure.exc_value)))
    tune = Deaf()
    jobs, job_id = work(store, tune, [key_of()])
    assert tune.begun.wait(10)
    store.cancel(job_id)
    assert store.prune(store.now() + 3600.0)["jobs"] == 1
    tune.released.set()
    again = store.submit([key_of(32)], FEW)
    jobs.wake()
    until(lambda: state_of(store, again.id) is JobState.DONE)
    assert jobs.alive
    jobs.stop()
    assert died == []


def test_a_lane_that_ended_by_a_bug_is_said_and_opened_anew(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, wrong = store.claim, [RuntimeError("a bug")]

    def buggy(owner: str, **options: Any) -> Claim | None:
        if wrong:
            raise wrong.pop()
        return claim(owner, **options)

    monkeypatch.setattr("api.jobs.IDLE_S", 0.05)
    monkeypatch.setattr(store, "claim", buggy)
    jobs, job_id = work(store, Scripted(), [key_of()])
    until(lambda: state_of(store, job_id) is JobState.DONE)
    assert jobs.faults() == ["the lane local:CPU ended by a bug: see the log"]
    assert (jobs.alive, jobs.running, jobs.lanes_lost) == (False, True, 1)
    monkeypatch.setattr("api.jobs.LANE_FAULT_S", 0.0)
    assert jobs.alive
    jobs.stop()
    assert not jobs.running


def test_threads_that_ended_are_said(store: SqlStore) -> None:
    jobs = JobRunner(store, lanes_of(), tune=Scripted())
    request: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace()))
    ready = Readiness(store.expect_writable, store.active_jobs)
    service: Any = SimpleNamespace(jobs=jobs, store=store, readiness=ready)
    request.app.state.service = service
    for said in (lambda: asyncio.run(health.healthz(request)), lambda: asyncio.run(health.readyz(request))):
        with pytest.raises(ProblemError, match="the job runner has ended"):
            said()
    jobs.start()
    assert asyncio.run(health.healthz(request))["status"] == "ok"
    assert asyncio.run(health.readyz(request))["status"] == "ready"
    jobs._fault("local:CPU")
    assert asyncio.run(health.healthz(request))["status"] == "ok"  # no restart is needed for that
    with pytest.raises(ProblemError, match="the lane local:CPU ended by a bug") as refused:
        asyncio.run(health.readyz(request))
    assert refused.value.status == 503
    jobs.stop()


def test_a_lane_that_died_without_a_word_keeps_no_key(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.jobs.IDLE_S", 0.05)
    jobs = JobRunner(store, lanes_of(), tune=Scripted())
    job_id = store.submit([key_of()], FEW).id
    gone = Work(threading.Thread(target=lambda: None))
    gone.thread.start()
    gone.thread.join()
    gone.claim = store.claim(jobs._owner_of("local:CPU"))
    jobs._working["local:CPU"] = gone
    assert "the lane local:CPU ended by a bug: see the log" in jobs.faults()
    jobs.start()
    until(lambda: state_of(store, job_id) is JobState.DONE)
    assert (jobs.faults(), jobs.lanes_lost) == (["the lane local:CPU ended by a bug: see the log"], 1)
    jobs.stop()


class FullDisk(SqlStore):
    """Takes no claim, and nothing else, until there is room."""

    room = False

    def _expect_room(self) -> None:
        if not self.room:
            raise DatabaseError("expected room on the disk, found none")

    def claim(self, owner: str, **options: Any) -> Claim | None:
        self._expect_room()
        return super().claim(owner, **options)

    def recover(self, **options: Any) -> int:
        self._expect_room()
        return super().recover(**options)


def test_a_disk_that_is_full_for_long_is_said_once_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("api.jobs.BUSY_S", 0.01)
    with FullDisk(dialect_for(tmp_path / "a.db", 1.0)) as store:
        job_id = store.submit([key_of()], FEW).id
        assert SqlStore.claim(store, "killed") is not None
        jobs = JobRunner(store, lanes_of(), tune=scripted_tune(0.0))
        jobs.start()  # even with a job to put back: the service must come up to say what is wrong
        until(jobs.faults)
        time.sleep(0.3)
        assert jobs.running
        assert jobs.faults() == ["it looks at the queue in vain: expected room on the disk, found none"]
        said = [
            (r.getMessage().count("room on the disk"), r.exc_info) for r in caplog.records if r.levelname == "ERROR"
        ]
        assert said == [(1, None)]
        store.room = True
        until(lambda: state_of(store, job_id) is JobState.DONE)
        jobs.stop()


def test_a_pass_that_fails_by_a_bug_is_said_until_one_succeeds(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BUSY_S", "IDLE_S"):
        monkeypatch.setattr(f"api.jobs.{name}", 0.05)
    waiting, broken = store.waiting, [True]
    monkeypatch.setattr(store, "waiting", lambda: 1 // 0 if broken else waiting())
    jobs, job_id = work(store, Scripted(), [key_of()])
    until(jobs.faults)
    assert jobs.faults() == ["it looks at the queue in vain: a bug (ZeroDivisionError), see the log"]
    broken.clear()
    until(lambda: state_of(store, job_id) is JobState.DONE)
    until(lambda: jobs.alive)
    jobs.stop()


def test_devices_are_released_when_there_is_nothing_to_do(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.jobs.RELEASE_S", 0.2)
    monkeypatch.setattr("api.jobs.IDLE_S", 0.05)
    closed = threading.Event()

    class Warm(NoRunner):
        def close(self) -> None:
            closed.set()

    jobs = JobRunner(store, lanes_of(Warm), tune=scripted_tune(0.0))
    job_id = store.submit([key_of()], FEW).id
    jobs.start()
    until(lambda: state_of(store, job_id) is JobState.DONE)
    assert closed.wait(5)
    jobs.stop()


def test_two_services_never_have_one_name(store: SqlStore) -> None:
    assert (
        JobRunner(store, lanes_of(), tune=scripted_tune(0.0))._owner
        != JobRunner(store, lanes_of(), tune=scripted_tune(0.0))._owner
    )  # as two containers, each of which is process 1


class SharedLanes(LocalLanes):
    """As with a server that several services use."""

    shared = True


def test_a_living_service_keeps_what_it_works_on(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes over what a silent one left, no sooner than its lease ends."""
    monkeypatch.setattr("api.jobs.BEAT_S", 0.1)
    monkeypatch.setattr("api.jobs.LEASE_S", 5.0)
    measuring = Measuring()
    first = JobRunner(store, SharedLanes(OneDevice(), lambda _: NoRunner()), tune=measuring)
    job_id = store.submit([key_of()], FEW).id
    first.start()
    assert measuring.begun.wait(10)
    second = JobRunner(store, SharedLanes(OneDevice(), lambda _: NoRunner()), tune=scripted_tune(0.0))
    second.start()
    time.sleep(6.0)  # in mid-measurement, longer than a lease: nothing but its beats speaks for it
    assert state_of(store, job_id) is JobState.RUNNING
    monkeypatch.setattr(first, "_beat", lambda: None)  # as after kill -9, or a silent cut
    until(lambda: state_of(store, job_id) is JobState.DONE)
    measuring.released.set()
    first.stop()
    second.stop()
    assert store.job(job_id).states == (JobState.DONE,)


def test_a_job_says_what_it_waits_for(store: SqlStore) -> None:
    metal = replace(CPU, device="METAL")
    other = replace(CPU, cores=64)
    jobs = JobRunner(store, lanes_of(), tune=scripted_tune(0.0))
    absent = store.submit([ConvKey(shape=key_of().shape, device=metal)], FEW)
    elsewhere = store.submit([ConvKey(shape=key_of().shape, device=other)], FEW)
    done = store.submit([key_of()], FEW)  # one that can go on does
    jobs.start()
    until(lambda: state_of(store, done.id) is JobState.DONE)

    def said(job: Job) -> str:
        return str(jobs.explained(store.job(job.id)).progress.get("waiting_for", ""))

    assert said(absent).startswith("waiting for a device METAL since 20")
    assert "no device METAL on this machine" in said(absent)
    assert "another CPU than this machine's" in said(elsewhere)
    assert "cores 64 there, 2 here" in said(elsewhere)
    assert said(done) == ""
    jobs.stop()


def test_tuning_that_a_program_asked_for_waits_until_it_ends(
    store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("device_use", "device_lock"):
        monkeypatch.setattr(f"autotune.{module}.runtime_directory", lambda: tmp_path)
    program = "import sys, pathlib; from autotune.device_use import mark_in_use"
    program += "; mark_in_use('CPU', pathlib.Path(sys.argv[1])); print('on', flush=True); sys.stdin.read()"
    with child(program, str(tmp_path)) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "on\n"
        jobs = JobRunner(store, lanes_of(), tune=scripted_tune(0.0))
        missed = store.submit([key_of(16)], FEW, Terms(idle=True))
        asked_for = store.submit([key_of(32)], FEW)
        jobs.start()
        until(lambda: state_of(store, asked_for.id) is JobState.DONE)
        waiting = jobs.explained(store.job(missed.id))
        assert waiting.state is JobState.QUEUED
        assert waiting.progress["waiting_for"].startswith("waiting until CPU is idle")
        user.kill()
    until(lambda: state_of(store, missed.id) is JobState.DONE)
    jobs.stop()


def test_a_failed_job_is_retried_as_a_new_one(tmp_path: Path) -> None:
    with served(tmp_path / "a.db") as service:
        first = ended(service.http, submit(service.http, body(16), body(UNLUCKY), priority=7)["id"])
        assert first["states"] == ["done", "failed"]
        response = service.http.post(f"/jobs/{first['id']}/retry")
        assert response.status_code == 202
        again = response.json()
        assert (again["retry_of"], again["priority"], len(again["keys"])) == (first["id"], 7, 1)
        assert ended(service.http, again["id"])["state"] == "failed"
        done = ended(service.http, submit(service.http, body(32))["id"])
        assert service.http.post(f"/jobs/{done['id']}/retry").status_code == 409
        assert [job["id"] for job in service.http.get("/jobs?state=done").json()["jobs"]] == [done["id"]]


def test_a_job_ends_at_its_deadline(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", trial_s=0.2) as service:
        job = ended(service.http, submit(service.http, body(16), trials=1000, within="1s")["id"])
        assert (job["state"], job["error"].endswith("its deadline passed")) == ("failed", True)
        assert ended(service.http, submit(service.http, body(32))["id"])["state"] == "done"  # the lane is free


def streaming(store: SqlStore, followed: Followed, authority: Authority | None = None) -> Service:
    """What a stream needs of a service."""
    jobs = SimpleNamespace(explained=lambda job: job)
    return cast(
        "Service",
        SimpleNamespace(
            jobs=jobs, followed=followed, stopping=threading.Event(), authority=authority or Authority(store)
        ),
    )


def test_a_stream_outlasts_a_locked_database(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        job = store.submit([key_of()], FEW)
        answers = iter([DatabaseBusyError("locked"), DatabaseBusyError("locked"), store.cancel(job.id)])

        def said(_: object) -> dict[str, Job]:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return {answer.id: answer}

        service = streaming(store, Followed(said, 0.1))
        request: Any = SimpleNamespace(scope={})

        async def stream() -> list[str]:
            return [part async for part in routes._stream(service, request, job, "")]

        parts = asyncio.run(stream())
    assert [part.splitlines()[1] for part in parts[1:]] == ["event: job", "event: end"]


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_streams_ask_the_database_as_often_as_one(kind: str, tmp_path: Path) -> None:
    with new_database(kind, tmp_path) as address, open_store(address) as store:
        token, secret = store.create_token("me", Scope.TUNE)
        jobs = [store.submit([key_of(cin)], FEW) for cin in range(1, 6)]
        reads, asked, counter = [0], [0], store.changes

        def counted(*_: object) -> None:
            reads[0] += 1

        def changes() -> int:
            asked[0] += 1
            return counter()

        store.changes = changes  # type: ignore[method-assign]
        service = streaming(store, Followed(store.named_jobs, routes.POLL_S))
        request: Any = SimpleNamespace(scope={PRESENTED: token}, headers=Headers({"Authorization": f"Bearer {secret}"}))

        told: list[list[str]] = [[] for _ in range(50)]

        async def follow(number: int) -> None:
            async for part in routes._stream(service, request, jobs[number % 5], ""):
                if part.startswith("id: "):
                    told[number].append(part)

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(60):
                while not condition():  # noqa: ASYNC110 - what is waited for happens elsewhere
                    await asyncio.sleep(0.02)

        async def work() -> None:
            for number, job in enumerate(jobs):
                claim = await asyncio.to_thread(store.claim, "w")
                assert claim is not None
                await asyncio.to_thread(store.progress, claim, {"trials": job.id})
                its = told[number::5]
                await until(lambda its=its: all(len(parts) > 1 for parts in its))  # type: ignore[misc]
                await asyncio.to_thread(store.finish, claim)

        async def all_of_them() -> None:
            streams = [asyncio.create_task(follow(number)) for number in range(50)]
            await until(lambda: all(told))
            first = asked[0]
            await until(lambda: asked[0] > first + 3)  # all have been through their first look
            event.listen(store._engine, "begin", counted)
            begun = time.monotonic()
            await until(lambda: reads[0] >= 5)
            event.remove(store._engine, "begin", counted)
            looks = (time.monotonic() - begun) / routes.POLL_S + 2
            assert reads[0] <= looks, "transactions"
            await work()
            await asyncio.gather(*streams)

        begun = time.monotonic()
        asyncio.run(all_of_them())
        assert asked[0] <= (time.monotonic() - begun) / routes.POLL_S + 2
        for number, parts in enumerate(told):
            assert "event: end" in parts[-1]
            assert '"state": "done"' in parts[-1]
            assert any(f'"trials": "{jobs[number % 5].id}"' in part for part in parts)
            assert len({part.splitlines()[0] for part in parts}) == len(parts)
        assert not service.followed._followers
        [again] = asyncio.run(_from(service, request, store.job(jobs[0].id), told[0][0].splitlines()[0][4:]))
        assert again == told[0][-1]  # with Last-Event-ID: what was not seen


async def _from(service: Service, request: Any, job: Job | None, seen: str) -> list[str]:
    assert job is not None
    return [part async for part in routes._stream(service, request, job, seen) if part.startswith("id: ")]


def test_a_stream_ends_with_a_job_that_was_removed(store: SqlStore) -> None:
    job = store.submit([key_of()], FEW)
    service = streaming(store, Followed(lambda _: {}, 0.1))
    [first] = asyncio.run(_from(service, SimpleNamespace(scope={}), job, ""))
    assert "event: job" in first


def test_what_is_shared_is_read_once_whoever_leaves() -> None:
    begun, go_on = [0], threading.Event()

    def read() -> int:
        begun[0] += 1
        assert go_on.wait(10)
        return begun[0]

    async def ask() -> list[int]:
        shared = Shared(read, 60.0)
        leaves = asyncio.create_task(shared.get())
        stays = [asyncio.create_task(shared.get()) for _ in range(3)]
        await asyncio.sleep(0.05)
        leaves.cancel()
        go_on.set()
        return [*await asyncio.gather(*stays), await shared.get()]

    assert asyncio.run(ask()) == [1, 1, 1, 1]


def test_a_key_is_filed_under_the_device_that_measures_it() -> None:
    asked = ConvKey(shape=key_of().shape, device=replace(CPU, flags=(("BEAM", "2"),)))
    measured = as_measured_by(asked, replace(CPU, driver="15.0", os="Darwin"))
    assert measured.digest == asked.digest
    assert measured.device.surroundings == ("15.0", "Darwin", "")
    assert measured.device.flags == asked.device.flags


def test_runners_are_opened_once_per_device() -> None:
    opened: list[str] = []

    def open_runner(device: str) -> NoRunner:
        opened.append(device)
        return NoRunner()

    runners = Runners(open_runner)
    for device in ("CPU", "CUDA", "CPU"):
        runners.get(device)
    assert opened == ["CPU", "CUDA"]
    runners.close()
    runners.close()
