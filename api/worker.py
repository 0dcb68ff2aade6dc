"""A worker: measures for services elsewhere, one request at a time, on one device of this machine.

It only dials out, to PostgreSQL. What it is asked for and what it answers is JSON: nothing in it is executed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from api.devices import Devices
from api.health import STUCK_S, Pulse, Suspicion, self_test
from api.text import one_line
from autotune.device_lock import DeviceBusyError, name_of
from autotune.device_use import in_use
from autotune.fleet import Refusal, Worker, queue_of, queue_to, this_release
from autotune.job import target_of
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement
from autotune.reference import processors
from autotune.runner import DeviceUnavailableError, Request, RunStoppedError
from db import DatabaseError, SqlStore, UnknownWorkerError
from db.queue import MEASURE
from strategies.shape import JsonObject

DRAINED, UNHEALTHY, DATABASE_LOST = 0, 74, 75
"""Exit statuses. 74 is EX_IOERR, 75 EX_TEMPFAIL: whoever supervises the worker starts it again."""
UNREADABLE = -1
"""No exit status: what is asked for is of another release, so this worker is asked for nothing until it is replaced."""
DRAIN_S = 45.0
"""How long what is under way may go on after a signal: less than the templates' and the compose file's grace."""
LOCK_TIMEOUT_S = 60.0
"""How long a task waits for a device that another process has. It is then given back, so that its job says what it
waits for, and asked for anew."""
BEAT_S = 3.0
STALLED_S = 30.0
TIDY_S = 60.0
DELIVER_S = 300.0
"""How long a result is kept for a database that is away."""
RETRY_S = 2.0
POOL_TIMEOUT_S = 5.0
KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 15_000}
"""Seconds and milliseconds after which a silent cut is noticed."""

log = logging.getLogger("autotune.worker")


def is_the_databases(error: BaseException | None) -> bool:
    """Whether the error, or what it came from, is the database's, its driver's, its queue's or the network's."""
    import psycopg
    from procrastinate.exceptions import ConnectorException

    theirs = (DatabaseError, OSError, psycopg.Error, ConnectorException)
    while error is not None and not isinstance(error, theirs):
        error = error.__cause__ or error.__context__
    return error is not None


class FleetWorker:
    """One process per physical device. `run` returns an exit status: DRAINED after SIGTERM, UNHEALTHY when its device
    fails a test, DATABASE_LOST else. A worker that is stuck ends there and then, with UNHEALTHY."""

    def __init__(
        self,
        store: SqlStore,
        devices: Devices,
        device: str | None,
        *,
        release: str | None = None,
        drain_s: float = DRAIN_S,
        stuck_s: float = STUCK_S,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        open_runner: Callable[..., LocalRunner] = LocalRunner,
        **runner: Any,
    ) -> None:
        """`device` None: the best there is. `release` None: this one. `runner`: further arguments of `open_runner`.
        Raises what describing and registering raise: UnknownDeviceError, DatabaseError."""
        self._store = store
        spec = devices.describe(device)
        self._release = this_release() if release is None else release
        self._me = Worker(
            name=f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:12]}", device=spec,
            about={**_about(device, self._release), "lock": name_of(device or spec.device, runner.get("environ"))},
        )  # fmt: skip
        self._physical = device or spec.device
        self._locks: Path | None = runner.get("lock_directory")
        self._runner = open_runner(self._physical, lock_timeout_s=lock_timeout_s, on_wait=log.info, **runner)
        self._drain_s, self._pulse, self._suspicion = drain_s, Pulse(stuck_s=stuck_s), Suspicion()
        self._at: tuple[str, int] | None = None
        self._status: int | None = None
        self._stale, self._ended, self._hurried = threading.Event(), threading.Event(), threading.Event()
        self._stop_fetching: Callable[[], object] = lambda: None

    @property
    def name(self) -> str:
        return self._me.name

    @property
    def queue(self) -> str:
        return queue_of(self._me.device, self._release)

    def run(self) -> int:
        """Work until a signal, the loss of the database or of the device."""
        self._store.expect_queue()
        if broken := self._still_broken():
            log.error("the device has not recovered: %s", broken)
            self._runner.close()
            return UNHEALTHY
        self._store.register(self._me)
        beat = threading.Thread(target=self._keep, name="beat", daemon=True)
        beat.start()
        try:
            drained = asyncio.run(self._listen())
        except Exception as error:
            if is_the_databases(error):
                log.warning("the database is lost: %s", one_line(str(error), 300))
            else:
                log.exception("the loop failed, which is no fault of the database")
            drained = False
        finally:
            self._ended.set()
            self._runner.close()
        with contextlib.suppress(DatabaseError):
            self._store.retire(self.name)
        if self._status is not None:
            return self._status
        return DRAINED if drained else DATABASE_LOST

    async def _listen(self) -> bool:
        """Whether it ended because it was told to. The task under way is finished and delivered first, if that takes no
        longer than `drain_s`; a second signal gives it up at once."""
        from procrastinate import App, PsycopgConnector

        conninfo = self._store.queue_conninfo
        connector = PsycopgConnector(
            conninfo=conninfo, kwargs=KEEPALIVE | {"options": self._store.queue_options}, min_size=1, max_size=4,
            timeout=POOL_TIMEOUT_S, num_workers=1,
        )  # fmt: skip
        app = App(connector=connector)
        app.task(name=MEASURE)(self.measure)
        asked = 0
        async with app.open_async():
            working = asyncio.create_task(
                app.run_worker_async(
                    queues=[self.queue, queue_to(self.name)], name=self.name, concurrency=1,
                    install_signal_handlers=False, delete_jobs="always", update_heartbeat_interval=BEAT_S,
                    stalled_worker_timeout=STALLED_S, fetch_job_polling_interval=RETRY_S,
                )
            )  # fmt: skip
            tidying = asyncio.create_task(_tidy(app))
            loop, told = asyncio.get_running_loop(), asyncio.Event()
            # procrastinate's word for: finish what is under way, then end
            self._stop_fetching = lambda: loop.call_soon_threadsafe(working.cancel)

            def on_signal() -> None:
                nonlocal asked
                asked += 1
                told.set()
                if asked == 1:
                    working.cancel()
                    loop.call_later(self._drain_s, self._hurry)  # before whoever supervises us loses patience
                else:
                    self._hurry()

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, on_signal)
            with contextlib.suppress(asyncio.CancelledError):
                await working
            tidying.cancel()
            if self._status == UNREADABLE:  # visible, and asked for nothing, until somebody replaces it
                await told.wait()
                self._status = DRAINED
        return asked > 0

    def _hurry(self) -> None:
        """Give up what is under way, a result that cannot be delivered included."""
        self._hurried.set()
        self._stale.set()

    def measure(self, task: str, attempt: int) -> None:
        """The task of the queue."""
        request = self._begin(task, attempt)
        if isinstance(request, Refusal):
            self._refused(request)
            return
        if request is None:
            return
        self._at = (task, attempt)
        self._pulse.begin(request)
        try:
            measured, error, unusable = self._outcome(request)
            if self._suspicion.told(measured, unusable=unusable) and (broken := self._tested()):
                self._give_up(f"its device failed a test: {broken}", UNHEALTHY)
                self._give_back(task, attempt)  # what it says of a device that is broken says nothing of candidates
                return
            self._pulse.end()
            self._deliver(task, attempt, measured, error)
        except RunStoppedError:
            log.info("task %s, attempt %d: given up", task, attempt)
            self._give_back(task, attempt)
        except DeviceBusyError as error:
            log.warning("task %s, attempt %d: given back: %s", task, attempt, error)
            self._give_back(task, attempt, waiting=one_line(f"for worker {self.name}: {error}", 500))
        finally:
            self._pulse.end()
            self._at = None
            self._stale.clear()

    def _outcome(self, request: Request) -> tuple[Sequence[Measurement], str, bool]:
        """Measurements, why there are no more of them, whether the device could not be used. Raises RunStoppedError,
        DeviceBusyError."""
        try:
            return self._measured(request), "", False
        except (RunStoppedError, DeviceBusyError):
            raise
        except DeviceUnavailableError as unavailable:
            return unavailable.measured, str(unavailable), True
        except Exception as error:
            log.exception("a request that cannot be measured")
            return (), one_line(f"{type(error).__name__}: {error}", 300), False

    def _measured(self, request: Request) -> Sequence[Measurement]:
        """Raises ValueError for work that is not for this device, whatever queue it came by."""
        if target_of(request.key.device) != self._me.target:
            raise ValueError(f"this worker measures on {self._me.device}: got a key of {request.key.device}")
        return self._runner.measure(request, should_stop=self._should_stop)

    def _should_stop(self) -> bool:
        self._pulse.beat(waiting=self._runner.waits)
        return self._stale.is_set()

    def _tested(self) -> str:
        """What is wrong with the device; empty if nothing is. Raises RunStoppedError, DeviceBusyError."""
        broken = self_test(self._runner, self._me.device, self._should_stop)
        if not broken:
            self._suspicion.cleared()
        return broken

    def _still_broken(self) -> str:
        """Of a worker whose predecessor on this very device ended because of it: what is wrong, before it takes
        anything. A machine may have several that are equal; a worker of a former release did not say which it had."""
        host, lock = f"{platform.node()}:", self._me.about["lock"]
        mine = [
            w for w in self._store.workers()
            if w.name.startswith(host) and w.device == self._me.device and w.about.get("lock", lock) == lock
        ]  # fmt: skip
        while mine and mine[0].ended and mine[0].unfit:
            try:
                return self._tested()
            except DeviceBusyError as error:  # which says nothing of the device
                log.warning("the device is tested later: %s", error)
        return ""

    def _begin(self, task: str, attempt: int) -> Request | Refusal | None:
        try:
            return self._store.begin(
                task, attempt, self.name, release=self._release, in_use=in_use(self._physical, self._locks)
            )
        except DatabaseError as error:  # it is offered again: to this one or another
            log.warning("task %s could not be begun: %s", task, error)
            return None

    def _refused(self, refusal: Refusal) -> None:
        log.warning("a task was refused: %s", refusal.reason)
        if refusal.unreadable:
            self._give_up(refusal.reason, UNREADABLE)

    def _give_up(self, reason: str, status: int) -> None:
        """Take no more work."""
        log.error("this worker takes no more work: %s", reason)
        self._status, self._me = status, replace(self._me, unfit=one_line(reason, 500))
        self._stop_fetching()
        with contextlib.suppress(DatabaseError):  # then its silence says it
            self._store.unfit(self.name, self._me.unfit)

    def _give_back(self, task: str, attempt: int, *, waiting: str = "") -> None:
        with contextlib.suppress(DatabaseError):  # else whoever waits for it notices the silence
            self._store.reassign(task, attempt, waiting=waiting)

    def _deliver(self, task: str, attempt: int, measured: Sequence[Measurement], error: str) -> None:
        """However long the database is away, up to DELIVER_S or until we are to end: measuring again costs more than
        waiting."""
        give_up_at = time.monotonic() + DELIVER_S
        while True:
            try:
                counted = self._store.deliver(task, attempt, self.name, measured, error)
            except DatabaseError as failure:
                if time.monotonic() > give_up_at or self._hurried.wait(RETRY_S):
                    log.warning("task %s could not be delivered: %s", task, failure)
                    return
            else:
                log.info("task %s, attempt %d: %s", task, attempt, "delivered" if counted else "came too late")
                return

    def _keep(self) -> None:
        """Say that this worker lives, as long as what it measures makes progress, and learn whether that still
        counts."""
        while not self._ended.wait(BEAT_S):
            if stuck := self._pulse.stuck():
                self._abandon(stuck)
            at = self._at
            try:
                busy = in_use(self._physical, self._locks)
                if not self._store.heard(self.name, in_use=busy, task=at) and at == self._at:
                    self._stale.set()
            except DatabaseError:  # silence is what tells the others
                continue
            except UnknownWorkerError:
                self._register_anew()
            except Exception as error:
                # A worker that is silent but takes tasks is taken for dead by each: what it measures would be blamed.
                log.exception("a bug: this worker cannot say that it lives")
                self._abandon(f"it could not say that it lives: {type(error).__name__}: {error}")

    def _register_anew(self) -> None:
        """This machine slept, or was cut off, for so long that the worker was forgotten; unfit it is still."""
        log.warning("this worker was forgotten, and registers once more")
        with contextlib.suppress(DatabaseError):  # it is tried at the next beat
            self._store.register(self._me)

    def _abandon(self, stuck: str) -> None:
        """End here: the thread that is stuck cannot be. Its child ends with us, and who waits notices the silence."""
        log.error("this worker is stuck: %s", stuck)
        with contextlib.suppress(DatabaseError):
            self._store.unfit(self.name, one_line(f"it was stuck: {stuck}", 500))
            self._store.retire(self.name)
        os._exit(UNHEALTHY)


async def _tidy(app: Any) -> None:
    """procrastinate keeps what a killed worker had begun; the tasks themselves were given to others long ago."""
    from procrastinate.exceptions import ConnectorException
    from procrastinate.jobs import Status

    while True:
        try:
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_S):
                await app.job_manager.finish_job(job, status=Status.FAILED, delete_job=True)
        except ConnectorException:  # the worker itself notices that the database is away
            log.debug("what killed workers left in the queue is removed later")
        except Exception:
            log.exception("a bug: what killed workers left in the queue stays for now")
        await asyncio.sleep(TIDY_S)


def _about(device: str | None, release: str) -> JsonObject:
    """Where measurements come from."""
    return {
        "host": platform.node(), "pid": os.getpid(), "asked_for": device or "auto", "python": platform.python_version(),
        "os": platform.platform(), "machine": platform.machine(), "executable": Path(sys.executable).name,
        "processors": processors(), "tinygrad-autotune": release,
    }  # fmt: skip
