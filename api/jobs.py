"""The job runner: takes queued keys from the store and tunes them, one after the other on each device."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from api.lanes import Lane, Lanes, Offer, as_measured_by
from api.text import one_line
from autotune.device_lock import DeviceBusyError
from autotune.fleet import Worker
from autotune.job import Budget, Claim, Job, JobState, target_of
from autotune.progress import Progress
from autotune.runner import DeviceUnavailableError, NoWorkerError, Runner
from autotune.session import TuneCancelledError
from autotune.store import Store
from autotune.winner import Winner
from db import DatabaseError, StatementRefusedError
from strategies.key import ConvKey
from strategies.shape import JsonObject

IDLE_S = 1.0
BUSY_S = 2.0
DEVICE_TRIES = 3
"""How often a device may be unusable before the key fails: once or twice somebody may have killed its process."""
UNUSABLE_KEYS = 2
"""So many keys in a row that a device of ours could not be used for, and it is the device: its lane rests."""
REST_S = 60.0
REPORT_S = 0.2
RELEASE_S = 60.0
"""How long without a job the warm children, and what they hold of their devices, are kept."""
BEAT_S = 5.0
LANE_FAULT_S = 60.0
"""How long it is said of a lane that its thread ended by a bug: it is opened anew at once, and may end so again."""
LEASE_S = 30.0
"""A key whose owner is silent for this long is put back: six beats, so that a slow disk costs nobody a key."""

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
    """The key is to be left: its job was cancelled, somebody else has it by now, or the service ends."""


class JobRunner:
    """One thread per lane, each of which works on one key at a time; one that opens lanes; one that keeps the claims.

    Whatever happens to a job is in the store. A key whose service was killed is put back: at the next start, or by
    another service once it has been silent for LEASE_S. One key that fails does not keep the others of its job from
    being tuned.
    """

    def __init__(self, store: Store, lanes: Lanes, *, tune: Tune, owner: str = "") -> None:
        self._store, self._lanes, self._tune = store, lanes, tune
        self._owner = owner or f"service:{os.getpid()}:{uuid.uuid4().hex}"  # in containers all of them are process 1
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._working: dict[str, Work] = {}
        self._offer = Offer()
        self._worked_at = time.monotonic()
        self.leases_lost = 0
        """Keys that were put back here since the start, as their owner fell silent."""
        self.lanes_lost = 0
        """Threads of lanes that ended by a bug since the start."""
        self._faults: dict[str, float] = {}
        self._unusable = Counter[str]()
        self._rests: dict[str, tuple[float, str]] = {}
        """By lane, until when it rests and why."""
        self._failing = ""
        self._opener = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="jobs-beat", daemon=True)

    @property
    def running(self) -> bool:
        """Whether the threads without which nothing goes on live: only a restart brings them back."""
        return self._opener.is_alive() and self._keeper.is_alive()

    @property
    def alive(self) -> bool:
        """Whether its threads still work, those of the lanes included."""
        return not self.faults()

    def faults(self) -> list[str]:
        """What is wrong with it, one line each. A lane that ended by a bug is named for LANE_FAULT_S, a pass over the
        queue that failed until one succeeds: no lane is opened meanwhile. A lane that rests is named until its device
        can be used, or nothing has been tried on it for LANE_FAULT_S."""
        ended = [f"its thread {t.name!r} has ended" for t in (self._opener, self._keeper) if not t.is_alive()]
        with self._lock:
            since = time.monotonic() - LANE_FAULT_S
            lanes = {name for name, work in self._working.items() if work.dead} | {
                name for name, at in self._faults.items() if at > since
            }
            resting = [f"the lane {name} rests: {why}" for name, (until, why) in self._rests.items() if until > since]
        failing = [f"it looks at the queue in vain: {reason}"] if (reason := self._failing) else []
        return ended + failing + [f"the lane {name} ended by a bug: see the log" for name in sorted(lanes)] + resting

    def start(self) -> None:
        """Begin, with what a killed service left behind."""
        self._opener.start()
        self._keeper.start()

    def wake(self) -> None:
        """There is a new job: look at once."""
        self._wake.set()

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and end what it measures now. Raises LookupError for an unknown id."""
        job = self._store.cancel(job_id)
        with self._lock:
            for work in self._working.values():
                if work.claim is not None and work.claim.job.id == job_id:
                    work.left.set()
        return job

    def workers(self) -> list[Worker]:
        """Of a fleet, who was heard of last first."""
        return self._lanes.workers()

    def explained(self, job: Job) -> Job:
        """The job with `waiting_for` in its progress, if nobody works on it and it has not ended."""
        reason = self._waiting_for(job)
        return replace(job, progress={**job.progress, "waiting_for": reason}) if reason else job

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the threads; the keys they work on go back into the queue. Idempotent.

        A runner that goes on for longer than `timeout_s` is not waited for, nor is a database that is away for each key
        anew: what is left running is put back later.
        """
        self._stopping.set()
        self._wake.set()
        give_up_at = time.monotonic() + timeout_s
        with self._lock:
            working = list(self._working.values())
        for work in working:
            work.left.set()
        for thread in (*(work.thread for work in working), self._opener, self._keeper):
            if thread.is_alive():
                thread.join(max(0.0, give_up_at - time.monotonic()))
        for work in working:
            if work.claim is not None:
                try:
                    self._store.release(work.claim)
                except DatabaseError as error:  # whoever supervises us has less patience than a fleet has lanes
                    log.warning("keys are left running, and are put back later: %s", error)
                    break

    def _run(self) -> None:
        """Open a lane wherever keys wait and a device is free; put back what was abandoned."""
        idle_s = LEASE_S if self._lanes.shared else 0.0
        said, recovered_at = "", float("-inf")
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if time.monotonic() - recovered_at > BEAT_S:
                    self._beat()  # after a database that was away, the first to be heard of are our own
                    left = self._store.recover(idle_s=idle_s)
                    recovered_at, idle_s = time.monotonic(), LEASE_S
                    self.leases_lost += left
                    if left:
                        log.info("%d shapes were left unfinished: they go on", left)
                self._store.expire()
                self._open_lanes()
                said = self._failing = ""
                self._wake.wait(IDLE_S)
            except DatabaseError as error:  # locked or full for a while
                if str(error) != said:  # and perhaps for days
                    log.error("the job runner waits until the database works: %s", error)  # noqa: TRY400 - one line
                said = self._failing = str(error)
                self._stopping.wait(BUSY_S)
            except Exception as error:
                log.exception("a bug in the job runner, which goes on")
                self._failing = f"a bug ({type(error).__name__}), see the log"
                self._stopping.wait(BUSY_S)

    def _keep(self) -> None:
        """Say that this service lives, also while opening a device takes a minute."""
        while not self._stopping.wait(BEAT_S):
            try:
                self._beat()
            except DatabaseError:  # a lane that has lost its claim is told by its next report
                continue
            except Exception:
                log.exception("a bug in the job runner, which goes on")

    def _beat(self) -> None:
        with self._lock:
            owners = [self._owner_of(name) for name, work in self._working.items() if work.claim is not None]
        if owners:
            self._store.beat(owners)

    def _bury(self) -> None:
        """Lanes whose threads ended without a word: what they had goes back into the queue, and they can be opened."""
        with self._lock:
            dead = {name: work for name, work in self._working.items() if work.dead}
            for name in dead:
                del self._working[name]
                self._fault(name)
        for name, work in dead.items():
            log.error("the thread of the lane %s has ended without a word: it is opened anew", name)
            if work.claim is not None:
                self._store.release(work.claim)  # where it cannot be told, the lease runs out

    def _fault(self, lane: str) -> None:
        self.lanes_lost += 1
        self._faults[lane] = time.monotonic()

    def _open_lanes(self) -> None:
        self._bury()
        waiting = self._store.waiting()
        self._offer = self._lanes.offer(waiting)
        if waiting or self._working:
            self._worked_at = time.monotonic()
        elif time.monotonic() - self._worked_at > RELEASE_S:
            self._lanes.close()
            self._worked_at = time.monotonic()
        for lane in self._offer.lanes:
            with self._lock:
                if self._stopping.is_set() or lane.name in self._working or self._resting(lane):
                    continue
                thread = threading.Thread(target=self._serve, args=(lane,), name=f"lane {lane.name}", daemon=True)
                self._working[lane.name] = Work(thread)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread to be had now: the lane is opened when there is
                    del self._working[lane.name]
                    log.error("a lane for %s is opened later: %s", lane.name, error)  # noqa: TRY400 - one line

    def _owner_of(self, lane: str) -> str:
        return f"{self._owner}/{lane}"

    def _serve(self, lane: Lane) -> None:
        """One key after the other, until none is left for this lane. What is owed to a claim comes first: a key that
        was taken never stays running with nobody at it."""
        work = self._working[lane.name]
        try:
            while not self._stopping.is_set() and lane.is_open() and not self._resting(lane):
                work.left.clear()
                claim = self._store.claim(self._owner_of(lane.name), target=lane.target, busy=lane.busy())
                if claim is None:
                    return
                work.claim = claim
                if self._stopping.is_set():
                    work.left.set()
                self._settle(claim, self._outcome(claim, lane, work))
                work.claim = None
        except NoWorkerError:
            return
        except DatabaseError as error:
            log.error("a lane waits until the database works: %s", error)  # noqa: TRY400 - one line
            self._stopping.wait(BUSY_S)
        except Exception:
            log.exception("a bug ended the lane %s, which is opened anew", lane.name)
            with self._lock:
                self._fault(lane.name)
        finally:
            if work.claim is not None:
                self._settle(work.claim, self._store.release)
            with self._lock:
                del self._working[lane.name]

    def _settle(self, claim: Claim, owed: Callable[[Claim], None]) -> None:
        """Tell the store what became of a key, however long it takes until the store can be told."""
        while True:
            try:
                return owed(claim)
            except LookupError:  # its job was cancelled and then removed (`autotune prune`): nothing is owed
                return None
            except DatabaseError:
                if self._stopping.wait(BUSY_S):
                    return None

    def _outcome(self, claim: Claim, lane: Lane, work: Work) -> Callable[[Claim], None]:
        """Tune the key; what is then to be told to the store."""
        try:
            self._tune_key(claim, lane, work)
        except (StoppedError, TuneCancelledError):
            return self._store.release
        except Exception as error:
            if isinstance(error, NoWorkerError | DatabaseError) and not isinstance(error, StatementRefusedError):
                raise  # it may go otherwise the next time
            if isinstance(error, DeviceUnavailableError) and self._tires(lane, claim.key, error):
                return self._store.release
            log.exception("job %s: %s failed", claim.job.id, claim.key)
            reason = one_line(str(error) or type(error).__name__, 300)
            return lambda claim: self._store.finish(claim, reason)
        with self._lock:
            del self._unusable[lane.name]
            self._rests.pop(lane.name, None)
        return self._store.finish

    def _tires(self, lane: Lane, key: ConvKey, error: DeviceUnavailableError) -> bool:
        """Whether the lane is to rest instead of failing one key after the other. Who measures elsewhere looks after
        its device itself; a key's own flags may be what keeps its process from beginning."""
        if self._lanes.shared or key.device.flags != lane.device.flags:
            return False
        with self._lock:
            self._unusable[lane.name] += 1
            if self._unusable[lane.name] < UNUSABLE_KEYS:
                return False
            self._rests[lane.name] = (time.monotonic() + REST_S, one_line(str(error), 300))
        log.error("the lane %s rests for %g s: %s", lane.name, REST_S, error)
        return True

    def _resting(self, lane: Lane) -> bool:
        return self._rests.get(lane.name, (0.0, ""))[0] > time.monotonic()

    def _tune_key(self, claim: Claim, lane: Lane, work: Work) -> None:
        idle = claim.job.terms.idle
        report, unusable = Report(self._store, claim, work.left), 0

        def should_stop() -> bool:  # a program that comes has the device: what was measured is kept
            return report.stopped() or (idle and lane.busy())

        while True:
            report.check()
            try:
                self._tune(
                    as_measured_by(claim.key, lane.device), store=self._store, runner=lane.runner(idle),
                    budget=claim.job.budget, on_progress=report, should_stop=should_stop,
                    since=claim.job.created_at,
                )  # fmt: skip
            except NoWorkerError as error:
                report.waiting(str(error))
                raise
            except DeviceBusyError as error:
                report.waiting(str(error))
                work.left.wait(BUSY_S)
            except DeviceUnavailableError as error:
                unusable += 1
                if unusable == DEVICE_TRIES:
                    raise
                report.waiting(str(error))
                work.left.wait(BUSY_S)
            else:
                return

    def _waiting_for(self, job: Job) -> str:
        if job.state is not JobState.QUEUED:
            return ""
        devices = {target_of(device): device for device in job.waiting_devices()}
        for target in devices:
            missing = self._offer.missing.get(target)
            if missing is not None:
                return one_line(str(missing), 500)
        for lane in self._offer.lanes:
            if lane.target in devices and self._resting(lane):
                return f"waiting until {lane.device.device} can be used: {self._rests[lane.name][1]}"
        names = ", ".join(sorted({device.device for device in devices.values()}))
        if job.terms.idle and any(lane.target in devices and lane.busy() for lane in self._offer.lanes):
            return f"waiting until {names} is idle: a program that asked for tuning runs on it"
        return f"waiting for its turn on {names}"


