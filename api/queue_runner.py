"""Measurements by workers elsewhere: the Runner of a fleet, over the queue in PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from api.absence import absence
from api.task_board import TaskBoard
from autotune.fleet import ALIVE_S, MOST_LOST, Task, TaskState, Worker, queue_of, queue_to
from autotune.job import target_of
from autotune.measurement import Measurement, Status
from autotune.runner import DeviceUnavailableError, NoWorkerError, Request, RunStoppedError, at_once
from db import SqlStore
from strategies.key import DeviceSpec

POLL_S = 0.1
LOOK_S = 2.0
"""How often a task that waits looks for workers."""
REMIND_S = 10.0
"""After this long a task that waits is queued once more: whoever fetched it may have died before it began."""


class LostError(Exception):
    """Every worker that took a task was lost."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.id)
        self.task = task


class QueueRunner:
    """A Runner for one kind of device: a request is a task, and whichever worker of the kind is free measures it.

    The work of a worker that falls silent is given to another; only the result of the current attempt comes back. A
    request that costs `most_lost` workers is taken apart: each of its candidates is measured alone, one that costs as
    many again is `crashed`, and those that were fine are measured together once more. With `idle_worker` only that
    worker is asked, and only while no program uses its device. Runners of a service share a `board`. For one thread.
    """

    def __init__(
        self,
        store: SqlStore,
        device: DeviceSpec,
        *,
        idle_worker: str = "",
        most_lost: int = MOST_LOST,
        board: TaskBoard | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._device, self._idle_worker, self._most_lost = store, device, idle_worker, most_lost
        self._board = board or TaskBoard(store.tasks)
        self._queue = queue_to(idle_worker) if idle_worker else queue_of(device)
        self._sleep, self._clock, self._looked_at = sleep, clock, clock()

    def measure(self, request: Request, *, should_stop: Callable[[], bool] = lambda: False) -> list[Measurement]:
        """One measurement per candidate, in order. Raises DeviceUnavailableError, NoWorkerError, RunStoppedError,
        DatabaseError, and ValueError for a key of another device."""
        if target_of(request.key.device) != target_of(self._device):
            raise ValueError(f"this runner measures on {self._device}: got a key of {request.key.device}")
        try:
            return self._asked(request, should_stop)
        except LostError as error:
            if len(request.candidates) == 1:
                return [self._crashed(request, error.task)]
        return self._apart(request, should_stop)

    @property
    def at_once(self) -> int:
        """Of the smallest machine that may take the request; 1 while there is none, or where it does not say."""
        asked = [worker for worker in self._store.workers() if worker.fit and self._is_asked(worker)]
        return at_once(min((worker.processors for worker in asked), default=1))

    def close(self) -> None:
        """Nothing is held."""

    def _asked(self, request: Request, should_stop: Callable[[], bool]) -> list[Measurement]:
        """What a worker answers. Raises LostError if it cost too many."""
        watched = Watched(self._clock)
        while True:
            task_id = self._post(request)
            with self._board.follow(task_id):
                task = self._ended(task_id, watched, should_stop)
            if task is None or task.state is TaskState.CANCELLED:  # by another service that wanted the same and stopped
                continue
            if task.state is TaskState.LOST:
                raise LostError(task)
            return _result(task)

    def _ended(self, task_id: str, watched: Watched, should_stop: Callable[[], bool]) -> Task | None:
        """The task once it has ended, None if it is gone. Raises RunStoppedError, NoWorkerError."""
        while True:
            if should_stop():
                self._store.withdraw(task_id)
                raise RunStoppedError
            task = self._board.look(task_id)
            if task is None or task.state.ended:
                return task
            self._attend(task, watched.still_s(task))
            self._sleep(POLL_S)

    def _apart(self, request: Request, should_stop: Callable[[], bool]) -> list[Measurement]:
        """Each candidate by itself; then those that were fine together, so that their rounds are paired."""
        alone = [
            self.measure(
                replace(request, candidates=(candidate,), keep=min(1, max(0, request.keep - index))),
                should_stop=should_stop,
            )[0]
            for index, candidate in enumerate(request.candidates)
        ]
        fine = [index for index, measurement in enumerate(alone) if measurement.ok]
        if not 1 < len(fine) < len(alone):  # nobody to blame, or nobody to be measured with
            return alone
        kept = sum(index < request.keep for index in fine)
        rest = replace(request, candidates=tuple(request.candidates[index] for index in fine), keep=kept)
        together = dict(zip(fine, self.measure(rest, should_stop=should_stop), strict=True))
        return [together.get(index, measurement) for index, measurement in enumerate(alone)]

    def _crashed(self, request: Request, task: Task) -> Measurement:
        """Of a candidate that costs workers. Its attempt is the task: told again, it is the same measurement."""
        return Measurement(
            key=request.key, candidate=request.candidates[0], status=Status.CRASHED, attempt=f"lost-{task.id}",
            reason=f"{len(task.lost)} workers were lost while they measured it: {', '.join(task.lost)}",
            measured_at=self._store.now(),
        )  # fmt: skip

    def _post(self, request: Request) -> str:
        return self._store.post(self._queue, request, idle=bool(self._idle_worker))

    def _attend(self, task: Task, still_s: float) -> None:
        """See to it that somebody works on the task, which has not changed for `still_s`. Raises NoWorkerError."""
        if task.state is TaskState.RUNNING and still_s > ALIVE_S:
            self._store.reassign(task.id, task.attempt, most_lost=self._most_lost)
        if task.state is not TaskState.QUEUED:
            return
        if task.waiting:
            self._store.withdraw(task.id)
            raise NoWorkerError(f"waiting {task.waiting}" if self._idle_worker else f"waiting: {task.waiting}")
        if self._clock() - self._looked_at > LOOK_S:
            self._looked_at = self._clock()
            self._expect_worker(task.id)
            if still_s > REMIND_S:
                self._store.remind(task.id)

    def _expect_worker(self, task_id: str) -> None:
        workers = self._store.workers()
        if not any(self._is_asked(worker) for worker in workers if worker.fit):
            self._store.withdraw(task_id)
            raise NoWorkerError(str(absence(self._device, workers)))

    def _is_asked(self, worker: Worker) -> bool:
        if self._idle_worker:
            return worker.name == self._idle_worker
        return queue_of(worker.device, worker.release or None) == self._queue


class Watched:
    """How long a task has stood still, by our own clock and while the database answered: after an outage nobody is
    taken for dead who could not be heard."""

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


def _result(task: Task) -> list[Measurement]:
    if task.error:
        raise DeviceUnavailableError(task.error, task.measurements)
    return list(task.measurements)
