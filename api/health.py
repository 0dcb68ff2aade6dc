"""Whether a worker's device and its measuring loop still work: what it suspects, and when it is stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from autotune.measurement import Measurement, Status
from autotune.runner import DeviceUnavailableError, Request, Runner
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

DIRECT = "direct"
MISHAPS = (Status.CRASHED, Status.TIMEOUT)
CERTAIN, POSSIBLE, ENOUGH = 2, 1, 4
"""Points of suspicion in a row: the device could not be used or `direct` itself failed; everything crashed that was not
`direct`, which bad candidates do as well; so many, and the device is tested."""
STUCK_S = 90.0
"""A loop that watches a measurement asks several times a second whether to go on. Killing a process that a driver holds
takes it 10 s, describing the machine a few."""
OPEN_S = 240.0
"""What opening a device may take, twice, beside what a request allows its candidates."""


class Suspicion:
    """Counts what speaks against the device, in a row. For one thread."""

    def __init__(self) -> None:
        self._points = 0

    def told(self, measured: Sequence[Measurement], *, unusable: bool) -> bool:
        """What became of a request; whether it is time to test the device."""
        direct_failed = any(m.candidate.strategy == DIRECT and not m.ok for m in measured)
        if unusable or direct_failed:
            self._points += CERTAIN
        elif measured and all(m.status in MISHAPS for m in measured):
            self._points += POSSIBLE
        else:
            self._points = 0
        return self._points >= ENOUGH

    def cleared(self) -> None:
        """The device has passed its test."""
        self._points = 0


def self_test(runner: Runner, device: DeviceSpec, should_stop: Callable[[], bool]) -> str:
    """What is wrong with the device, in one line; empty if it computes a small convolution right. Raises
    RunStoppedError."""
    shape = ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), padding=1)
    request = Request(key=ConvKey(shape=shape, device=device), candidates=(Candidate.of(DIRECT),), rounds=1)
    try:
        [measured] = runner.measure(request, should_stop=should_stop)
    except DeviceUnavailableError as error:
        return str(error)
    return "" if measured.ok else f"{measured.status}: {measured.reason}"


class Pulse:
    """Whether the loop that measures makes progress, seen from another thread.

    Whoever watches a measurement asks `should_stop` all the time, so that being asked is the loop's pulse; and what is
    measured must end within what its request allows, waiting for the device apart.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, stuck_s: float = STUCK_S) -> None:
        self._clock, self._stuck_s = clock, stuck_s
        self._lock = threading.Lock()
        self._beat_at: float | None = None
        self._most_s, self._measured_s = float("inf"), 0.0

    def begin(self, request: Request) -> None:
        """A request is being measured from now on."""
        with self._lock:
            self._beat_at, self._measured_s, self._most_s = self._clock(), 0.0, most_s(request)

    def end(self) -> None:
        """Nothing is being measured."""
        with self._lock:
            self._beat_at = None

    def beat(self, *, waiting: bool = False) -> None:
        """The loop lives; `waiting`: for a device that another process has."""
        with self._lock:
            if self._beat_at is not None:
                now = self._clock()
                self._measured_s += 0.0 if waiting else now - self._beat_at
                self._beat_at = now

    def stuck(self) -> str:
        """Why the loop is given up, in one line; empty while it makes progress."""
        with self._lock:
            if self._beat_at is None:
                return ""
            silent_s = self._clock() - self._beat_at
            if silent_s > self._stuck_s:
                return f"the loop that measures has been silent for {silent_s:.0f} s"
            if self._measured_s > self._most_s:
                return f"a request took {self._measured_s:.0f} s, which allows {self._most_s:.0f} s"
        return ""


def most_s(request: Request) -> float:
    """Seconds within which a request ends, by its own limits, also if each candidate is tried once more alone."""
    limits, contestants = request.limits, len(request.candidates) + 1
    each_s = limits.prepare_s + request.rounds * limits.run_s + request.options_s
    return OPEN_S + 3 * contestants * each_s
