"""The job runner: takes queued jobs from the store and tunes their keys, one after the other."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Protocol

from api.runners import Runners
from api.text import one_line
from autotune.device_lock import DeviceBusyError
from autotune.job import Budget, Job
from autotune.progress import Progress
from autotune.runner import Runner
from autotune.session import TuneCancelledError
from autotune.store import Store
from autotune.winner import Winner
from db import DatabaseError
from strategies.key import ConvKey
from strategies.shape import JsonObject

IDLE_S = 1.0
BUSY_S = 2.0
REPORT_S = 0.2
RELEASE_S = 60.0
"""How long without a job the warm children, and what they hold of their devices, are kept."""

log = logging.getLogger("autotune.jobs")


class Tune(Protocol):
    """`autotune.tune.tune`."""

    def __call__(
        self,
        key: ConvKey,
        *,
        store: Store,
        runner: Runner,
        budget: Budget,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        since: float | None,
    ) -> Winner: ...


class StoppedError(Exception):
    """The job is to be left: it was cancelled, or the service ends."""


class JobRunner:
    """One thread that works on one job at a time.

    Whatever happens to a job is in the store: a killed service leaves it running there, and the next start puts it
    back into the queue. One key that fails does not keep the others of its job from being tuned.
    """

    def __init__(self, store: Store, runners: Runners, *, tune: Tune, owner: str = "") -> None:
        self._store, self._runners, self._tune = store, runners, tune
        self._owner = owner or f"service:{os.getpid()}:{uuid.uuid4().hex}"  # in containers all of them are process 1
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._job_id = ""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, with what a killed service left behind."""
        self._thread.start()

    def wake(self) -> None:
        """There is a new job: look at once."""
        self._wake.set()

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and end what it measures now. Raises LookupError for an unknown id."""
        job = self._store.cancel(job_id)
        with self._lock:
            if self._job_id == job_id:
                self._left.set()
        return job

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the thread; the job it works on goes back into the queue. Idempotent.

        A runner that goes on for longer than `timeout_s` is not waited for.
        """
        self._stopping.set()
        self._wake.set()
        with self._lock:
            self._left.set()
        if not self.alive:
            return
        self._thread.join(timeout_s)
        with self._lock:
            job_id = self._job_id
        if job_id:
            with contextlib.suppress(DatabaseError):  # then it is left running, and the next start puts it back
                self._store.requeue(job_id, owner=self._owner)

    def _run(self) -> None:
        """What is owed to a job comes first: a job that was taken never stays running with nobody at it."""
        owed: Callable[[], None] | None = self._put_back
        said, worked_at = "", time.monotonic()
        while not self._stopping.is_set():
            self._wake.clear()
            job = None
            try:
                if owed is not None:
                    owed()
                    owed = None
                job, said = self._store.claim(self._owner), ""
                if job is not None:
                    self._work(job)
                    worked_at = time.monotonic()
                else:
                    if time.monotonic() - worked_at > RELEASE_S:
                        self._runners.close()
                    self._wake.wait(IDLE_S)
            except DatabaseError as error:  # locked or full for a while
                if str(error) != said:  # and perhaps for days
                    log.error("the job runner waits until the database works: %s", error)  # noqa: TRY400 - one line
                said = str(error)
                owed = owed if job is None else partial(self._store.requeue, job.id, owner=self._owner)
                self._stopping.wait(BUSY_S)
            except Exception as error:
                log.exception("a bug in the job runner, which goes on")
                owed = None if job is None else partial(self._fail, job.id, error)
                self._stopping.wait(BUSY_S)

    def _put_back(self) -> None:
        """What a killed service left behind."""
        for job in list(self._store.unfinished()):
            log.info("job %s was left unfinished: it goes on", job.id)
            self._store.requeue(job.id)

    def _fail(self, job_id: str, error: Exception) -> None:
        self._store.finish(job_id, error=one_line(f"{type(error).__name__}: {error}", 300), owner=self._owner)

    def _work(self, job: Job) -> None:
        with self._lock:
            self._job_id, self._left = job.id, threading.Event()
            if self._stopping.is_set():
                self._left.set()
        failures = [str(reason) for reason in job.progress.get("failures", [])]
        try:
            for index in range(job.done_keys, len(job.keys)):
                self._work_on(job, index, Report(self._store, self._owner, job, index, failures, self._left), failures)
        except (StoppedError, TuneCancelledError):
            if self._stopping.is_set():
                self._store.requeue(job.id, owner=self._owner)
            return
        finally:
            with self._lock:
                self._job_id = ""
        self._store.finish(job.id, error=_failure(failures, len(job.keys)), owner=self._owner)

    def _work_on(self, job: Job, index: int, report: Report, failures: list[str]) -> None:
        key = job.keys[index]
        try:
            self._tune_key(job, key, report)
        except (StoppedError, TuneCancelledError, DatabaseError):
            raise
        except Exception as error:
            log.exception("job %s: %s failed", job.id, key)
            failures.append(one_line(f"{key}: {str(error) or type(error).__name__}", 300))
        report.done()

    def _tune_key(self, job: Job, key: ConvKey, report: Report) -> None:
        while True:
            report.check()
            try:
                self._tune(
                    key, store=self._store, runner=self._runners.get(key.device.device), budget=job.budget,
                    on_progress=report, should_stop=report.stopped, since=job.created_at,
                )  # fmt: skip
            except DeviceBusyError as error:
                report.waiting(str(error))
                self._left.wait(BUSY_S)
            else:
                return


class Report:
    """Carries the progress of one key of a job to the store, not more often than anyone can see."""

    def __init__(
        self, store: Store, owner: str, job: Job, index: int, failures: list[str], left: threading.Event
    ) -> None:
        self._store, self._owner, self._job, self._index = store, owner, job, index
        self._failures, self._left = failures, left
        self._last_s = float("-inf")

    def __call__(self, progress: Progress) -> None:
        """From the search."""
        if time.monotonic() - self._last_s >= REPORT_S:
            self._last_s = time.monotonic()
            self._send(self._index, progress.to_json())

    def waiting(self, reason: str) -> None:
        """The device is in use by another process."""
        self._send(self._index, {"waiting_for": one_line(reason, 300)})

    def done(self) -> None:
        """The key is finished, well or not. Raises StoppedError if the job was cancelled meanwhile."""
        self._send(self._index + 1, {})
        self.check()

    def stopped(self) -> bool:
        """Whether the search should end."""
        return self._left.is_set()

    def check(self) -> None:
        """Raises StoppedError if the job is to be left."""
        if self.stopped():
            raise StoppedError

    def _send(self, done_keys: int, said: JsonObject) -> None:
        key = self._job.keys[min(done_keys, len(self._job.keys) - 1)]
        content = {**said, "key": str(key), "digest": key.digest, "failures": list(self._failures)}
        if not self._store.progress(self._job.id, done_keys, content, owner=self._owner):
            self._left.set()


def _failure(failures: list[str], keys: int) -> str:
    if not failures:
        return ""
    return failures[0] if keys == 1 else f"{len(failures)} of {keys} shapes failed, the first: {failures[0]}"
