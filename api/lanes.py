"""Where keys can be measured right now: a lane is one device that takes one key at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from api.absence import Missing
from api.devices import Devices, UnknownDeviceError
from api.runners import OpenRunner, Runners
from autotune.device_use import in_use
from autotune.fleet import Worker
from autotune.job import Waiting, target_of
from autotune.runner import Runner
from strategies.key import ConvKey, DeviceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One device that takes one key at a time. `name` is its own among all; `busy` says whether a program runs on it
    that asked for tuning and must not be disturbed, `is_open` whether it may take another key. `runner` is told
    whether it may measure on an idle device only; it may raise what opening a device raises."""

    name: str
    device: DeviceSpec
    runner: Callable[[bool], Runner]
    busy: Callable[[], bool] = lambda: False
    is_open: Callable[[], bool] = lambda: True

    @property
    def target(self) -> str:
        return target_of(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Lanes for what waits, and for the rest, by target, why there is none."""

    lanes: tuple[Lane, ...] = ()
    missing: Mapping[str, Missing] = field(default_factory=dict)


class Lanes(Protocol):
    """The devices that a service may use."""

    @property
    def shared(self) -> bool:
        """Whether other services may work on the same database."""

    def offer(self, waiting: Sequence[Waiting]) -> Offer:
        """Lanes for keys that wait. Asked every second, and again while lanes of an earlier offer work."""

    def workers(self) -> list[Worker]:
        """Processes elsewhere that measure, who was heard of last first."""

    def close(self) -> None:
        """Give back devices until they are needed again. Idempotent."""


class LocalLanes:
    """The devices of this machine, each through one child process."""

    shared = False

    def __init__(self, devices: Devices, open_runner: OpenRunner) -> None:
        self._devices, self._runners = devices, Runners(open_runner)

    def offer(self, waiting: Sequence[Waiting]) -> Offer:
        lanes, missing = [], {}
        for wanted in waiting:
            name = wanted.device.device.split(":")[0]  # a key names a kind; a number costs a process for nothing
            try:
                found = self._devices.describe(name)
            except UnknownDeviceError as error:
                missing[wanted.target] = Missing(
                    what=f"a device {wanted.device.device}", since=wanted.since, advice=str(error)
                )
                continue
            if target_of(found) == wanted.target:
                lanes.append(self._lane(name, found))
            else:
                missing[wanted.target] = Missing(
                    what=f"another {wanted.device.device} than this machine's",
                    since=wanted.since,
                    advice=f"{difference(wanted.device, found)}; cancel the job, or import its winners from there",
                )
        return Offer(lanes=tuple(lanes), missing=missing)

    def workers(self) -> list[Worker]:
        return []

    def close(self) -> None:
        self._runners.close()

    def _lane(self, name: str, found: DeviceSpec) -> Lane:
        return Lane(
            name=f"local:{name}",
            device=found,
            runner=lambda _: self._runners.get(name),
            busy=lambda: in_use(name),
        )


def difference(wanted: DeviceSpec, found: DeviceSpec) -> str:
    """`cores 8 there, 2 here`."""
    mine, theirs = found.identity(), wanted.identity()
    fields = sorted((mine.keys() | theirs.keys()) - {"flags"})
    return ", ".join(f"{n} {theirs.get(n)} there, {mine.get(n)} here" for n in fields if mine.get(n) != theirs.get(n))


def as_measured_by(key: ConvKey, device: DeviceSpec) -> ConvKey:
    """The same key, by its digest, with the driver, system and compiler of the device that measures it."""
    spec = replace(key.device, driver=device.driver, os=device.os, compiler=device.compiler)
    return ConvKey(shape=key.shape, policy=key.policy, device=spec)
