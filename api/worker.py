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
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from api.devices import Devices
from api.text import one_line
from autotune.device_use import in_use
from autotune.fleet import Worker, queue_of
from autotune.job import target_of
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement
from autotune.runner import DeviceUnavailableError, Request, RunStoppedError
from db import DatabaseError, SqlStore
from db.queue import MEASURE
from strategies.shape import JsonObject

DRAINED, DATABASE_LOST = 0, 75
"""Exit statuses. 75 is EX_TEMPFAIL: whoever supervises the worker starts it again."""
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


class FleetWorker:
    """One process per physical device. `run` returns an exit status: DRAINED after SIGTERM, DATABASE_LOST else."""

    def __init__(self, store: SqlStore, devices: Devices, device: str | None, **runner: Any) -> None:
        """`device` None: the best there is. `runner`: further arguments of LocalRunner. Raises what describing and
        registering raise: UnknownDeviceError, DatabaseError."""
        self._store = store
        spec = devices.describe(device)
        self._me = Worker(
            name=f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:12]}", device=spec, about=_about(device)
        )
        self._runner = LocalRunner(device or spec.device, lock_timeout_s=float("inf"), on_wait=log.info, **runner)
        self._at: tuple[str, int] | None = None
        self._stale = threading.Event()
        self._ended = threading.Event()

    @property
    def name(self) -> str:
        return self._me.name

    @property
    def queue(self) -> str:
        return queue_of(self._me.device)

    def run(self) -> int:
        """Work until a signal or the loss of the database."""
        self._store.expect_queue()
        self._store.register(self._me)
        beat = threading.Thread(target=self._keep, name="beat", daemon=True)
        beat.start()
        try:
            drained = asyncio.run(self._listen())
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the database is not there for us
            log.warning("the database is lost: %s", " ".join(str(error).split())[:300])
            drained = False
        finally:
            self._ended.set()
            self._runner.close()
        with contextlib.suppress(DatabaseError):
            self._store.retire(self.name)
        return DRAINED if drained else DATABASE_LOST

    async def _listen(self) -> bool:
        """Whether it ended because it was told to. The task under way is finished and delivered first; a second
        signal gives it up."""
        from procrastinate import App, PsycopgConnector

        conninfo = self._store.queue_conninfo
        connector = PsycopgConnector(
            conninfo=conninfo, kwargs=KEEPALIVE, min_size=1, max_size=4, timeout=POOL_TIMEOUT_S, num_workers=1
        )
        app = App(connector=connector)
        app.task(name=MEASURE)(self.measure)
        asked = 0
        async with app.open_async():
            working = asyncio.create_task(
                app.run_worker_async(
                    queues=[self.queue], name=self.name, concurrency=1, install_signal_handlers=False,
                    delete_jobs="always", update_heartbeat_interval=BEAT_S, stalled_worker_timeout=STALLED_S,
                    fetch_job_polling_interval=RETRY_S,
                )
            )  # fmt: skip
            tidying = asyncio.create_task(_tidy(app))

            def on_signal() -> None:
                nonlocal asked
                asked += 1
                if asked == 1:
                    working.cancel()  # procrastinate's word for: finish what is under way, then end
                else:
                    self._stale.set()

            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, on_signal)
            with contextlib.suppress(asyncio.CancelledError):
                await working
            tidying.cancel()
        return asked > 0

    def measure(self, task: str, attempt: int) -> None:
        """The task of the queue."""
        request = self._begin(task, attempt)
        if request is None:
            return
        self._at = (task, attempt)
        try:
            measured, error = self._outcome(request)
            self._deliver(task, attempt, measured, error)
        except RunStoppedError:
            log.info("task %s, attempt %d: given up", task, attempt)
            with contextlib.suppress(DatabaseError):  # else whoever waits for it notices the silence
                self._store.reassign(task, attempt)
        finally:
            self._at = None
            self._stale.clear()

    def _outcome(self, request: Request) -> tuple[Sequence[Measurement], str]:
        """Measurements, and why there are no more of them. Raises RunStoppedError."""
        try:
            return self._measured(request), ""
        except RunStoppedError:
            raise
        except DeviceUnavailableError as unavailable:
            return unavailable.measured, str(unavailable)
        except Exception as error:
            log.exception("a request that cannot be measured")
            return (), one_line(f"{type(error).__name__}: {error}", 300)

    def _measured(self, request: Request) -> Sequence[Measurement]:
        """Raises ValueError for work that is not for this device, whatever queue it came by."""
        if target_of(request.key.device) != self._me.target:
            raise ValueError(f"this worker measures on {self._me.device}: got a key of {request.key.device}")
        return self._runner.measure(request, should_stop=self._stale.is_set)

    def _begin(self, task: str, attempt: int) -> Request | None:
        try:
            return self._store.begin(task, attempt, self.name)
        except DatabaseError as error:  # it is offered again: to this one or another
            log.warning("task %s could not be begun: %s", task, error)
            return None

    def _deliver(self, task: str, attempt: int, measured: Sequence[Measurement], error: str) -> None:
        """However long the database is away, up to DELIVER_S: measuring again costs more than waiting."""
        give_up_at = time.monotonic() + DELIVER_S
        while True:
            try:
                counted = self._store.deliver(task, attempt, self.name, measured, error)
            except DatabaseError as failure:
                if time.monotonic() > give_up_at:
                    log.warning("task %s could not be delivered: %s", task, failure)
                    return
                time.sleep(RETRY_S)
            else:
                log.info("task %s, attempt %d: %s", task, attempt, "delivered" if counted else "came too late")
                return

    def _keep(self) -> None:
        """Say that this worker lives, and learn whether what it measures still counts."""
        device = self._runner.device
        while not self._ended.wait(BEAT_S):
            at = self._at
            with contextlib.suppress(DatabaseError):  # silence is what tells the others
                if not self._store.heard(self.name, in_use=in_use(device), task=at) and at == self._at:
                    self._stale.set()


async def _tidy(app: Any) -> None:
    """procrastinate keeps what a killed worker had begun; the tasks themselves were given to others long ago."""
    from procrastinate.exceptions import ConnectorException
    from procrastinate.jobs import Status

    while True:
        with contextlib.suppress(ConnectorException):  # the worker itself notices that the database is away
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_S):
                await app.job_manager.finish_job(job, status=Status.FAILED, delete_job=True)
        await asyncio.sleep(TIDY_S)


def _about(device: str | None) -> JsonObject:
    """Where measurements come from."""
    return {
        "host": platform.node(), "pid": os.getpid(), "asked_for": device or "auto", "python": platform.python_version(),
        "os": platform.platform(), "machine": platform.machine(), "executable": Path(sys.executable).name,
        "tinygrad-autotune": version("tinygrad-autotune"),
    }  # fmt: skip
