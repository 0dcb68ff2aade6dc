"""The process that compiles, verifies and times: `python -m autotune.child`, started by the local runner.

Over its two pipes, one JSON object a line:

    <- {"event": "ready"}                    the device is open (or {"event": "unavailable", "reason": ...})
    -> a Request
    <- {"event": "begin", "index": 0, "phase": "prepare"}      and "verify", "time"; no index: work for all of them
    <- {"event": "measured", "index": 0, "measurement": {...}}
    <- {"event": "done"}

It ends when the requests end, even amid a measurement: nobody is left to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from autotune.measurement import Measurement
from autotune.runner import Request

Emit = Callable[[dict[str, Any]], None]
Measure = Callable[..., list[Measurement]]
"""As `autotune.measure.measure(request, *, emit)`."""


def open_device() -> None:
    """Open tinygrad's device named by DEV, with a C compiler where it needs one. Raises whatever stands against it."""
    if os.environ.get("DEV", "").split(":")[0].upper() == "CPU":
        from autotune.compiler import ensure_c_compiler

        ensure_c_compiler()
    from tinygrad import Device

    Device[Device.DEFAULT]  # opening is the effect


def measure(request: Request, *, emit: Emit) -> list[Measurement]:
    """tinygrad's part, imported once the environment stands."""
    from autotune.measure import measure as measure_with_tinygrad

    return measure_with_tinygrad(request, emit=emit)


def main(
    arguments: Sequence[str] | None = None,
    *,
    measure: Measure = measure,
    open_device: Callable[[], None] = open_device,
) -> int:
    """Serve requests until there are no more. Exit status 0, or 1 if the device cannot be opened."""
    parser = argparse.ArgumentParser(prog="autotune.child", description="Measures for a tuner; not for the shell.")
    parser.add_argument("--requests", type=int, required=True, metavar="FD")
    parser.add_argument("--events", type=int, required=True, metavar="FD")
    pipes = parser.parse_args(arguments)
    _die_with_parent()
    for descriptor in (pipes.requests, pipes.events):
        os.set_inheritable(descriptor, False)

    def emit(event: dict[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        while data:
            data = data[os.write(pipes.events, data) :]

    requests = _requests(pipes.requests)
    try:
        open_device()
    except Exception as error:  # noqa: BLE001  drivers raise anything, and the tuner says it in one line
        emit({"event": "unavailable", "reason": " ".join(f"{type(error).__name__}: {error}".split())})
        return 1
    emit({"event": "ready"})
    for request in requests:
        _serve(request, measure, emit)
    return 0


def _serve(request: Request, measure: Measure, emit: Emit) -> None:
    """Answer one request. Measurements that `measure` only returned are sent at its end."""
    sent = set()

    def emit_once(event: dict[str, Any]) -> None:
        if event["event"] == "measured":
            sent.add(event["index"])
        emit(event)

    for index, measurement in enumerate(measure(request, emit=emit_once)):
        if index not in sent:
            emit({"event": "measured", "index": index, "measurement": measurement.to_json()})
    emit({"event": "done"})


def _requests(descriptor: int) -> Iterator[Request]:
    """Requests as they come, read by a thread, which also sees their end while a measurement runs."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    idle = threading.Event()
    idle.set()

    def read() -> None:
        with open(descriptor, encoding="utf-8") as pipe:
            for line in pipe:
                idle.clear()
                lines.put(line)
        lines.put(None)
        if not idle.is_set():
            _end_group()

    threading.Thread(target=read, name="requests", daemon=True).start()
    while (line := lines.get()) is not None:
        yield Request.from_json(json.loads(line))
        idle.set()


def _end_group() -> None:
    """End this process and the compilers it started; in a group of others, this process alone."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _die_with_parent() -> None:
    """Linux: SIGKILL when the thread that started us ends, for the case that Python itself is stuck in C code."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