class Work:
    """What a lane does now. `left` is set when it is to leave its claim."""

    def __init__(self, thread: threading.Thread) -> None:
        self.thread, self.left = thread, threading.Event()
        self.claim: Claim | None = None

    @property
    def dead(self) -> bool:
        """Whether its thread has ended, and not as it should: that takes it off the list first."""
        return self.thread.ident is not None and not self.thread.is_alive()


class Report:
    """Carries the progress of one key of a job to the store, not more often than anyone can see."""

    def __init__(self, store: Store, claim: Claim, left: threading.Event) -> None:
        self._store, self._claim, self._left = store, claim, left
        self._last_s = float("-inf")

    def __call__(self, progress: Progress) -> None:
        """From the search."""
        if time.monotonic() - self._last_s >= REPORT_S:
            self._last_s = time.monotonic()
            self._send(progress.to_json())

    def waiting(self, reason: str) -> None:
        """The device is in use by another process."""
        self._send({"waiting_for": one_line(reason, 500)})

    def stopped(self) -> bool:
        """Whether the search should end."""
        return self._left.is_set()

    def check(self) -> None:
        """Raises StoppedError if the key is to be left."""
        if self.stopped():
            raise StoppedError

    def _send(self, said: JsonObject) -> None:
        key = self._claim.key
        if not self._store.progress(self._claim, {**said, "key": str(key), "digest": key.digest}):
            self._left.set()
