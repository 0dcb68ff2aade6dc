"""Every runner through one contract, and what is the queue's alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.runner_contract")

from api.devices import UnknownDeviceError  # noqa: E402
from api.dispatch import main  # noqa: E402
from api.fleet import FleetDevices, FleetLanes  # noqa: E402
from api.queue_runner import QueueRunner  # noqa: E402
from autotune.fleet import TaskState, Worker, queue_of  # noqa: E402
from autotune.job import Budget  # noqa: E402
from autotune.local_runner import LocalRunner  # noqa: E402
from autotune.runner import NoWorkerError  # noqa: E402
from db import DatabaseError, SqlStore, open_store  # noqa: E402
from strategies.key import DeviceSpec  # noqa: E402
from tests.databases import ROOT, new_database  # noqa: E402
from tests.runner_contract import DEVICE, FINE, OpenRunner, RunnerContract, do, key, request  # noqa: E402
from tests.served import OneDevice, until  # noqa: E402
from tests.values import a_measurement  # noqa: E402

SCRIPTED = ROOT / "tests" / "scripted_child.py"


class TestLocalRunner(RunnerContract):
    @pytest.fixture
    def open_runner(self, tmp_path: Path) -> Iterator[OpenRunner]:
        opened: list[LocalRunner] = []

        def open_runner(**environ: str) -> LocalRunner:
            child = (sys.executable, str(SCRIPTED))
            opened.append(
                LocalRunner("CPU", environ={**os.environ, **environ}, child=child, lock_directory=tmp_path)
            )  # fmt: skip
            return opened[-1]

        yield open_runner
        for runner in opened:
            runner.close()


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_database("postgresql", tmp_path_factory.mktemp("pg")) as address:
        yield address


@pytest.fixture(scope="module")
def store(address: str) -> Iterator[SqlStore]:
    with open_store(address) as store:
        store.prepare_queue()
        store.prepare_queue()
        yield store


def start_worker(address: str, locks: Path, spec: DeviceSpec = DEVICE, **environ: str) -> subprocess.Popen[str]:
    """A worker in a process of its own, once it is known to the database."""
    worker = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "scripted_worker.py"), address, json.dumps(spec.to_json()), str(locks)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdout is not None
    try:
        name = worker.stdout.readline().strip()
        with open_store(address) as store:
            until(lambda: any(known.name == name for known in store.workers()))
    except BaseException:
        end(worker, signal.SIGKILL)
        raise
    return worker


def end(worker: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
    if worker.poll() is None:
        worker.send_signal(number)
    with worker:
        return worker.wait(60)


@pytest.fixture
def start(address: str) -> Iterator[Start]:
    """Starts workers, of which none is left over where a test fails: the next test would fail of it, too."""
    started: list[subprocess.Popen[str]] = []

    def start(*where: Any, **environ: str) -> subprocess.Popen[str]:
        started.append(start_worker(address, *where, **environ))
        return started[-1]

    yield start
    for process in started:
        end(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def worker(address: str, store: SqlStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    process = start_worker(address, tmp_path_factory.mktemp("locks"))
    yield
    assert end(process) == 0


class TestQueueRunner(RunnerContract):
    @pytest.fixture
    def open_runner(self, address: str, store: SqlStore, worker: None, tmp_path: Path) -> Iterator[OpenRunner]:
        started = []

        def open_runner(**environ: str) -> QueueRunner:
            if not environ:
                return QueueRunner(store, DEVICE)
            spec = DeviceSpec.from_json({**DEVICE.to_json(), "driver": "2"})  # a queue of its own
            started.append(start_worker(address, tmp_path, spec, **environ))
            return QueueRunner(store, spec)

        yield open_runner
        for process in started:
            end(process)

    def test_what_was_measured_is_the_truth_before_anybody_asks(self, store: SqlStore, worker: None) -> None:
        """A service that is killed while it waits has lost nothing, and its successor asks for nothing again."""
        task_id = store.post(queue_of(DEVICE), request(FINE, seed=7))
        again = store.post(queue_of(DEVICE), request(FINE, seed=7))
        assert again == task_id
        task = until(lambda: (t := store.task(task_id)) and t.state is TaskState.DONE and t)
        assert {m.attempt for m in task.measurements} <= {m.attempt for m in store.measurements(key())}
        assert store.post(queue_of(DEVICE), request(FINE, seed=7)) != task_id


def test_only_the_current_attempt_counts(store: SqlStore) -> None:
    other = DeviceSpec(device="CPU", arch="nobody")
    asked = request(FINE, key=key(arch="nobody"))
    store.register(Worker(name="a", device=other))
    task_id = store.post(queue_of(other), asked)
    assert store.begin(task_id, 1, "a") == asked
    assert store.begin(task_id, 1, "b") is None
    assert store.heard("a", in_use=False, task=(task_id, 1))
    assert store.reassign(task_id, 1)
    assert not store.reassign(task_id, 1)
    assert not store.heard("a", in_use=False, task=(task_id, 1))
    assert store.begin(task_id, 2, "b") == asked
    late, counted = (a_measurement(name, asked.key) for name in ("late", "counted"))
    assert not store.deliver(task_id, 1, "a", [late])
    assert store.task(task_id).state is TaskState.RUNNING
    assert store.deliver(task_id, 2, "b", [counted])
    assert store.deliver(task_id, 2, "b", [counted])  # the answer was lost: told again
    assert not store.deliver(task_id, 2, "c", [late])
    done = store.task(task_id)
    assert (done.state, done.attempt, done.measurements) == (TaskState.DONE, 2, (counted,))
    assert store.measurements(asked.key) == [counted]
    assert store.counts()["attempts"] >= 2  # the late one is kept


def test_a_health_check_runs_no_compiler(address: str, worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made every minute on the machine that measures."""

    def compile_something() -> None:
        raise AssertionError("a compiler was run")

    monkeypatch.setattr("autotune.compiler.ensure_c_compiler", compile_something)
    monkeypatch.setattr("api.logs.configure", lambda _: None)
    assert main(["worker", "--check", "--db", address]) == 0


