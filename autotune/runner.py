"""The one interface through which a measurement is run: here by a child process, elsewhere by a remote worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from autotune.job import Budget
from autotune.measurement import Measurement
from autotune.timing import HOPELESS
from strategies.candidate import Candidate, KernelOptions
from strategies.key import ConvKey
from strategies.shape import JsonObject

ROUND_S = 0.02
"""How long a contestant runs in one round."""
MOST_AT_ONCE = 8
TIMED = "timed_s"
"""A Measurement's condition: seconds of verifying and timing it, those of what was measured with it in equal parts."""
TRIED = "options_tried"
"""A Measurement's condition: how many kernels were compiled and timed before it in the search for their options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one candidate may cost. `prepare_s` covers scheduling, compiling and verifying, `run_s` one timing call;
    where one is exceeded the process is ended. `lowering_s` is how much processor time tinygrad may spend on one
    kernel before the candidate is given up without harm to the process. `memory_bytes`, None: half of what the machine
    that measures has, which is the most in any case."""

    prepare_s: float = 60.0
    lowering_s: float = 10.0
    run_s: float = 30.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Prepare each candidate, verify it, then time all that pass in interleaved rounds with `direct` as yardstick.

    `rounds` is the number of interleaved rounds; a round runs every contestant once or, when one run is shorter
    than `round_s`, often enough to fill it, and its time is the median of those runs. A candidate `hopeless` times as
    slow as `direct` is stopped early, or not even compiled if its work alone says so. The first `keep` candidates are
    never stopped; with `race`, others are when they lose to the fastest of the request round after round.
    """

    key: ConvKey
    candidates: tuple[Candidate, ...]
    rounds: int = 7
    round_s: float = ROUND_S
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    hopeless: float = HOPELESS
    keep: int = 0
    race: bool = False
    options: Budget | None = None
    """Within which options are first searched for the kernels of each candidate, a kernel timed with some being a
    trial; what is measured, and in the Measurement, is the candidate with these, and in its conditions how many were
    tried (TRIED). None: candidates are measured as they are."""
    hints: tuple[tuple[str, KernelOptions], ...] = ()
    """Options that were good elsewhere, by the kernel's role: tried first, whatever the axes, where they fit."""

    @property
    def options_s(self) -> float:
        """Seconds that the search for options of one candidate takes at most, its trials at their limits."""
        if self.options is None:
            return 0.0
        return self.options.seconds or (self.options.trials or 0) * self.limits.run_s

    def to_json(self) -> JsonObject:
        return {
            "key": self.key.to_json(), "candidates": [c.to_json() for c in self.candidates], "rounds": self.rounds,
            "round_s": self.round_s, "seed": self.seed, "limits": asdict(self.limits),
            "hopeless": self.hopeless, "keep": self.keep, "race": self.race,
            "options": self.options.to_json() if self.options is not None else None,
            "hints": [[role, options.to_json()] for role, options in self.hints],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        fields = dict(data)
        fields["key"] = ConvKey.from_json(fields["key"])
        fields["candidates"] = tuple(Candidate.from_json(c) for c in fields["candidates"])
        fields["limits"] = Limits(**fields["limits"])
        fields["options"] = Budget.from_json(fields["options"]) if fields.get("options") is not None else None
        fields["hints"] = tuple((role, KernelOptions.from_json(made)) for role, made in fields.get("hints", ()))
        return cls(**fields)


class DeviceUnavailableError(RuntimeError):
    """The device cannot be used at all; the message says why, in one line.

    `measured` holds what was final of the request before the device was lost: record it, or a resumed search walks
    into the same candidate again.
    """

    def __init__(self, reason: str, measured: Sequence[Measurement] = ()) -> None:
        super().__init__(reason)
        self.measured = tuple(measured)


class NoWorkerError(RuntimeError):
    """There is no worker for the device, or none any more; the message says since when and how to start one."""


class RunStoppedError(Exception):
    """`should_stop` said so amid a request: what was under way is ended, and nothing is known of its candidates."""


def at_once(processors: int) -> int:
    """How many candidates to ask for in one request of a machine with so many processors, which compiles them side by
    side: a candidate has two kernels or so that take long. What is asked at once is chosen without knowing how the
    others of it do, so that there is an end to it."""
    return max(1, min(MOST_AT_ONCE, processors // 2))


class Runner(Protocol):
    """Runs measurements on one device, one at a time."""

    @property
    def at_once(self) -> int:
        """How many candidates are best asked for in one request."""

    def measure(self, request: Request, *, should_stop: Callable[[], bool] = lambda: False) -> Sequence[Measurement]:
        """One Measurement per candidate, in order. Whatever a candidate does - crash, hang, lie - ends up in its
        Measurement; only a device that cannot be used at all raises (DeviceUnavailableError).

        Once `should_stop` says so, asked several times a second, the device is free at once: RunStoppedError."""

    def close(self) -> None:
        """End the process behind it. Idempotent."""
