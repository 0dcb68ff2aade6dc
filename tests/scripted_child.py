"""A child program whose candidates misbehave on demand: `Candidate.of("scripted", do="segfault")`."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.child import Emit, main
from autotune.measurement import Measurement, Status
from autotune.runner import Request

_state = {"poisoned": False, "requests": 0}
_hoard: list[bytearray] = []


def hang(request: Request) -> None:
    time.sleep(600)


def linger(request: Request) -> None:
    """Slow, and fine."""
    time.sleep(1.5)


def hang_with_compiler(request: Request) -> None:
    """As a compiler that never ends; its process id is left in the file named by SCRIPT_NOTES."""
    compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Path(os.environ["SCRIPT_NOTES"]).open("a") as notes:
        notes.write(f"{os.getpid()} {compiler.pid}\n")
    compiler.wait()


def hang_with_lock(request: Request) -> None:
    """In C code that does not let go of the interpreter."""
    with Path(os.environ["SCRIPT_NOTES"]).open("a") as notes:
        notes.write(f"{os.getpid()}\n")
    ctypes.PyDLL(None).sleep(600)


def segfault(request: Request) -> None:
    os.write(2, b"about to touch what is not mine\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def hog(request: Request) -> None:
    while True:
        _hoard.append(bytearray(os.urandom(1 << 20) * 32))
        time.sleep(0.02)


def garbage(request: Request) -> None:
    events = int(sys.argv[sys.argv.index("--events") + 1])
    os.write(events, b"\x00\xffnot json\n")
    time.sleep(600)


def exit_3(request: Request) -> None:
    os.write(1, b"giving up\n")
    os._exit(3)


def huge_stderr(request: Request) -> None:
    for _ in range(200):
        os.write(2, b"x" * 100_000 + b"\n")
    os.write(2, b"the last words\n")
    os._exit(4)


def kill_tuner(request: Request) -> None:
    """Takes the process that watches it with it."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def poison(request: Request) -> None:
    """Fine itself; what comes after it in this process crashes."""
    _state["poisoned"] = True


def bug(request: Request) -> None:
    raise ZeroDivisionError("a bug in measure")


DEEDS: dict[str, Callable[[Request], None]] = {
    f.__name__: f
    for f in (
        hang,
        linger,
        hang_with_compiler,
        hang_with_lock,
        segfault,
        hog,
        garbage,
        exit_3,
        huge_stderr,
        kill_tuner,
        poison,
        bug,
    )
}


def measure(request: Request, *, emit: Emit) -> list[Measurement]:
    """Prepare all, then time all in rounds, as the real one does."""
    _state["requests"] += 1
    results = [
        Measurement(
            key=request.key, candidate=candidate, status=Status.OK,
            conditions={"pid": os.getpid(), "requests": _state["requests"], "environment": _environment()},
        )
        for candidate in request.candidates
    ]  # fmt: skip
    wants = [dict(candidate.params) for candidate in request.candidates]

    def act(index: int, phase: str) -> None:
        emit({"event": "begin", "index": index, "phase": phase})
        if Path(os.environ.get("SCRIPT_BROKEN") or "/nowhere").exists():  # the device is, whatever runs on it
            segfault(request)
        if _state["poisoned"] and wants[index].get("do") != "poison":
            segfault(request)
        if wants[index].get("at", "prepare") == phase and (deed := DEEDS.get(str(wants[index].get("do")))):
            deed(request)

    def final(index: int, **changes: Any) -> None:
        results[index] = replace(results[index], **changes)
        emit({"event": "measured", "index": index, "measurement": results[index].to_json()})

    for index, want in enumerate(wants):
        act(index, "prepare")
        act(index, "verify")
        if want.get("do") == "wrong":
            final(index, status=Status.WRONG, reason="error 0.5 above the bound 1e-4", times_s=())
    fine = [index for index, result in enumerate(results) if result.ok]
    times: dict[int, list[float]] = {index: [] for index in fine}
    for _ in range(request.rounds):
        for index in fine:
            act(index, "time")
            times[index].append(1e-3 * (1 + index))
    for index in fine:
        final(index, times_s=tuple(times[index]), yardstick_times_s=(1e-3,) * request.rounds)
    return results


def open_device() -> None:
    if os.environ.get("SCRIPT_DEVICE") == "absent":
        raise RuntimeError("no such device,\nnot here")
    if os.environ.get("SCRIPT_DEVICE") == "crash":
        os._exit(5)
    limit = os.environ.get("SCRIPT_STARTS")  # a file with how many more times the device opens
    if limit:
        left = int(Path(limit).read_text()) - 1
        Path(limit).write_text(str(left))
        if left < 0:
            raise RuntimeError("the device has fallen off the bus")


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("BEAM", "NOOPT", "DEBUG", "DEV", "PARALLEL") if name in os.environ}


if __name__ == "__main__":
    sys.exit(main(measure=measure, open_device=open_device))
