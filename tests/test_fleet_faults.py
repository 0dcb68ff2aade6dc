"""What goes wrong with workers: another release, tasks that end them, devices that break, loops that stand still."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from databases import ROOT, new_database
from runner_contract import DEVICE, FINE, do, key, request
from served import until
from sqlalchemy import Engine, create_engine, text
from test_runners import end, start_worker
from values import a_measurement

from api.absence import absence
from api.fleet import FleetLanes
from api.health import Pulse, Suspicion, most_s
from api.jobs import JobRunner
from api.queue_runner import QueueRunner
from api.worker import is_the_databases
from autotune.device_lock import DeviceLock
from autotune.fleet import Refusal, TaskState, Worker, queue_of, queue_to, this_release
from autotune.job import Budget, JobState, Terms, target_of
from autotune.measurement import Status
from autotune.progress import Progress
from autotune.runner import NoWorkerError
from autotune.session import TuneCancelledError
from db import SqlStore, UnknownWorkerError, open_store
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape, JsonObject

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_database("postgresql", tmp_path_factory.mktemp("pg")) as address:
        yield address


@pytest.fixture(scope="module")
def store(address: str) -> Iterator[SqlStore]:
    with open_store(address) as store:
        store.prepare_queue()
        yield store


@pytest.fixture
def start(address: str, store: SqlStore, tmp_path: Path) -> Iterator[Start]:
    """Starts workers, which end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(spec: DeviceSpec, locks: Path = tmp_path, **environ: str) -> subprocess.Popen[str]:
        started.append(start_worker(address, locks, spec, **environ))
        return started[-1]

    yield start
    for process in started:
        end(process)


def driver(name: str) -> DeviceSpec:
    """A device with a queue of its own."""
    return dataclasses.replace(DEVICE, driver=name)


def told(runner: QueueRunner, **device: str) -> str:
    """Why nobody measures."""
    with pytest.raises(NoWorkerError) as caught:
        runner.measure(request(FINE, key=key(**device)))
    return str(caught.value)


def worker_of(store: SqlStore, process: subprocess.Popen[str]) -> Worker:
    return next(w for w in store.workers() if w.about["pid"] == process.pid)


# Another release


def test_a_worker_of_another_release_is_not_asked_and_the_job_says_so(store: SqlStore, start: Start) -> None:
    spec = dataclasses.replace(DEVICE, arch="old")
    process = start(spec, SCRIPT_RELEASE="0.0.1")
    job = store.submit([key(arch="old")], Budget(trials=1))
    offer = FleetLanes(store).offer(store.waiting())
    assert spec not in [lane.device for lane in offer.lanes]
    name = worker_of(store, process).name
    expected = f"needs worker release {this_release()}, worker {name} is of release 0.0.1: upgrade it"
    assert expected in str(offer.missing[store.waiting()[0].target])
    assert expected in told(QueueRunner(store, spec), arch="old")
    assert store.cancel(job.id).state is JobState.CANCELLED


def test_what_a_worker_cannot_read_is_refused_and_waits_visibly(store: SqlStore, start: Start) -> None:
    """Two builds that call themselves the same release: no queue keeps them apart."""
    spec = driver("unreadable")
    process = start(spec)
    task_id = store.post("nobody listens", request(FINE, seed=77))
    change = "UPDATE tasks SET queue = :queue, request = replace(request, '\"rounds\"', '\"turns\"') WHERE name = :name"
    with store._writing() as connection:
        connection.execute(text(change), {"queue": queue_of(spec), "name": task_id})
        connection.execute(text("DELETE FROM procrastinate_jobs WHERE queue_name = 'nobody listens'"))
    store.remind(task_id)
    task = until(lambda: (t := store.task(task_id)) and t.waiting and t)
    assert (task.state, task.attempt) == (TaskState.QUEUED, 1)
    assert f"needs worker release {this_release()}" in task.waiting
    assert "turns" in task.waiting
    worker = until(lambda: (w := worker_of(store, process)) and w.unfit and w)
    assert worker.alive
    assert not worker.fit
    assert "takes work" in str(absence(spec, store.workers()))
    store.remind(task_id)  # what was refused is offered to nobody again
    assert store.post(queue_of(spec), request(FINE, seed=78)) != task_id
    time.sleep(1.0)
    assert process.poll() is None
    with store._reading() as connection:
        queued = connection.execute(
            text("SELECT count(*) FROM procrastinate_jobs WHERE queue_name = :q"), {"q": queue_of(spec)}
        )
        assert queued.scalar_one() == 1  # the new one: the worker does not even fetch it
    assert end(process) == 0


