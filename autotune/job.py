"""A request to tune, which survives restarts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from strategies.key import ConvKey, DeviceSpec
from strategies.shape import JsonObject

MAX_PRIORITY = 100


class BudgetError(ValueError):
    """A budget that allows nothing, or is no budget at all."""


class QueueFullError(RuntimeError):
    """Whoever asks has as much in the queue as is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitter:
    """Who submits a job, and how many keys of theirs may wait or run at once (None: any number)."""

    name: str = ""
    max_keys: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a search may take per key: seconds, measured candidates, or whichever ends first."""

    seconds: float | None = None
    trials: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.trials is None:
            raise BudgetError("a budget needs seconds or trials, for example 60s or --trials 40")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise BudgetError(f"a budget in seconds must be above 0: got {self.seconds}")
        if self.trials is not None and (isinstance(self.trials, bool) or self.trials < 1):
            raise BudgetError(f"a budget in trials must be 1 or more: got {self.trials}")

    @classmethod
    def parse(cls, text: str, trials: int | None = None) -> Budget:
        """From `60s`, `2m`, `1h` or plain seconds."""
        units = {"s": 1.0, "m": 60.0, "h": 3600.0}
        number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
        try:
            return cls(seconds=float(number) * units[unit], trials=trials)
        except ValueError as error:
            if isinstance(error, BudgetError):
                raise
            raise BudgetError(f"a budget looks like 60s, 2m or 1h: got {text!r}") from None

    def stronger(self, other: Budget) -> Budget:
        """What suffices for both; this one where one counts seconds and the other trials."""
        seconds = None if self.seconds is None or other.seconds is None else max(self.seconds, other.seconds)
        trials = None if self.trials is None or other.trials is None else max(self.trials, other.trials)
        return self if seconds is None and trials is None else Budget(seconds=seconds, trials=trials)

    def to_json(self) -> JsonObject:
        return {"seconds": self.seconds, "trials": self.trials}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        return cls(seconds=data.get("seconds"), trials=data.get("trials"))


class TermsError(ValueError):
    """A priority or a deadline that makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which terms a job runs.

    A higher `priority` (-100 to 100) goes first, then who came first. After `deadline`, in seconds since the epoch,
    nothing more of it is begun and it ends as failed. With `idle` it waits until no program that asked for tuning
    runs on the device: a miss in a running program must not cost that program time.
    """

    priority: int = 0
    deadline: float | None = None
    idle: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.priority, bool) or not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise TermsError(f"a priority is between -{MAX_PRIORITY} and {MAX_PRIORITY}: got {self.priority}")
        if self.deadline is not None and not 0 < self.deadline < float("inf"):
            raise TermsError(f"a deadline is in seconds since the epoch: got {self.deadline}")

    def stronger(self, other: Terms) -> Terms:
        """What satisfies both: the higher priority, the later deadline (none is the latest), and waiting for an idle
        device only if both would."""
        deadline = None if self.deadline is None or other.deadline is None else max(self.deadline, other.deadline)
        priority = max(self.priority, other.priority)
        return Terms(priority=priority, deadline=deadline, idle=self.idle and other.idle)


class JobState(StrEnum):
    """Of a job, and of each of its keys."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request to tune one key or many. `progress` is what the search last said about itself.

    `states` has the state of each key, in order; `done_keys` counts those that have ended. `retry_of` is the job
    whose unfinished keys this one tries again. In a list only its first keys are there, in a Claim only its own:
    `omitted` counts the others, and `waits_on` has a device of each kind that any of them waits for.
    """

    id: str
    keys: tuple[ConvKey, ...]
    budget: Budget
    terms: Terms = field(default_factory=Terms)
    state: JobState = JobState.QUEUED
    states: tuple[JobState, ...] = ()
    done_keys: int = 0
    progress: JsonObject = field(default_factory=dict)
    error: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    retry_of: str = ""
    omitted: int = 0
    waits_on: tuple[DeviceSpec, ...] | None = None

    @property
    def total_keys(self) -> int:
        """Those left out included."""
        return len(self.keys) + self.omitted

    def waiting_devices(self) -> tuple[DeviceSpec, ...]:
        """Devices for which keys wait."""
        if self.waits_on is not None:
            return self.waits_on
        pairs = zip(self.keys, self.states, strict=True)
        return tuple(dict.fromkeys(key.device for key, state in pairs if state is JobState.QUEUED))

    def to_json(self) -> JsonObject:
        return {
            "id": self.id, "keys": [key.to_json() for key in self.keys], "budget": self.budget.to_json(),
            "priority": self.terms.priority, "deadline": self.terms.deadline, "idle": self.terms.idle,
            "state": str(self.state), "states": [str(state) for state in self.states], "done_keys": self.done_keys,
            "progress": self.progress, "error": self.error, "created_at": self.created_at,
            "started_at": self.started_at, "ended_at": self.ended_at, "retry_of": self.retry_of,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One key of a job, taken by one owner until it ends, is put back, or the owner falls silent.

    `job` has that key alone, the others are counted: of ten thousand each claim would read all. `index` is its place.
    """

    job: Job
    index: int
    owner: str

    @property
    def key(self) -> ConvKey:
        [key] = self.job.keys
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Keys that wait for one kind of device: how many, the first one's device and since when (epoch seconds)."""

    target: str
    device: DeviceSpec
    keys: int
    since: float


def target_of(device: DeviceSpec) -> str:
    """The kind of device that a key may be measured on: 16 hex digits over what is in its digest, flags left out.

    Flags are the environment of the process that measures, so one device serves all of them.
    """
    content = {name: value for name, value in device.identity().items() if name != "flags"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
