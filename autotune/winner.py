"""What was decided: the best verified candidate of a key, next to the better default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.shape import JsonObject


class WinnerState(StrEnum):
    VERIFIED = "verified"  # measured and verified on this device
    PROVISIONAL = "provisional"  # measured before the driver, OS or compiler changed
    GUESS = "guess"  # never measured here
    PINNED = "pinned"  # chosen by a person
    REVOKED = "revoked"  # withdrawn by a person: never applied, and nothing else is until a person says so
    BANNED = "banned"  # this candidate may never win this key; another may


APPLICABLE_STATES = (WinnerState.VERIFIED, WinnerState.PROVISIONAL, WinnerState.PINNED)
"""The states that the runtime hook applies; a guess only when the caller asks for guesses."""

WITHDRAWN_STATES = (WinnerState.REVOKED, WinnerState.BANNED)
"""The states that nobody is handed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median with its 95% confidence interval, in the unit of what it estimates."""

    median: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        return [self.median, self.low, self.high]

    @classmethod
    def from_json(cls, data: Any) -> Interval:
        median, low, high = data
        return cls(median=float(median), low=float(low), high=float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The decision for one key. `time_s` and `default_time_s` are seconds on the device; `ratio` is winner over
    the better default (`default`: `direct` or `tensor_winograd`), below 1 is faster, paired over the same rounds."""

    key: ConvKey
    candidate: Candidate
    state: WinnerState
    time_s: Interval
    default: Candidate
    default_time_s: Interval
    ratio: Interval
    error: float | None = None
    workspace_bytes: int = 0
    times_s: JsonObject = field(default_factory=dict)
    """Median seconds of the other contestants of the final, by name: `direct`, `tensor_winograd`, ..."""
    provenance: JsonObject = field(default_factory=dict)
    """Who measured it: package version, host, trials, job."""
    decided_at: float = 0.0
    """Seconds since the epoch."""

    def to_json(self) -> JsonObject:
        return {
            "key": self.key.to_json(), "candidate": self.candidate.to_json(), "state": str(self.state),
            "time_s": self.time_s.to_json(), "default": self.default.to_json(),
            "default_time_s": self.default_time_s.to_json(), "ratio": self.ratio.to_json(), "error": self.error,
            "workspace_bytes": self.workspace_bytes, "times_s": self.times_s, "provenance": self.provenance,
            "decided_at": self.decided_at,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Winner:
        fields = dict(data)
        fields["key"] = ConvKey.from_json(fields["key"])
        fields["candidate"] = Candidate.from_json(fields["candidate"])
        fields["default"] = Candidate.from_json(fields["default"])
        fields["state"] = WinnerState(fields["state"])
        for name in ("time_s", "default_time_s", "ratio"):
            fields[name] = Interval.from_json(fields[name])
        return cls(**fields)
