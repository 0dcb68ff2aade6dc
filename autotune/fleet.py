"""A measurement that a worker elsewhere is asked for, and who the workers are. All of it travels as JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from autotune.job import target_of
from autotune.measurement import Measurement
from strategies.key import DeviceSpec
from strategies.shape import JsonObject

ALIVE_S = 15.0
"""A worker that is silent for this long is taken for lost, and its work is given to another."""


MOST_LOST = 3
"""So many attempts at a task may end with their worker, before it is believed that the task ends them."""


class TaskState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    LOST = "lost"
    """Every worker that took it was lost: nobody is asked again."""

    @property
    def ended(self) -> bool:
        """Whether it stays as it is."""
        return self not in (TaskState.QUEUED, TaskState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request in the queue of one kind of device.

    `attempt` counts from 1 and goes up when the work is given to another worker: only a result of the current
    attempt counts. `beat` changes every few seconds while its worker lives. `error`: the device could not be used.
    `waiting`: why the worker that was offered it did not take it. `lost`: who had it and was never heard of again.
    """

    id: str
    state: TaskState
    attempt: int
    worker: str = ""
    beat: float = 0.0
    measurements: tuple[Measurement, ...] = ()
    error: str = ""
    waiting: str = ""
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a worker must not begin a task that it was offered. `unreadable`: it is of a release that cannot read it."""

    reason: str
    unreadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that measures on one device. `about` says where it runs: host, process id, versions.

    `in_use`: a program that asked for tuning runs on its device. `unfit`: why it takes no more work, in one line.
    `silent_s`: seconds since it was heard of; `seen_at`: when that was, in seconds since the epoch.
    """

    name: str
    device: DeviceSpec
    about: JsonObject = field(default_factory=dict)
    in_use: bool = False
    unfit: str = ""
    ended: bool = False
    silent_s: float = 0.0
    started_at: float = 0.0
    seen_at: float = 0.0

    @property
    def alive(self) -> bool:
        return not self.ended and self.silent_s < ALIVE_S

    @property
    def fit(self) -> bool:
        """Whether it takes work."""
        return self.alive and not self.unfit

    @property
    def release(self) -> str:
        """Of this program, there; empty where it did not say."""
        return str(self.about.get("tinygrad-autotune", ""))

    @property
    def processors(self) -> int:
        """That it may use; 1 where it did not say."""
        told = self.about.get("processors")
        return told if isinstance(told, int) and told > 0 else 1

    @property
    def target(self) -> str:
        return target_of(self.device)

    def to_json(self) -> JsonObject:
        return {
            "name": self.name, "device": self.device.to_json(), "about": self.about, "in_use": self.in_use,
            "alive": self.alive, "unfit": self.unfit, "ended": self.ended, "silent_s": round(self.silent_s, 1),
            "started_at": self.started_at, "seen_at": self.seen_at,
        }  # fmt: skip


@cache
def this_release() -> str:
    """The installed version of this program."""
    try:
        return version("tinygrad-autotune")
    except PackageNotFoundError:  # a checkout on the path
        return "0+checkout"


def queue_of(device: DeviceSpec, release: str | None = None) -> str:
    """The queue that devices share which are equal in everything but flags, driver, system and compiler included:
    `METAL-0123456789ab`. Each release (None: this one) has its own: what another one asks for, a worker may not
    understand."""
    content = {name: value for name, value in device.to_json().items() if name != "flags"}
    content["release"] = this_release() if release is None else release
    return f"{device.device}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"


def queue_to(worker: str) -> str:
    """The queue of one worker alone: for work that none but an idle device may take."""
    return f"worker:{worker}"
