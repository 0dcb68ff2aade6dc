"""A measurement that a worker elsewhere is asked for, and who the workers are. All of it travels as JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum

from autotune.job import target_of
from autotune.measurement import Measurement
from strategies.key import DeviceSpec
from strategies.shape import JsonObject

ALIVE_S = 15.0
"""A worker that is silent for this long is taken for lost, and its work is given to another."""


class TaskState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request in the queue of one kind of device.

    `attempt` counts from 1 and goes up when the work is given to another worker: only a result of the current
    attempt counts. `beat` changes every few seconds while its worker lives. `error`: the device could not be used.
    """

    id: str
    state: TaskState
    attempt: int
    worker: str = ""
    beat: float = 0.0
    measurements: tuple[Measurement, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that measures on one device. `about` says where it runs: host, process id, versions.

    `in_use`: a program that asked for tuning runs on its device. `silent_s`: seconds since it was heard of;
    `seen_at`: when that was, in seconds since the epoch.
    """

    name: str
    device: DeviceSpec
    about: JsonObject = field(default_factory=dict)
    in_use: bool = False
    ended: bool = False
    silent_s: float = 0.0
    started_at: float = 0.0
    seen_at: float = 0.0

    @property
    def alive(self) -> bool:
        return not self.ended and self.silent_s < ALIVE_S

    @property
    def target(self) -> str:
        return target_of(self.device)

    def to_json(self) -> JsonObject:
        return {
            "name": self.name, "device": self.device.to_json(), "about": self.about, "in_use": self.in_use,
            "alive": self.alive, "ended": self.ended, "silent_s": round(self.silent_s, 1),
            "started_at": self.started_at, "seen_at": self.seen_at,
        }  # fmt: skip


def queue_of(device: DeviceSpec) -> str:
    """The queue that devices share which are equal in everything but flags, driver, system and compiler included:
    `METAL-0123456789ab`."""
    content = {name: value for name, value in device.to_json().items() if name != "flags"}
    return f"{device.device}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"
