"""What the notes that this project grew out of measured, beside what is measured here.

Agreement is about direction: faster, slower or even. Their times are of another device, and of whole Python calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from autotune.winner import Interval

EVEN = 0.03
"""Ratios closer to 1 than this are even: the notes give no intervals and call 1.4% noise."""

FAR = 2.0
"""Ratios that differ by more than this factor are not of one size."""


class Direction(StrEnum):
    FASTER = "faster"
    EVEN = "even"
    SLOWER = "slower"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One ratio of the notes (new over old, below 1 is faster) beside ours, None where we have none."""

    what: str
    theirs: float
    ours: float | None
    interval: Interval | None = None

    @property
    def verdict(self) -> str:
        if self.ours is None:
            return "not measured"
        mine = direction(self.interval or Interval(median=self.ours, low=self.ours, high=self.ours))
        expected = direction(Interval(median=self.theirs, low=self.theirs, high=self.theirs))
        if mine is not expected:
            return f"{mine} here, {expected} there"
        apart = max(self.theirs / self.ours, self.ours / self.theirs)
        return "agrees" if apart < FAR else "agrees in direction, not in size"

    def to_json(self) -> dict[str, Any]:
        interval = self.interval.to_json() if self.interval is not None else None
        return {
            "what": self.what, "theirs": self.theirs, "ours": self.ours, "interval": interval, "verdict": self.verdict,
        }  # fmt: skip


def direction(ratio: Interval) -> Direction:
    """Of a ratio below 1 for faster: even unless all of the interval is beyond EVEN."""
    if ratio.high < 1 - EVEN:
        return Direction.FASTER
    return Direction.SLOWER if ratio.low > 1 + EVEN else Direction.EVEN


@cache
def figures() -> Mapping[str, Any]:
    """The transcribed figures."""
    read: Mapping[str, Any] = json.loads(Path(__file__).with_name("notes.json").read_text(encoding="utf-8"))
    return read
