"""A request to tune, which survives restarts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from strategies.key import ConvKey
from strategies.shape import JsonObject


class BudgetError(ValueError):
    """A budget that allows nothing, or is no budget at all."""


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

    def to_json(self) -> JsonObject:
        return {"seconds": self.seconds, "trials": self.trials}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        return cls(seconds=data.get("seconds"), trials=data.get("trials"))


class JobState(StrEnum):
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
    """One request to tune one key or many. `progress` is what the search last said about itself."""

    id: str
    keys: tuple[ConvKey, ...]
    budget: Budget
    state: JobState = JobState.QUEUED
    done_keys: int = 0
    progress: JsonObject = field(default_factory=dict)
    error: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None

    def to_json(self) -> JsonObject:
        return {
            "id": self.id, "keys": [key.to_json() for key in self.keys], "budget": self.budget.to_json(),
            "state": str(self.state), "done_keys": self.done_keys, "progress": self.progress, "error": self.error,
            "created_at": self.created_at, "started_at": self.started_at, "ended_at": self.ended_at,
        }  # fmt: skip
