"""One question to a device, answered in a process of its own that may hang or die: under the lock, within a limit."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.child_environment import child_environment
from autotune.child_process import ChildBrokenError, ChildProcess
from autotune.device_lock import DeviceLock
from autotune.runner import DeviceUnavailableError, RunStoppedError
from strategies.key import DeviceSpec
from strategies.shape import JsonObject

POLL_S = 0.1
START_S = 120.0


class TaskError(RuntimeError):
    """The process did not answer; the message says why in one line."""


def run_task(
    name: str,
    argument: JsonObject,
    spec: DeviceSpec,
    *,
    timeout_s: float,
    lock_timeout_s: float = 600.0,
    lock_directory: Path | None = None,
    on_wait: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Any:
    """What task `name` (see task_child) answers to `argument`, on the device and with the flags of `spec`.

    `timeout_s` counts from when the device is open. Raises TaskError, DeviceUnavailableError, DeviceBusyError, and
    RunStoppedError as soon as `should_stop` says so.
    """
    lock = DeviceLock(spec.device, lock_directory, environ)
    try:
        with lock.held(timeout_s=lock_timeout_s, on_wait=on_wait, clock=clock, should_stop=should_stop):
            environ = child_environment(os.environ if environ is None else environ, spec.device, spec)
            child = ChildProcess((sys.executable, "-m", "autotune.task_child"), environ, inherit=(lock.fileno(),))
            try:
                return _answer(child, {"task": name, "argument": argument}, timeout_s, clock, should_stop)
            finally:
                child.kill()
    finally:
        lock.close()


def _answer(
    child: ChildProcess, question: JsonObject, timeout_s: float, clock: Callable[[], float],
    should_stop: Callable[[], bool],
) -> Any:  # fmt: skip
    child.send(question)
    give_up_at, ready = clock() + START_S, False
    try:
        while clock() < give_up_at:
            if should_stop():
                raise RunStoppedError
            event = child.receive(POLL_S)
            if event is None:
                continue
            if event["event"] == "ready":
                ready, give_up_at = True, clock() + timeout_s
            elif event["event"] == "answer":
                return event["answer"]
            elif event["event"] == "unavailable":
                raise DeviceUnavailableError(f"the device cannot be used: {event['reason']}")
            else:
                raise TaskError(str(event.get("reason", event)))
    except ChildBrokenError as error:
        raise TaskError(f"its process {error}: {child.tail(lines=1)}".rstrip(": ")) from error
    if not ready:
        raise DeviceUnavailableError(f"the device cannot be used: not ready after {START_S:g} s")
    raise TaskError(f"took more than {timeout_s:g} s")
