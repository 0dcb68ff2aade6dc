"""A real worker process whose candidates misbehave on demand: `scripted_worker.py DATABASE DEVICE_SPEC LOCKS`."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from api import worker as worker_module
from api.worker import FleetWorker
from autotune.local_runner import LocalRunner
from db import DatabaseUnreachableError, SqlStore
from db.address import dialect_for
from strategies.key import DeviceSpec


class Described:
    """A machine with the one device that the test says."""

    def __init__(self, spec: DeviceSpec) -> None:
        self._spec = spec

    def names(self) -> tuple[str, ...]:
        return (self._spec.device,)

    def describe(self, name: str | None = None, flags: object = None) -> DeviceSpec:
        return self._spec


class StuckRunner(LocalRunner):
    """Never comes back, as from a driver that never answers, and asks nobody whether to go on."""

    def measure(self, *_: Any, **__: Any) -> Any:
        threading.Event().wait()


class Mute(SqlStore):
    """A bug keeps it from saying that its worker lives."""

    def heard(self, *_: Any, **__: Any) -> bool:
        raise KeyError("no word")


class Undelivered(SqlStore):
    """The database is away whenever there is a result."""

    def deliver(self, *_: Any, **__: Any) -> bool:
        raise DatabaseUnreachableError("away")


SECONDS = ("drain_s", "stuck_s", "lock_timeout_s")
STORES = {"SCRIPT_MUTE": Mute, "SCRIPT_UNDELIVERED": Undelivered}


def main() -> int:
    database, spec, locks = sys.argv[1:]
    worker_module.BEAT_S = 0.5  # tests take a worker for lost soon: it has more than one beat until then
    named = {name: os.environ.get(f"SCRIPT_{name.upper()}") for name in ("release", *SECONDS, "stuck")}
    more: dict[str, Any] = {name: float(given) for name in SECONDS if (given := named[name])}
    if named["stuck"]:
        more["open_runner"] = StuckRunner
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    child = (sys.executable, str(Path(__file__).with_name("scripted_child.py")))
    kind = next((kind for name, kind in STORES.items() if os.environ.get(name)), SqlStore)
    with kind(dialect_for(database, 10.0)) as store:
        devices = Described(DeviceSpec.from_json(json.loads(spec)))
        worker = FleetWorker(
            store, devices, None, child=child, lock_directory=Path(locks), release=named["release"], **more
        )
        print(worker.name, flush=True)  # noqa: T201
        return worker.run()


if __name__ == "__main__":
    sys.exit(main())
