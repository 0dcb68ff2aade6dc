"""A real service in a process of its own, with a scripted search instead of a device; and what tests ask it with.

Run by path: `served.py DATABASE PORT SECONDS SETTINGS`, where a shape of 13 input channels fails, each trial takes
SECONDS, and SETTINGS are further ones as JSON, among them times that api/protocol.py names.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from autotune.job import Budget
from autotune.measurement import Measurement, Status
from autotune.progress import Progress
from autotune.runner import Request, Runner
from autotune.session import TuneCancelledError
from autotune.store import Store
from autotune.winner import Interval, Winner, WinnerState
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.shape import ConvShape

ROOT = Path(__file__).parent.parent
CPU = DeviceSpec(device="CPU", arch="test", cores=2, tinygrad="0.14.0")
UNLUCKY = 13


def key_of(cin: int = 64, size: int = 56, **policy: Any) -> ConvKey:
    shape = ConvShape.of((1, cin, size, size), (64, cin, 3, 3), padding=1)
    return ConvKey(shape=shape, device=CPU, policy=Policy(**policy))


def winner_of(key: ConvKey, *, strategy: str = "four_buffer", decided_at: float = 1000.0) -> Winner:
    return Winner(
        key=key, candidate=Candidate.of(strategy, tile=4), state=WinnerState.VERIFIED,
        time_s=Interval(median=1e-3, low=0.9e-3, high=1.1e-3), default=Candidate.of("direct"),
        default_time_s=Interval(median=2e-3, low=1.9e-3, high=2.1e-3), ratio=Interval(median=0.5, low=0.48, high=0.55),
        error=1.5e-6, times_s={"direct": 2e-3, "tensor_winograd": 2.5e-3}, decided_at=decided_at,
    )  # fmt: skip


class NoRunner:
    """Measures nothing: the scripted search below asks it for nothing."""

    at_once = 1

    def measure(self, request: Request, **_: Any) -> list[Measurement]:
        raise AssertionError(f"asked for {request}")

    def close(self) -> None:
        pass


class OneDevice:
    """A machine with a CPU; everything else is described nowhere."""

    def names(self) -> tuple[str, ...]:
        return ("CPU",)

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        from api.devices import UnknownDeviceError, check_name

        if name is not None and check_name(name) != "CPU":
            raise UnknownDeviceError(
                f"no device {name.upper()} on this machine: expected one of CPU; choose one of them"
            )
        return CPU

    def in_force(self, flags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(flags.items()))


def scripted_tune(trial_s: float) -> Callable[..., Winner]:
    """A search of `budget.trials` trials (default 3), each recorded, as the real one does."""

    def tune(
        key: ConvKey, *, store: Store, runner: Runner, budget: Budget, on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool], since: float | None = None,
    ) -> Winner:  # fmt: skip
        if key.shape.cin == UNLUCKY:
            raise RuntimeError("even direct failed\non two lines")
        trials = budget.trials or 3
        for trial in range(len(store.measurements(key)), trials):
            if should_stop():
                raise TuneCancelledError
            time.sleep(trial_s)
            candidate = Candidate.of("four_buffer", tile=trial)
            error = float("nan") if trial == 0 else 1e-6
            store.record(
                Measurement(
                    key=key, candidate=candidate, status=Status.OK, times_s=(1e-3,), error=error,
                    attempt=f"{key.digest}-{trial}", measured_at=time.time(),
                )
            )  # fmt: skip
            on_progress(Progress(phase="search", trials=trial + 1, failed=0, used_s=0.0, budget=budget, best=candidate))
        winner = winner_of(key, decided_at=time.time())
        store.decide(winner)
        return winner

    return tune


class Served:
    """The running service: `http` asks it, `kill` is kill -9, `stop` SIGTERM."""

    def __init__(
        self, database: Path | str, *, port: int = 0, trial_s: float = 0.0, within: Sequence[str] = (), **settings: Any
    ) -> None:
        """`within`: a program that starts it."""
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [*within, sys.executable, __file__, str(database), str(port), str(trial_s), json.dumps(settings)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if line.startswith("ready "):
                break
        else:
            self.process.wait(5)
            self.process.stderr.close()
            raise RuntimeError("".join(self.log))
        self.url = line.split()[1]
        self._reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,))
        self._reader.start()  # a pipe that nobody reads would stop the service
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self._end()

    def stop(self) -> int:
        self.process.terminate()
        return self._end()

    def _end(self) -> int:
        status = self.process.wait(20)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.http.close()
        return status


@contextmanager
def served(database: Path | str, **options: Any) -> Iterator[Served]:
    service = Served(database, **options)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.kill()


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Its first true value."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:g} s")


def free_port(host: str = "127.0.0.1") -> int:
    """One to listen on later, or again. Below those that a system gives to whoever asks for any: it would be somebody
    else's by then."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as sock, suppress(OSError):
            sock.bind((host, port))
            return port
    raise AssertionError("a hundred ports, and none of them free")


def ended(http: httpx.Client, job_id: str, timeout_s: float = 20.0) -> dict[str, Any]:
    """The job when it has ended."""

    def job() -> dict[str, Any] | None:
        found: dict[str, Any] = http.get(f"/jobs/{job_id}").json()
        return found if found["state"] in ("done", "failed", "cancelled") else None

    return dict(until(job, timeout_s))


def body(cin: int = 64, size: int = 56, **more: Any) -> dict[str, Any]:
    """A shape as `POST /tune` takes it; the same as `key_of`."""
    return {"input": [1, cin, size, size], "weight": [64, cin, 3, 3], "padding": 1, "device": "CPU", **more}


def main() -> None:
    from api import logs, protocol
    from api.app import create_app
    from api.lanes import LocalLanes
    from api.server import Server, listen
    from api.settings import Settings
    from db import open_store

    database, port, trial_s, more = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    values = {"max_body_bytes": 100_000, "max_import_bytes": 1_000_000, **json.loads(more)}
    if clock := values.pop("clock", None):  # a file that says by how many seconds the clock is set off
        truth = time.time
        time.time = lambda: truth() + float(Path(clock).read_text() or 0)
    for name in ("HEAD_S", "UNREAD_S", "REST_S"):
        setattr(protocol, name, values.pop(name, getattr(protocol, name)))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    busy_timeout_s = values.pop("busy_timeout_s", 10.0)
    settings = Settings(db=database, port=int(port), **values)
    logs.configure(settings.log_format)
    sock = listen(settings.host, settings.port)
    with open_store(database, busy_timeout_s=busy_timeout_s) as store:
        tune = scripted_tune(float(trial_s))
        devices = OneDevice()
        lanes = LocalLanes(devices, lambda _: NoRunner())
        app = create_app(store, lanes, settings, devices=devices, tune=tune)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = Server(app, lambda: print(f"ready {url}", file=sys.stderr, flush=True))  # noqa: T201
        try:
            server.run(sockets=[sock])
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()
