"""Limits on one candidate, checked from outside while the child works."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from autotune.measurement import Status
from autotune.runner import Limits

PHASES = {"prepare": "to compile and verify", "verify": "to compile and verify", "time": "for one timing"}
SHARED = -1
"""The index of work that belongs to no candidate: the reference, the yardstick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakage:
    """Why a child had to be given up, and at which candidate of the request; `index` is SHARED if at none."""

    index: int
    status: Status
    reason: str


class Watchdog:
    """Knows what the child is doing and since when. `clock` gives seconds.

    `prepare` and `verify` of one candidate share `prepare_s`, also when the child goes back and forth between
    candidates; every begin of `time` is one timing call and has `run_s` to itself.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], memory_bytes: int) -> None:
        """`memory_bytes` is the most that this machine allows."""
        self._limits, self._clock = limits, clock
        self._memory_bytes = min(limits.memory_bytes or memory_bytes, memory_bytes)
        self._spent_s: defaultdict[int, float] = defaultdict(float)
        self._since = clock()
        self.index = SHARED
        self.phase = "prepare"

    def begin(self, index: int, phase: str) -> None:
        """The child says that it starts a phase of a candidate."""
        now = self._clock()
        if self.phase != "time":
            self._spent_s[self.index] += now - self._since
        self.index, self.phase, self._since = index, phase, now

    def check(self, memory_bytes: int) -> Breakage | None:
        """What is exceeded now, if anything."""
        if memory_bytes > self._memory_bytes:
            return self.breakage(Status.CRASHED, f"used more than {_size(self._memory_bytes)} of memory")
        elapsed_s, limit_s = self._clock() - self._since, self._limits.run_s
        if self.phase != "time":
            elapsed_s, limit_s = elapsed_s + self._spent_s[self.index], self._limits.prepare_s
        if elapsed_s > limit_s:
            return self.breakage(Status.TIMEOUT, f"took more than {limit_s:g} s {PHASES[self.phase]}")
        return None

    def breakage(self, status: Status, reason: str) -> Breakage:
        """A breakage of what the child is doing now."""
        return Breakage(index=self.index, status=status, reason=reason)


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
