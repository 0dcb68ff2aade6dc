"""Measurements on a device of this machine, in one warm child process that may hang or die."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from autotune.child_environment import child_environment
from autotune.child_process import ChildBrokenError, ChildProcess
from autotune.conditions import changed, conditions
from autotune.device_lock import DeviceLock
from autotune.isolation import Outcome, measure_isolated
from autotune.measurement import Measurement, Status
from autotune.memory import candidate_memory_bytes
from autotune.reference import processors
from autotune.runner import DeviceUnavailableError, Request, RunStoppedError, at_once
from autotune.watchdog import PHASES, SHARED, Watchdog
from strategies.key import DeviceSpec
from strategies.shape import JsonObject

POLL_S = 0.1
"""How often limits, and whether to stop, are checked."""


class LocalRunner:
    """A Runner with one warm child for `device`, as tinygrad's DEV names it.

    The child is started at the first request, and again after it broke or when a request brings other code
    generation flags. While a request is measured the device's lock is held; between requests others may have it.
    `on_wait` is told when we wait for them, and after `lock_timeout_s` DeviceBusyError is raised. `environ` defaults
    to this process's, `child` is the command that is started, `clock` gives seconds for limits, `now` seconds since
    the epoch. One request at a time: further threads wait.
    """

    def __init__(
        self,
        device: str,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        child: Sequence[str] = (sys.executable, "-m", "autotune.child"),
        start_timeout_s: float = 120.0,
        lock_timeout_s: float = 600.0,
        lock_directory: Path | None = None,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.device = device
        self.waits = False
        """Whether a request waits for the device, which others have."""
        self._environ = dict(os.environ if environ is None else environ)
        self._clock, self._now = clock, now
        self._command = tuple(child)
        self._start_timeout_s, self._lock_timeout_s = start_timeout_s, lock_timeout_s
        self._lock, self._on_wait = DeviceLock(device, lock_directory, self._environ), on_wait
        self._one_at_a_time = threading.Lock()
        self._should_stop: Callable[[], bool] = lambda: False
        self.at_once = at_once(processors())
        self._child: ChildProcess | None = None
        self._started_as: tuple[object, ...] = ()

    def measure(self, request: Request, *, should_stop: Callable[[], bool] = lambda: False) -> list[Measurement]:
        """One measurement per candidate, in order. Raises DeviceUnavailableError, DeviceBusyError, RunStoppedError,
        and ValueError for a key of another device."""
        wanted = request.key.device.device
        if _base(wanted) != _base(self.device):
            raise ValueError(f"this runner measures on {self.device}: got a key of {wanted}")
        with self._one_at_a_time, self._held(should_stop):
            self._should_stop = should_stop
            before, begun = conditions(), self._clock()
            try:
                measured = measure_isolated(request, self._run)
            except DeviceUnavailableError as error:
                error.measured = tuple(self._stamped(error.measured, before, begun))
                raise
            except BaseException:  # told to stop, Ctrl-C: the child is amid something that nobody will read
                self._discard()
                raise
            return self._stamped(measured, before, begun)

    @contextlib.contextmanager
    def _held(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        self.waits = True
        try:
            with self._lock.held(
                timeout_s=self._lock_timeout_s, on_wait=self._on_wait, clock=self._clock, should_stop=should_stop
            ):
                self.waits = False
                yield
        finally:
            self.waits = False

    def close(self) -> None:
        """End the child. Idempotent."""
        with self._one_at_a_time:
            if self._child is not None:
                self._child.close()
                self._child = None
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, request: Request, want_fresh: bool) -> Outcome:
        """Give a request to a child and watch it until it is done or broken."""
        child, fresh = self._ready_child(request.key.device, want_fresh)
        watchdog = Watchdog(request.limits, self._clock, candidate_memory_bytes())
        measured: dict[int, Measurement] = {}
        child.send(request.to_json())
        try:
            while True:
                event = self._receive(child)
                if event is not None and event["event"] == "done" and len(measured) == len(request.candidates):
                    return Outcome(measured=measured, breakage=None, fresh=fresh)
                if event is not None:
                    _take(event, request, watchdog, measured)
                # compilers are started in every phase but the timing, which is not to be disturbed
                broken = watchdog.check(child.memory_bytes(whole_tree=watchdog.phase != "time"))
                if broken is not None:
                    break
        except ChildBrokenError as error:
            said = child.tail()
            broken = watchdog.breakage(Status.CRASHED, f"{error}{f': {said}' if said else ''}")
        self._discard()
        return Outcome(measured=measured, breakage=broken, fresh=fresh)

    def _ready_child(self, spec: DeviceSpec, want_fresh: bool) -> tuple[ChildProcess, bool]:
        """The warm child if it fits, else a new one, and whether it is new."""
        wanted = (spec.device, spec.flags)
        if self._child is not None:
            if self._child.alive and not want_fresh and self._started_as == wanted:
                return self._child, False
            self._discard()
        try:
            child = self._start(spec)
        except ChildBrokenError:  # somebody killed it, the machine had no memory: that says little about the device
            try:
                child = self._start(spec)
            except ChildBrokenError as error:
                raise DeviceUnavailableError(f"{self.device} cannot be used: {error}") from error
        self._child, self._started_as = child, wanted
        return self._child, True

    def _start(self, spec: DeviceSpec) -> ChildProcess:
        """Raises DeviceUnavailableError if the device says so, ChildBrokenError if its process ends before."""
        environ = child_environment(self._environ, self.device, spec)
        try:
            child = ChildProcess(self._command, environ, inherit=(self._lock.fileno(),))
        except OSError as error:
            raise DeviceUnavailableError(f"{self.device} cannot be measured: no child process: {error}") from error
        reason, give_up_at = f"not ready after {self._start_timeout_s:g} s", self._clock() + self._start_timeout_s
        try:
            while self._clock() < give_up_at:
                event = self._receive(child)
                if event is not None and event["event"] == "ready":
                    return child
                if event is not None:
                    reason = str(event.get("reason", event))
                    break
        except ChildBrokenError as error:
            said = f"its process {error}: {child.tail(lines=1)}".rstrip(": ")
            child.kill()
            raise ChildBrokenError(said) from error
        except BaseException:
            child.kill()
            raise
        child.kill()
        raise DeviceUnavailableError(f"{self.device} cannot be used: {reason}")

    def _receive(self, child: ChildProcess) -> JsonObject | None:
        if self._should_stop():
            raise RunStoppedError
        return child.receive(POLL_S)

    def _discard(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _stamped(self, measured: Sequence[Measurement], before: JsonObject, begun: float) -> list[Measurement]:
        """With an attempt of their own, the time, and the conditions: load before and after, seconds it cost."""
        after = conditions()
        cost_s = (self._clock() - begun) / max(len(measured), 1)
        common = {**after, "load_before": before.get("load"), "cost_s": round(cost_s, 4), **changed(before, after)}
        return [
            replace(m, attempt=uuid.uuid4().hex, measured_at=self._now(), conditions={**m.conditions, **common})
            for m in measured
        ]


def _take(event: JsonObject, request: Request, watchdog: Watchdog, measured: dict[int, Measurement]) -> None:
    """Follow one event of the child. Raises ChildBrokenError for one that makes no sense."""
    index = event.get("index")
    index = SHARED if index is None else index
    known = isinstance(index, int) and SHARED <= index < len(request.candidates)
    if event["event"] == "begin" and known and event.get("phase") in PHASES:
        watchdog.begin(index, event["phase"])
    elif event["event"] == "measured" and known and index != SHARED:
        try:
            measurement = Measurement.from_json(event["measurement"])
        except (KeyError, TypeError, ValueError) as error:
            raise ChildBrokenError(f"wrote a measurement that is none: {type(error).__name__}: {error}") from error
        asked, found = request.candidates[index], measurement.candidate
        if request.options is not None and found.structure == asked.structure:
            asked = found  # the same with options for its kernels
        measured[index] = replace(measurement, key=request.key, candidate=asked)
    else:
        raise ChildBrokenError(f"wrote an event that makes no sense here: {str(event)[:80]}")


def _base(device: str) -> str:
    """`CUDA` of `CUDA:0` and of `NV+CUDA:PTX`."""
    return device.rpartition("+")[2].partition(":")[0].upper()
