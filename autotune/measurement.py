"""What was measured: a failure is a Measurement too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.shape import JsonObject


class Status(StrEnum):
    """How the measurement of a candidate ended."""

    OK = "ok"
    WRONG = "wrong"  # fails verification
    COMPILE_ERROR = "compile_error"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    FALLBACK = "fallback"  # a compute kernel ran elsewhere than on the target
    PRUNED = "pruned"  # stopped early: it could not win any more
    INAPPLICABLE = "inapplicable"  # the strategy did not apply to this graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One compiled kernel of a candidate, in execution order. `median_s` is its own share, None where unknown."""

    name: str
    device: str
    ops: int = 0
    bytes: int = 0
    source_bytes: int = 0
    median_s: float | None = None

    def to_json(self) -> JsonObject:
        return {
            "name": self.name, "device": self.device, "ops": self.ops, "bytes": self.bytes,
            "source_bytes": self.source_bytes, "median_s": self.median_s,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One candidate for one key, measured once.

    `times_s` holds one device time per round, in the order of the rounds; `yardstick_times_s` the yardstick's
    (`direct`) time in the same rounds, so that ratios are paired. `error` is the largest verified error,
    max|y - y64| / max|y64|, and `error_bound` what it was held against.
    """

    key: ConvKey
    candidate: Candidate
    status: Status
    reason: str = ""
    times_s: tuple[float, ...] = ()
    yardstick_times_s: tuple[float, ...] = ()
    compile_s: float = 0.0
    error: float | None = None
    error_bound: float | None = None
    workspace_bytes: int = 0
    kernels: tuple[Kernel, ...] = ()
    fingerprint: str = ""
    """Digest of the kernels' sources in order: candidates that come out as the same program share it."""
    conditions: JsonObject = field(default_factory=dict)
    """Load, temperature and whatever else could have moved the times."""
    attempt: str = ""
    """Unique per attempt: recording the same attempt twice changes nothing."""
    measured_at: float = 0.0
    """Seconds since the epoch."""

    @property
    def ok(self) -> bool:
        return self.status is Status.OK

    def to_json(self) -> JsonObject:
        return {
            "key": self.key.to_json(), "candidate": self.candidate.to_json(), "status": str(self.status),
            "reason": self.reason, "times_s": list(self.times_s), "yardstick_times_s": list(self.yardstick_times_s),
            "compile_s": self.compile_s, "error": self.error, "error_bound": self.error_bound,
            "workspace_bytes": self.workspace_bytes, "kernels": [kernel.to_json() for kernel in self.kernels],
            "fingerprint": self.fingerprint, "conditions": self.conditions, "attempt": self.attempt,
            "measured_at": self.measured_at,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        fields = dict(data)
        fields["key"] = ConvKey.from_json(fields["key"])
        fields["candidate"] = Candidate.from_json(fields["candidate"])
        fields["status"] = Status(fields["status"])
        fields["times_s"] = tuple(float(t) for t in fields.get("times_s", ()))
        fields["yardstick_times_s"] = tuple(float(t) for t in fields.get("yardstick_times_s", ()))
        fields["kernels"] = tuple(Kernel(**kernel) for kernel in fields.get("kernels", ()))
        return cls(**fields)