# Tasks that end their workers


@pytest.mark.slow
def test_a_candidate_that_ends_its_workers_is_found_and_the_rest_goes_on(
    address: str, store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.queue_runner.ALIVE_S", 4.0)
    spec, over = driver("poison"), threading.Event()

    def supervise() -> None:
        while not over.is_set():
            with start_worker(address, tmp_path, spec) as process:
                while process.poll() is None and not over.is_set():
                    time.sleep(0.05)
                end(process)

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        until(lambda: any(w.device == spec for w in store.workers()))
        measured = QueueRunner(store, spec, most_lost=2).measure(request(FINE, do("kill_tuner"), do("nothing")))
    finally:
        over.set()
        supervisor.join()
    assert [m.status for m in measured] == [Status.OK, Status.CRASHED, Status.OK]
    assert "2 workers were lost while they measured it" in measured[1].reason
    assert len(measured[0].times_s) == len(measured[2].times_s) == 3


def test_only_workers_that_stay_away_count_as_lost(store: SqlStore) -> None:
    """Who was cut off and came back, or was told to end, was not ended by the task."""
    spec = driver("lost")
    for name in ("back", "drained", "gone", "stuck", "last"):
        store.register(Worker(name=name, device=spec))
    task_id = store.post(queue_of(spec), request(FINE, seed=5))
    for attempt, name in enumerate(("back", "drained", "gone", "stuck"), 1):
        assert store.begin(task_id, attempt, name) == request(FINE, seed=5)
        assert store.reassign(task_id, attempt, most_lost=3)
        if name == "back":
            store.heard(name, in_use=False)
        if name == "stuck":
            store.unfit(name, "it was stuck")
        if name in ("drained", "stuck"):
            store.retire(name)
        assert store.task(task_id).state is TaskState.QUEUED
    store.begin(task_id, 5, "last")
    store.reassign(task_id, 5)  # given back: nobody was lost
    store.begin(task_id, 6, "last")
    assert store.reassign(task_id, 6, most_lost=3)
    task = store.task(task_id)
    assert (task.state, task.lost) == (TaskState.LOST, ("gone", "stuck", "last"))
    assert store.post(queue_of(spec), request(FINE, seed=5)) != task_id  # asked again, it is asked anew


# Devices that break, loops that stand still


@pytest.mark.slow
def test_a_worker_whose_device_broke_gives_its_work_back_and_ends(
    store: SqlStore, start: Start, tmp_path: Path
) -> None:
    for other in store.workers():  # of earlier tests, not yet silent: of another release, it would be what is said
        store.retire(other.name)
    spec, broken = driver("broken"), tmp_path / "broken"
    process = start(spec, SCRIPT_BROKEN=str(broken))
    runner = QueueRunner(store, spec)
    assert runner.measure(request(FINE))[0].ok
    assert runner.measure(request(do("segfault"), seed=1))[0].status is Status.CRASHED  # which says nothing of it
    broken.touch()
    assert runner.measure(request(FINE, seed=2))[0].status is Status.CRASHED
    said = told(runner)  # not a second failure of `direct`: of a worker that is ending, or has
    assert "its device failed a test" in said or "autotune worker --device CPU" in said
    assert process.wait(60) == 74
    assert "its device failed a test: crashed" in worker_of(store, process).unfit
    with store._reading() as connection:
        states = "SELECT state FROM tasks WHERE queue = :queue ORDER BY id"
        ended = connection.execute(text(states), {"queue": queue_of(spec)}).scalars().all()
    assert ended == ["done", "done", "done", "cancelled"]
    again = subprocess.run(
        process.args, env=_environ(SCRIPT_BROKEN=str(broken)), timeout=60, check=False, capture_output=True
    )
    assert again.returncode == 74  # before it takes anything
    broken.unlink()
    start(spec)
    assert runner.measure(request(FINE))[0].ok


def test_a_successor_tests_its_own_device_whoever_else_is_well(store: SqlStore, address: str, tmp_path: Path) -> None:
    spec, host, broken = driver("equal"), platform.node(), tmp_path / "broken"
    broken.touch()
    store.register(Worker(name=f"{host}:1:bad", device=spec, about={"lock": "CPU"}))
    store.unfit(f"{host}:1:bad", "its device failed a test")
    store.retire(f"{host}:1:bad")
    store.register(Worker(name=f"{host}:2:well", device=spec, about={"lock": "CPU-1"}))
    command = [sys.executable, str(ROOT / "tests" / "scripted_worker.py"), address, json.dumps(spec.to_json())]
    successor = subprocess.run(
        [*command, str(tmp_path)], env=_environ(SCRIPT_BROKEN=str(broken)), timeout=120, capture_output=True, text=True
    )
    assert (successor.returncode, "the device has not recovered" in successor.stderr) == (74, True)


def test_a_device_that_another_process_keeps_is_said(store: SqlStore, start: Start, tmp_path: Path) -> None:
    """The task goes back with the reason, which is what its job waits for; asked for anew, it is tried anew."""
    spec, lock = driver("kept"), DeviceLock("CPU", tmp_path)
    process = start(spec, SCRIPT_LOCK_TIMEOUT_S="0.5")
    runner = QueueRunner(store, spec)
    with lock.held(timeout_s=60, on_wait=print):
        said = told(runner)
        assert f"waiting: for worker {worker_of(store, process).name}: CPU is in use: process {os.getpid()}" in said
        assert told(runner) == said
    lock.close()
    assert runner.measure(request(FINE))[0].ok
    assert worker_of(store, process).fit
    with store._reading() as connection:
        found = connection.execute(text("SELECT state, attempt FROM tasks WHERE queue = :q ORDER BY id"), {
            "q": queue_of(spec)
        }).all()  # fmt: skip
    assert found == [("cancelled", 2), ("cancelled", 2), ("done", 1)]


@pytest.mark.slow
def test_a_worker_that_is_stuck_ends_itself(store: SqlStore, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.queue_runner.ALIVE_S", 4.0)
    spec = driver("stuck")
    process = start(spec, SCRIPT_STUCK="1", SCRIPT_STUCK_S="1")
    task_id = store.post(queue_of(spec), request(FINE, seed=3))
    assert process.wait(30) == 74
    assert "it was stuck: the loop that measures has been silent" in worker_of(store, process).unfit
    start(spec)
    assert QueueRunner(store, spec).measure(request(FINE, seed=3))[0].ok
    assert store.task(task_id).attempt == 2


def test_a_worker_that_cannot_say_that_it_lives_takes_no_more_work(store: SqlStore, start: Start) -> None:
    """Each of its tasks would be taken from it as from one that died, and its candidates blamed."""
    process = start(driver("mute"), SCRIPT_MUTE="1")
    assert process.wait(30) == 74
    said = worker_of(store, process)
    assert (said.ended, "it could not say that it lives: KeyError" in said.unfit) == (True, True)


def test_a_pulse_is_progress() -> None:
    now = [0.0]
    pulse = Pulse(lambda: now[0], stuck_s=10.0)
    assert not pulse.stuck()
    asked = request(FINE)
    pulse.begin(asked)
    now[0] = 9.0
    pulse.beat()
    now[0] = 18.0
    assert not pulse.stuck()
    now[0] = 19.5
    assert "silent for 10 s" in pulse.stuck() or "silent for 11 s" in pulse.stuck()
    pulse.begin(asked)
    while now[0] < 2 * most_s(asked):
        now[0] += 5.0
        pulse.beat(waiting=True)  # for a device that somebody else has
    assert not pulse.stuck()
    begun = now[0]
    while not pulse.stuck():
        now[0] += 5.0
        pulse.beat()
    assert most_s(asked) < now[0] - begun < most_s(asked) + 10
    pulse.end()
    assert not pulse.stuck()


def test_what_makes_a_device_suspect() -> None:
    suspicion = Suspicion()
    fine, crashed = a_measurement("a"), dataclasses.replace(a_measurement("b"), status=Status.CRASHED)
    direct = dataclasses.replace(crashed, candidate=FINE)
    assert not suspicion.told([direct], unusable=False)
    assert not suspicion.told([fine, crashed], unusable=False)  # something was measured
    assert not suspicion.told([], unusable=True)
    assert suspicion.told([direct], unusable=False)
    suspicion.cleared()
    assert [suspicion.told([crashed], unusable=False) for _ in range(4)] == [False, False, False, True]


# Idle devices, and ends in time


def test_what_waits_for_an_idle_device_goes_to_none_that_is_in_use(
    store: SqlStore, start: Start, tmp_path: Path
) -> None:
    """Two equal devices share a queue; a program runs on one of them."""
    spec, homes = driver("idle"), [tmp_path / "idle", tmp_path / "used"]
    for home in homes:
        home.mkdir()
    program = "import sys, pathlib; from autotune.device_use import mark_in_use"
    program += "; mark_in_use('CPU', pathlib.Path(sys.argv[1])); print('on', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(homes[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environ()
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"on\n"
        idle, used = (worker_of(store, start(spec, home)) for home in homes)
        for seed in range(3):
            asked = request(FINE, seed=seed)
            [measured] = QueueRunner(store, spec, idle_worker=idle.name).measure(asked)
            assert measured.ok
        said = told(QueueRunner(store, spec, idle_worker=used.name))
        assert said.startswith(f"waiting until the device of worker {used.name} is idle: a program")
        with store._reading() as connection:
            by = connection.execute(
                text("SELECT worker FROM tasks WHERE queue = :q AND state = 'done'"), {"q": queue_to(idle.name)}
            )
            assert by.scalars().all() == [idle.name] * 3
            left = text("SELECT count(*) FROM procrastinate_jobs WHERE queue_name LIKE 'worker:%'")
            assert connection.execute(left).scalar_one() == 0
        store.withdraw(store.post(queue_to("nobody"), request(FINE), idle=True))
        with store._reading() as connection:
            assert connection.execute(left).scalar_one() == 0  # it would wait for ever
        assert user.stdin is not None
        user.stdin.close()
    assert QueueRunner(store, spec, idle_worker=used.name).measure(request(FINE, seed=9))[0].ok


def test_a_running_search_leaves_the_device_to_a_program_that_comes(store: SqlStore) -> None:
    """A search that was only to use an idle device ends when its worker says that a program runs there."""
    for other in store.workers():  # of earlier tests, not yet silent: one that is idle would take the work
        store.retire(other.name)
    spec, begun = driver("comes"), threading.Event()
    store.register(Worker(name="comes", device=spec))
    job = store.submit([key(driver="comes")], Budget(trials=1), Terms(idle=True))

    def tune(*_: object, should_stop: Callable[[], bool], **__: object) -> None:
        begun.set()
        until(should_stop)
        raise TuneCancelledError("stopped")

    runner = JobRunner(store, FleetLanes(store), tune=tune)  # type: ignore[arg-type]
    runner.start()
    try:
        assert begun.wait(20)
        store.heard("comes", in_use=True)
        until(lambda: store.job(job.id).states == (JobState.QUEUED,))

        def waits() -> bool:
            store.heard("comes", in_use=True)  # as a worker does, or it counts as silent on a slow machine
            return "a program that asked" in runner.explained(store.job(job.id)).progress.get("waiting_for", "")

        until(waits)
    finally:
        runner.stop()
        store.cancel(job.id)


@pytest.mark.slow
def test_a_drain_does_not_outlast_the_grace_of_whoever_supervises(store: SqlStore, start: Start) -> None:
    spec = driver("drain")
    process = start(spec, SCRIPT_DRAIN_S="1")
    patient = dataclasses.replace(request(do("hang")), limits=dataclasses.replace(request().limits, prepare_s=600.0))
    task_id = store.post(queue_of(spec), patient)
    until(lambda: store.task(task_id).state is TaskState.RUNNING)
    begun = time.monotonic()
    assert end(process) == 0
    assert time.monotonic() - begun < 20
    task = store.task(task_id)
    assert (task.state, task.attempt, task.lost) == (TaskState.QUEUED, 2, ())


def test_a_result_that_cannot_be_delivered_keeps_no_worker_from_ending(store: SqlStore, start: Start) -> None:
    """It is kept for minutes, as long as nobody wants the worker to end: longer than a supervisor waits."""
    spec = driver("undelivered")
    process = start(spec, SCRIPT_UNDELIVERED="1", SCRIPT_DRAIN_S="1")
    task_id = store.post(queue_of(spec), request(FINE))
    until(lambda: store.task(task_id).state is TaskState.RUNNING)
    time.sleep(2.0)
    begun = time.monotonic()
    assert end(process) == 0
    assert time.monotonic() - begun < 20


# What is kept of workers


def test_the_last_worker_of_a_device_is_known_however_many_came_and_went(store: SqlStore) -> None:
    mac = DeviceSpec(device="METAL", arch="M3", cores=10)
    store.register(Worker(name="mac", device=mac))
    store.retire("mac")
    crowd = driver("crowd")
    with store._writing() as connection:
        from db import workers

        for number in range(300):
            workers.register(connection, Worker(name=f"crowd-{number}", device=crowd), now=1000.0 + number)
    known = store.workers()
    assert "mac" in [worker.name for worker in known]
    assert sum(worker.device == crowd for worker in known) == 20
    assert "since 20" in str(absence(mac, known))
    assert store.prune(0.0)["workers"] == 280  # nobody has heard of them for a day
    assert "mac" in [worker.name for worker in store.workers()]
    assert store.prune(5000.0)["workers"] == 19
    assert [w.name for w in store.workers() if w.device == crowd] == ["crowd-299"]


def test_a_worker_that_was_forgotten_registers_once_more(store: SqlStore, start: Start) -> None:
    process = start(driver("forgotten"))
    known = until(lambda: [w for w in store.workers() if w.about.get("pid") == process.pid])[0]
    with store._writing() as connection:
        connection.execute(text("DELETE FROM workers WHERE name = :name"), {"name": known.name})
    again = until(lambda: [w for w in store.workers() if w.name == known.name])[0]
    assert (again.fit, again.device) == (True, known.device)
    with pytest.raises(UnknownWorkerError, match="'nobody'"):
        store.heard("nobody", in_use=False)
    store.register(dataclasses.replace(known, name="unfit", unfit="it was stuck"))
    assert [w.unfit for w in store.workers() if w.name == "unfit"] == ["it was stuck"]


def test_what_a_killed_service_asked_for_ends_after_a_day(tmp_path: Path) -> None:
    with new_database("postgresql", tmp_path) as other, ExitStack() as stack:
        now = [0.0]
        store = stack.enter_context(open_store(other, clock=lambda: now[0]))
        store.prepare_queue()
        names = [store.post(queue_of(DEVICE), request(FINE, seed=seed)) for seed in range(3)]
        assert store.begin(names[1], 1, "w")
        now[0] = 86000.0
        last = store.post(queue_of(DEVICE), request(FINE, seed=3))
        now[0] = 86500.0
        assert store.prune(0.0)["tasks"] == 0
        assert [store.task(name).state for name in names] == [TaskState.CANCELLED] * 3
        assert store.task(last).state is TaskState.QUEUED
        with store._reading() as connection:
            queued = connection.execute(text("SELECT args->>'task' FROM procrastinate_jobs WHERE status = 'todo'"))
            assert set(queued.scalars()) == {last}
        assert store.prune(now[0] + 1.0)["tasks"] == 3


def test_old_tasks_go_with_their_attempts(address: str, tmp_path: Path) -> None:
    with new_database("postgresql", tmp_path) as other, ExitStack() as stack:
        now = [1000.0]
        store = stack.enter_context(open_store(other, clock=lambda: now[0]))
        store.prepare_queue()
        names = [store.post(queue_of(DEVICE), request(FINE, seed=seed)) for seed in range(3)]
        for name in names[:2]:
            assert store.begin(name, 1, "w")
            assert store.deliver(name, 1, "w", [a_measurement(name, key(), measured_at=2e9)])
            now[0] += 100.0
        assert store.prunable(1050.0)["tasks"] == 1
        assert store.prune(1050.0)["tasks"] == 1
        assert [store.task(name) is None for name in names] == [True, False, False]
        assert store.counts()["attempts"] == 1
        assert len(store.measurements(key())) == 2
        assert store.prune(1e9)["tasks"] == 1  # one is still open
        assert store.task(names[2]).state is TaskState.QUEUED


def test_a_worker_whose_clock_is_wrong_is_corrected(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DeviceSpec(device="CPU", arch="skewed")
    task_id = store.post(queue_of(spec), request(FINE, key=key(arch="skewed")))
    assert not isinstance(store.begin(task_id, 1, "late"), Refusal | None)
    behind = time.time() - 3600.0
    monkeypatch.setattr("db.store.time.time", lambda: behind)
    measurement = a_measurement("late", key(arch="skewed"), measured_at=behind - 5.0)
    assert store.deliver(task_id, 1, "late", [measurement])
    [kept] = store.measurements(key(arch="skewed"))
    assert abs(kept.measured_at - (store.now() - 5.0)) < 2.0
    assert 3590 < kept.conditions["clock_skew_s"] < 3610


def _environ(**more: str) -> JsonObject:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


# Who shares what, and what a job waits for


def measuring(key: ConvKey, *, store: SqlStore, runner: QueueRunner, **_: object) -> None:
    """A search of three requests: what matters here is who answers them."""
    for seed in range(3):
        for measurement in runner.measure(request(do("linger"), key=key, seed=seed)):
            store.record(measurement)


@pytest.mark.slow
def test_only_equal_devices_share_work_and_one_search_is_of_one_device(
    address: str, start: Start, tmp_path: Path
) -> None:
    """Two that are equal, one with another driver, one with more cores: the first three have their keys in common."""
    first, newer, larger = (
        dataclasses.replace(DEVICE, arch="shared", **change) for change in ({}, {"driver": "2"}, {"cores": 64})
    )
    homes = [tmp_path / str(number) for number in range(4)]
    for home in homes:
        home.mkdir()
    names: dict[str, DeviceSpec] = {}
    with open_store(address) as store:
        for spec, home in zip((first, first, newer, larger), homes, strict=True):
            names[worker_of(store, start(spec, home)).name] = spec
        keys = [
            ConvKey(shape=ConvShape.of((1, cin, 8, 8), (4, cin, 3, 3), padding=1), device=device)
            for device, count in ((first, 6), (larger, 1))
            for cin in range(4, 4 + count)
        ]
        job = store.submit(keys, Budget(trials=1))
        runner = JobRunner(store, FleetLanes(store), tune=measuring)  # type: ignore[arg-type]
        runner.start()
        try:
            until(lambda: store.job(job.id).state.ended, 90)
        finally:
            runner.stop()
        assert store.job(job.id).state is JobState.DONE, store.job(job.id).error
        with store._reading() as connection:
            query = "SELECT key_digest, worker FROM tasks WHERE state = 'done' AND worker <> ''"
            by = [(digest, worker) for digest, worker in connection.execute(text(query)) if worker in names]
        assert len(by) == 3 * len(keys)
        for key_ in keys:
            measured_by = {names[worker] for digest, worker in by if digest == key_.digest}
            assert len(measured_by) == 1, "one search is of one device"
            assert {m.key.device for m in store.measurements(key_)} == measured_by
            assert measured_by == {larger} or key_.device == first
        assert {worker for _, worker in by} == names.keys(), "everybody had work"


def test_a_job_for_a_device_that_nobody_has_says_so_and_goes_on_when_somebody_comes(store: SqlStore) -> None:
    mac = dataclasses.replace(DEVICE, device="METAL", arch="Apple M4", cores=10)
    job = store.submit([key(device="METAL", arch="Apple M4", cores=10)], Budget(trials=1))
    runner = JobRunner(store, FleetLanes(store), tune=lambda *_, **__: None)  # type: ignore[arg-type]
    runner.start()
    try:
        since = datetime.fromtimestamp(job.created_at, UTC)
        expected = (
            f"waiting for a worker for METAL since {since:%Y-%m-%d %H:%M:%S} UTC: start one on a machine with "
            "Apple M4 and 10 cores: autotune worker --device METAL --db postgresql+psycopg://..."
        )

        def said() -> str:
            return str(runner.explained(store.job(job.id)).progress.get("waiting_for"))

        until(lambda: "for a worker" in said())
        assert said() == expected
        assert store.job(job.id).state is JobState.QUEUED
        store.register(Worker(name="mac:2", device=mac))
        until(lambda: store.job(job.id).state is JobState.DONE)
    finally:
        runner.stop()


def test_leases_are_by_the_servers_clock(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service whose clock is an hour ahead takes nobody for silent."""
    job = store.submit([key(arch="leased")], Budget(trials=1))
    store.register(Worker(name="leased", device=dataclasses.replace(DEVICE, arch="leased")))
    claim = store.claim("other", target=target_of(job.keys[0].device))
    assert claim is not None
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 3600.0)
    assert store.recover(idle_s=30.0) == 0
    assert next(w for w in store.workers() if w.name == "leased").alive
    assert abs(store.now() - real()) < 60.0
    store.finish(claim)


def test_a_fault_of_ours_is_not_called_the_databases() -> None:
    wrapped = RuntimeError("a task group ended")
    wrapped.__cause__ = psycopg.OperationalError("server closed the connection")
    for error in (psycopg.OperationalError("no route"), wrapped, ConnectionResetError()):
        assert is_the_databases(error)
    assert not is_the_databases(KeyError("task"))


@pytest.mark.slow
def test_more_lanes_than_connections_starve_nobody(tmp_path: Path) -> None:
    """Two services with a lane for each of two dozen workers, on fifteen connections each, while another program holds
    the job's row for a while: everybody waits for a turn, nobody for somebody who waits for them."""
    device = dataclasses.replace(DEVICE, arch="crowd")

    def tune(key: ConvKey, *, store: SqlStore, on_progress: Callable[[Progress], None], **_: object) -> None:
        for trial in range(2):
            store.record(a_measurement(f"{key.digest}-{trial}", key))
            on_progress(Progress(phase="search", trials=trial + 1, failed=0, used_s=0.0, budget=Budget(trials=2)))

    with new_database("postgresql", tmp_path) as address, open_store(address) as one, open_store(address) as two:
        one.prepare_queue()
        names = [f"crowd:{number}" for number in range(24)]
        for name in names:
            one.register(Worker(name=name, device=device))
        keys = [
            ConvKey(shape=ConvShape.of((1, 4, size, size), (4, 4, 3, 3), padding=1), device=device)
            for size in range(8, 56)
        ]
        job = one.submit(keys, Budget(trials=2))
        runners = [JobRunner(store, FleetLanes(store), tune=tune) for store in (one, two)]  # type: ignore[arg-type]
        engine = create_engine(address)
        lanes = most = 0
        try:
            with engine.begin() as held:
                held.execute(text("SELECT 1 FROM jobs FOR UPDATE"))
                for runner in runners:
                    runner.start()
                begun = time.monotonic()
                while (held_s := time.monotonic() - begun) < 3.0 or (lanes < len(names) and held_s < 20.0):
                    lanes = max(lanes, *(len(runner._working) for runner in runners))
                    assert one.job(job.id) is not None, "who asks is answered meanwhile"
                    time.sleep(0.05)
            asked = time.monotonic()
            while not one.job(job.id).state.ended:
                most = max(most, held_by(engine))
                assert time.monotonic() - asked < 120.0, one.job(job.id).states
                for name in names:
                    two.heard(name, in_use=False)
        finally:
            for runner in runners:
                runner.stop()
            engine.dispose()
        assert one.job(job.id).state is JobState.DONE, one.job(job.id).error
        assert sum(len(one.measurements(key)) for key in keys[:20]) == 40
        assert lanes == len(names)
        assert most <= 2 * 16, "a service has fifteen connections, and one to see changes"


def held_by(engine: Engine) -> int:
    """Connections to this database, but for the one that asks."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())
