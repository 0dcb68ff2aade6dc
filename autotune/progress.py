"""What a search says of itself while it runs: for progress bars, job records and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autotune.job import Budget
from strategies.candidate import Candidate
from strategies.shape import JsonObject

Phase = Literal["search", "final", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`trials` candidates measured and `used_s` seconds used of `budget`, before a resumption included; `failed` of
    them did not pass. `best` is the fastest candidate so far, `ratio` its time over `direct`'s, `time_s` its median."""

    phase: Phase
    trials: int
    failed: int
    used_s: float
    budget: Budget
    best: Candidate | None = None
    ratio: float | None = None
    time_s: float | None = None

    @property
    def fraction(self) -> float:
        """How much of the budget is used, 0 to 1; the final comes on top of trials and is part of seconds."""
        if self.phase == "done":
            return 1.0
        parts = [0.0]
        if self.budget.trials is not None:
            parts.append(self.trials / self.budget.trials)
        if self.budget.seconds is not None:
            parts.append(self.used_s / self.budget.seconds)
        return min(max(parts), 1.0)

    def to_json(self) -> JsonObject:
        return {
            "phase": self.phase, "trials": self.trials, "failed": self.failed, "used_s": round(self.used_s, 2),
            "budget": self.budget.to_json(), "best": self.best.to_json() if self.best else None, "ratio": self.ratio,
            "time_s": self.time_s, "fraction": round(self.fraction, 4),
        }  # fmt: skip
