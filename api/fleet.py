"""A service's view of its fleet: which devices there are, and where keys can be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from api.absence import absence, start_one
from api.devices import Devices, Flags, UnknownDeviceError, check_name
from api.lanes import Lane, Offer
from api.queue_runner import QueueRunner
from api.task_board import TaskBoard
from autotune.fleet import MOST_LOST, Worker, this_release
from autotune.job import Waiting
from db import SqlStore
from strategies.key import DeviceSpec


class FleetLanes:
    """One lane per living worker of this release that takes work. `most_lost`: see QueueRunner."""

    shared = True

    def __init__(self, store: SqlStore, *, most_lost: int = MOST_LOST) -> None:
        self._store, self._most_lost, self._board = store, most_lost, TaskBoard(store.tasks)
        self._fit: dict[str, Worker] = {}

    def offer(self, waiting: Sequence[Waiting]) -> Offer:
        workers = self._store.workers()  # also when nothing waits: what is being measured asks whether they are busy
        self._fit = {w.name: w for w in workers if w.fit and w.release in (this_release(), "")}
        lanes, missing = [], {}
        for wanted in waiting:
            fit = [worker for worker in self._fit.values() if worker.target == wanted.target]
            lanes += [self._lane(worker) for worker in fit]
            if not fit:
                missing[wanted.target] = absence(wanted.device, workers, wanted.since)
        return Offer(lanes=tuple(lanes), missing=missing)

    def workers(self) -> list[Worker]:
        return self._store.workers()

    def close(self) -> None:
        """Workers let go of their devices themselves."""

    def _lane(self, worker: Worker) -> Lane:
        def runner(idle: bool) -> QueueRunner:
            only = worker.name if idle else ""
            return QueueRunner(
                self._store, worker.device, idle_worker=only, most_lost=self._most_lost, board=self._board
            )

        def busy() -> bool:
            return self._fit.get(worker.name, worker).in_use

        return Lane(
            name=worker.name, device=worker.device, runner=runner, busy=busy,
            is_open=lambda: worker.name in self._fit,  # its successor is another lane
        )  # fmt: skip


class FleetDevices:
    """The devices of the workers, living or not, then those of this machine, which describes what no worker has."""

    def __init__(self, store: SqlStore, local: Devices) -> None:
        self._store, self._local = store, local

    def names(self) -> tuple[str, ...]:
        """Of living workers first; raises UnknownDeviceError if there are none at all."""
        known = sorted(self._store.workers(), key=lambda worker: not worker.alive)
        try:
            here = self._local.names()
        except UnknownDeviceError:
            if not known:
                raise
            here = ()
        return tuple(dict.fromkeys((*(worker.device.device for worker in known), *here)))

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        """See Devices. Of several workers' different devices of one name, the one that was heard of last."""
        wanted = self.names()[0] if name is None else check_name(name)
        known = [worker for worker in self._store.workers() if worker.device.device == wanted.split(":")[0]]
        if not known:
            try:
                return self._local.describe(wanted, flags)
            except UnknownDeviceError:
                raise UnknownDeviceError(
                    f"no device {wanted} here and no worker for it so far: expected one of {', '.join(self.names())}; "
                    f"or {start_one(DeviceSpec(device=wanted))}"
                ) from None
        device = max(known, key=lambda worker: (worker.alive, worker.seen_at)).device
        return device if not flags else replace(device, flags=self.in_force(flags))

    def in_force(self, flags: Mapping[str, str]) -> Flags:
        """See Devices: as this machine's tinygrad reads them, which needs no device."""
        return self._local.in_force(flags)
