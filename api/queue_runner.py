"""Measurements by workers elsewhere: the Runner of a fleet, over the queue in PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from autotune.fleet import ALIVE_S, Task, TaskState, Worker, queue_of
from autotune.job import target_of
from autotune.measurement import Measurement
from autotune.runner import DeviceUnavailableError, NoWorkerError, Request, RunStoppedError
from db import SqlStore
from strategies.key import DeviceSpec

POLL_S = 0.1
LOOK_S = 2.0
"""How often a task that waits looks for living workers."""
REMIND_S = 10.0
"""After this long a task that waits is queued once more: whoever fetched it may have died before it began."""


class QueueRunner:
    """A Runner for one kind of device: a request is a task, and whichever worker of the kind is free measures it.

    The work of a worker that falls silent is given to another; only the result of the current attempt comes back.
    For one thread at a time.
    """

    def __init__(
        self,
        store: SqlStore,
        device: DeviceSpec,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._device, self._queue = store, device, queue_of(device)
        self._sleep, self._clock, self._looked_at = sleep, clock, clock()

    def measure(self, request: Request, *, should_stop: Callable[[], bool] = lambda: False) -> list[Measurement]:
        """One measurement per candidate, in order. Raises DeviceUnavailableError, NoWorkerError, RunStoppedError,
        DatabaseError, and ValueError for a key of another device."""
        if target_of(request.key.device) != target_of(self._device):
            raise ValueError(f"this runner measures on {self._device}: got a key of {request.key.device}")
        task_id, watched = self._store.post(self._queue, request), Watched(self._clock)
        while True:
            if should_stop():
                self._store.withdraw(task_id)
                raise RunStoppedError
            task = self._store.task(task_id)
            if task is None or task.state is TaskState.CANCELLED:  # by another service that wanted the same and stopped
                task_id = self._store.post(self._queue, request)
                continue
            if task.state is TaskState.DONE:
                return _result(task)
            self._attend(task, watched.still_s(task))
            self._sleep(POLL_S)

    def _attend(self, task: Task, still_s: float) -> None:
        """See to it that somebody works on the task, which has not changed for `still_s`. Raises NoWorkerError."""
        if task.state is TaskState.RUNNING and still_s > ALIVE_S:
            self._store.reassign(task.id, task.attempt)
        if task.state is TaskState.QUEUED and self._clock() - self._looked_at > LOOK_S:
            self._looked_at = self._clock()
            self._expect_worker(task.id)
            if still_s > REMIND_S:
                self._store.remind(task.id)

    def close(self) -> None:
        """Nothing is held."""

    def _expect_worker(self, task_id: str) -> None:
        known = [worker for worker in self._store.workers() if queue_of(worker.device) == self._queue]
        if not any(worker.alive for worker in known):
            self._store.withdraw(task_id)
            raise NoWorkerError(f"waiting for {no_worker(self._device, last_seen(known))}; {start_one(self._device)}")


class Watched:
    """How long a task has stood still, by our own clock and while the database answered: after an outage nobody is
    taken for dead who could not have been heard."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[object, ...] = ()
        self._since = clock()

    def still_s(self, task: Task) -> float:
        """Seconds without a change."""
        now = (task.state, task.attempt, task.worker, task.beat)
        if now != self._last:
            self._last, self._since = now, self._clock()
        return self._clock() - self._since


def last_seen(workers: list[Worker]) -> float:
    """When one of them was last heard of, in seconds since the epoch; 0 for none."""
    return max((worker.seen_at for worker in workers), default=0.0)


def no_worker(device: DeviceSpec, since: float) -> str:
    """`a worker for METAL since 2026-01-31 12:00:00 UTC`."""
    return f"a worker for {device.device} since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S} UTC"


def start_one(device: DeviceSpec) -> str:
    """What to do about it. Without the address: it may hold a password."""
    return (
        f"start one on a machine with {device.arch or device.device} and {device.cores or 'as many'} cores: "
        f"autotune worker --device {device.device} --db postgresql+psycopg://..."
    )


def _result(task: Task) -> list[Measurement]:
    if task.error:
        raise DeviceUnavailableError(task.error, task.measurements)
    return list(task.measurements)
