"""The process that compiles, verifies and times: `python -m autotune.child`, started by the local runner.

Over its two pipes, one JSON object a line:

    <- {"event": "ready"}                    the device is open (or {"event": "unavailable", "reason": ...})
    -> a Request
    <- {"event": "begin", "index": 0, "phase": "prepare"}      and "verify", "time"; no index: work for all of them
    <- {"event": "measured", "index": 0, "measurement": {...}}
    <- {"event": "done"}

When the requests end, because the tuner closed them or was killed, it ends too, compilers and all, even amid a
measurement and even if it hangs in C code: a sentinel process sees to that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autotune.measurement import Measurement
from autotune.runner import Request

Emit = Callable[[dict[str, Any]], None]
Measure = Callable[..., list[Measurement]]
"""As `autotune.measure.measure(request, *, emit)`."""

GRACE_S = 0.1
"""How long an idle child may take to end by itself once there are no more requests."""


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
    parser.add_argument("--life", type=int, required=True, metavar="FD")
    pipes = parser.parse_args(arguments)
    start_sentinel(pipes.life, pipes.events)
    with contextlib.suppress(OSError):  # Linux: where memory runs out, a candidate and its compilers go before others
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for descriptor in (pipes.requests, pipes.events, pipes.life):
        os.set_inheritable(descriptor, False)

    def emit(event: dict[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        while data:
            data = data[os.write(pipes.events, data) :]

    try:
        open_device()
    except Exception as error:  # noqa: BLE001  drivers raise anything, and the tuner says it in one line
        emit({"event": "unavailable", "reason": " ".join(f"{type(error).__name__}: {error}".split())})
        return 1
    emit({"event": "ready"})
    for request in _requests(pipes.requests):
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
    with open(descriptor, encoding="utf-8") as pipe:
        for line in pipe:
            yield Request.from_json(json.loads(line))


def start_sentinel(life: int, events: int) -> None:
    """Fork a process that ends this process group once nobody holds the other end of `life`, a pipe for that alone.

    Not PR_SET_PDEATHSIG: it kills the child alone, before anyone could end the compilers that it has started, it
    fires when the thread that started the child ends rather than the tuner, and macOS has none. Not a thread: a
    kernel that hangs may hold the interpreter's lock. Forked first, the sentinel is small and has no device open.

    A read that ends with the pipe works everywhere. To poll for the end of a pipe that carries data does not: macOS
    returns from, or stays in, a poll that asks for nothing else.
    """
    if os.getpgrp() != os.getpid() or os.fork() != 0:  # started by hand in a shell: that group is not ours to end
        return
    os.close(events)  # or its end would not be seen while the sentinel lives
    os.read(life, 1)  # nobody ever writes: the end
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
