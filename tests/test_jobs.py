"""Jobs: they survive kills, end when told to, and fail with a reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from memory_store import MemoryStore
from served import UNLUCKY, NoRunner, body, ended, key_of, scripted_tune, served, until, winner_of

from api.jobs import JobRunner
from api.runners import InterruptedRunError, InterruptibleRunner, Runners
from autotune.device_lock import DeviceBusyError
from autotune.job import Budget, JobState
from autotune.measurement import Measurement
from autotune.runner import DeviceUnavailableError, Request
from autotune.winner import Winner
from db import DatabaseBusyError, open_store
from strategies.key import ConvKey

FEW = Budget(trials=3)


def submit(http: httpx.Client, *shapes: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = http.post("/tune", json={"shapes": list(shapes), **more})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    return job


def events(http: httpx.Client, job_id: str, last_event_id: str = "") -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) until the stream ends."""
    found = []
    with http.stream("GET", f"/jobs/{job_id}/events", headers={"Last-Event-ID": last_event_id}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if not line and "data" in fields:
                found.append((fields["id"], fields["event"], json.loads(fields["data"])))
                fields = {}
            elif line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
    return found


def test_job_is_followed_to_its_end(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", trial_s=0.15) as service:
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
    with served(database, trial_s=0.1) as service:
        first = submit(service.http, body(16), body(32), trials=4)
        second = submit(service.http, body(48))
        until(lambda: service.http.get(f"/jobs/{first['id']}").json()["done_keys"] == 1)
        service.kill()
    with open_store(database) as store:
        before = len(store.measurements(key_of(16)))
        assert [job.id for job in store.unfinished()] == [first["id"]]
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
        stream = threading.Thread(target=events, args=(service.http, job["id"]))
        stream.start()  # an open stream does not keep the service from ending
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


def work(
    store: MemoryStore, tune: Callable[..., Winner], keys: Sequence[ConvKey], budget: Budget = FEW
) -> tuple[JobRunner, str]:
    jobs = JobRunner(store, Runners(lambda _: NoRunner()), tune=tune)
    job_id = store.submit(keys, budget).id
    jobs.start()
    return jobs, job_id


def state_of(store: MemoryStore, job_id: str) -> JobState:
    job = store.job(job_id)
    assert job is not None
    return job.state


def test_busy_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.jobs.BUSY_S", 0.05)
    store, tune = MemoryStore(), Scripted(DeviceBusyError("CPU is in use"), DeviceBusyError("CPU is in use"))
    jobs, job_id = work(store, tune, [key_of()])
    until(lambda: state_of(store, job_id) is JobState.DONE)
    assert tune.calls == 3
    jobs.stop()


def test_device_that_is_gone_fails_the_job() -> None:
    store, tune = MemoryStore(), Scripted(DeviceUnavailableError("CPU cannot be used: unplugged"))
    jobs, job_id = work(store, tune, [key_of()])
    until(lambda: state_of(store, job_id) is JobState.FAILED)
    job = store.job(job_id)
    assert job is not None
    assert job.error == f"{key_of()}: CPU cannot be used: unplugged"
    jobs.stop()


def test_database_that_is_busy_for_a_while_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.jobs.BUSY_S", 0.05)
    store, tune = MemoryStore(), Scripted(DatabaseBusyError("locked"), DatabaseBusyError("locked"))
    jobs, job_id = work(store, tune, [key_of()])
    until(lambda: state_of(store, job_id) is JobState.DONE)
    assert jobs.alive
    jobs.stop()
    assert not jobs.alive


def test_stop_does_not_wait_for_a_long_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    released, store = threading.Event(), MemoryStore()

    class Slow(NoRunner):
        def measure(self, request: Request) -> list[Measurement]:
            released.wait(20)
            return []

    def tune(key: ConvKey, *, runner: Any, **_: Any) -> Winner:
        runner.measure(Request(key=key, candidates=()))
        store.decide(winner_of(key))
        return winner_of(key)

    jobs = JobRunner(store, Runners(lambda _: Slow()), tune=tune)
    job_id = store.submit([key_of()], FEW).id
    jobs.start()
    until(lambda: state_of(store, job_id) is JobState.RUNNING)
    jobs.stop(timeout_s=0.05)
    assert (jobs.alive, state_of(store, job_id)) == (True, JobState.QUEUED)
    released.set()
    until(lambda: not jobs.alive)
    assert store.winner(key_of()) is None  # what came after the interruption was thrown away
    assert state_of(store, job_id) is JobState.QUEUED


def test_interrupted_runner_gives_nothing_back() -> None:
    class Failing(NoRunner):
        def measure(self, request: Request) -> list[Measurement]:
            runner.interrupt()
            raise DeviceUnavailableError("its process ended")

    runner = InterruptibleRunner(Failing())
    with pytest.raises(InterruptedRunError):
        runner.measure(Request(key=key_of(), candidates=()))
    with pytest.raises(InterruptedRunError):
        runner.measure(Request(key=key_of(), candidates=()))


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