def test_a_silent_workers_work_is_given_to_another(
    start: Start, store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the silent one comes back, with its answer, after the other has given its own."""
    monkeypatch.setattr("api.queue_runner.ALIVE_S", 4.0)
    spec = DeviceSpec.from_json({**DEVICE.to_json(), "driver": "3"})
    locks = [tmp_path / "a", tmp_path / "b"]  # as two machines
    for directory in locks:
        directory.mkdir()
    first = start(locks[0], spec)
    asked = request(do("linger"), seed=12, limits={"prepare_s": 20.0})
    task_id = store.post(queue_of(spec), asked)
    until(lambda: store.task(task_id).state is TaskState.RUNNING)
    first.send_signal(signal.SIGSTOP)  # amid it, which takes 1.5 s: it is silent now
    second = start(locks[1], spec)
    measured = QueueRunner(store, spec).measure(asked)
    assert [m.status for m in measured] == ["ok"]
    first.send_signal(signal.SIGCONT)
    time.sleep(3.0)
    assert store.task(task_id).measurements == tuple(measured)
    assert {m.attempt for m in measured} <= {m.attempt for m in store.measurements(asked.key)}
    assert (end(first), end(second)) == (0, 0)
    with pytest.raises(NoWorkerError, match=r"waiting for a worker for CPU since 20.*autotune worker --device CPU"):
        QueueRunner(store, spec).measure(request(FINE, seed=13))


def test_a_killed_workers_work_is_given_to_another(
    start: Start, store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.queue_runner.ALIVE_S", 4.0)
    spec = DeviceSpec.from_json({**DEVICE.to_json(), "driver": "4"})
    first = start(tmp_path, spec)
    slow = request(do("linger"), seed=21, limits={"prepare_s": 20.0})
    task_id = store.post(queue_of(spec), slow)
    until(lambda: store.task(task_id).state is TaskState.RUNNING)
    end(first, signal.SIGKILL)
    second = start(tmp_path, spec)
    assert QueueRunner(store, spec).measure(slow)[0].ok
    assert end(second) == 0


def test_work_for_another_device_is_refused_whatever_queue_it_came_by(store: SqlStore, worker: None) -> None:
    task_id = store.post(queue_of(DEVICE), request(FINE, key=key(arch="another")))
    task = until(lambda: (t := store.task(task_id)) and t.state is TaskState.DONE and t)
    assert task.measurements == ()
    assert "this worker measures on" in task.error
    assert store.measurements(key(arch="another")) == []


def test_a_worker_that_is_told_to_end_finishes_first(start: Start, store: SqlStore, tmp_path: Path) -> None:
    spec = DeviceSpec.from_json({**DEVICE.to_json(), "driver": "5"})
    process = start(tmp_path, spec)
    slow = store.post(queue_of(spec), request(do("linger"), limits={"prepare_s": 20.0}))
    until(lambda: store.task(slow).state is TaskState.RUNNING)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    next_one = store.post(queue_of(spec), request(FINE, seed=31))
    assert process.wait(60) == 0  # a second signal would give it up
    end(process)
    assert [m.status for m in store.task(slow).measurements] == ["ok"]
    assert store.task(next_one).state is TaskState.QUEUED
    assert [worker.ended for worker in store.workers() if worker.device == spec] == [True]
    store.withdraw(next_one)


def test_lanes_are_living_workers(store: SqlStore, worker: None) -> None:
    store.submit([key()], budget := Budget(trials=1))
    nobody = store.submit([key(device="METAL")], budget)
    offer = FleetLanes(store).offer(store.waiting())
    assert [lane.device for lane in offer.lanes if lane.target == store.workers()[0].target] != []
    [missing] = offer.missing.values()
    assert (missing.what, missing.since) == ("a worker for METAL", nobody.created_at)
    assert "autotune worker --device METAL" in missing.advice
    for job in store.jobs():
        store.cancel(job.id)


def test_devices_of_a_fleet_are_those_of_its_workers(tmp_path: Path) -> None:
    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        devices = FleetDevices(store, OneDevice())
        assert devices.names() == ("CPU",)  # of this machine: nobody else is there yet
        with pytest.raises(UnknownDeviceError, match=r"no worker for it so far.*autotune worker --device METAL"):
            devices.describe("METAL")
        mac = DeviceSpec(device="METAL", arch="Apple M3", cores=10, driver="15.1")
        store.register(Worker(name="mac", device=mac))
        assert devices.names() == ("METAL", "CPU")
        assert devices.describe() == devices.describe("metal") == mac
        store.retire("mac")
        assert devices.describe("METAL") == mac  # known, if away: its jobs wait
        newer = DeviceSpec(device="METAL", arch="Apple M4", cores=10)
        store.register(Worker(name="newer", device=newer))
        assert devices.describe("METAL") == newer
        assert devices.describe("CPU").device == "CPU"


def test_flags_for_a_workers_device_need_none_here(tmp_path: Path) -> None:
    class Closed(OneDevice):
        def describe(self, *_: object) -> DeviceSpec:
            raise UnknownDeviceError("the device cannot be opened")

    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        store.register(Worker(name="mac", device=(mac := DeviceSpec(device="METAL"))))
        found = FleetDevices(store, Closed()).describe("METAL", {"NOOPT": "1"})
        assert found == replace(mac, flags=(("NOOPT", "1"),))


def test_a_file_has_no_workers(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        for ask in (store.prepare_queue, store.expect_queue):
            with pytest.raises(DatabaseError, match="expected a PostgreSQL server, which workers share"):
                ask()


def test_workers_need_a_service_first(tmp_path: Path) -> None:
    with (
        new_database("postgresql", tmp_path) as address,
        open_store(address) as store,
        pytest.raises(DatabaseError, match="start `autotune serve`"),
    ):
        store.expect_queue()


def test_a_worker_that_has_lost_its_database_ends_for_its_supervisor(tmp_path: Path) -> None:
    import psycopg
    from sqlalchemy.engine import make_url

    with new_database("postgresql", tmp_path) as address:
        with open_store(address) as store:
            store.prepare_queue()
        worker = start_worker(address, tmp_path)
        try:
            url = make_url(address)
            server = url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {url.database} WITH ALLOW_CONNECTIONS false")
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.database]
                )
            assert worker.wait(60) == 75
        finally:
            end(worker, signal.SIGKILL)


@pytest.mark.parametrize(
    ("database", "status", "said"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/autotune", 75, "check that it runs"),
        ("autotune.db", 2, "expected a PostgreSQL server, which workers share, found"),
    ],
)
def test_a_worker_says_what_it_misses(
    database: str,
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["worker", "--device", "CPU", "--db", database]) == status
    error = capsys.readouterr().err
    assert said in error
    assert "secret" not in error
