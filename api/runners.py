"""The runners of this process, one per device, opened when first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from autotune.measurement import Measurement
from autotune.runner import Request, Runner

OpenRunner = Callable[[str], Runner]


class InterruptedRunError(Exception):
    """The measurement was ended from outside: its outcome says nothing about the candidate."""


class InterruptibleRunner:
    """A runner whose measurements another thread may disown.

    What comes back after `interrupt` is thrown away rather than recorded: the process behind it may have been
    ended amid a candidate, which would then look as if it had crashed.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._interrupted = threading.Event()

    @property
    def interrupted(self) -> bool:
        """Whether this runner is of no more use."""
        return self._interrupted.is_set()

    def measure(self, request: Request) -> Sequence[Measurement]:
        """As the runner inside; raises InterruptedRunError."""
        if self.interrupted:
            raise InterruptedRunError
        try:
            measurements = self._runner.measure(request)
        except Exception:
            if self.interrupted:
                raise InterruptedRunError from None
            raise
        if self.interrupted:
            raise InterruptedRunError
        return measurements

    def interrupt(self) -> None:
        """Disown what runs now, from any thread. Returns at once; `measure` raises when it would have returned."""
        self._interrupted.set()

    def close(self) -> None:
        """As the runner inside."""
        self._runner.close()


class Runners:
    """One runner per device name. `get` and `close` may be called from any thread; `close` waits for what runs."""

    def __init__(self, open_runner: OpenRunner) -> None:
        self._open = open_runner
        self._lock = threading.Lock()
        self._runners: dict[str, Runner] = {}

    def get(self, device: str) -> InterruptibleRunner:
        """The device's runner, interruptible until the caller is done with it; raises what opening it raises."""
        with self._lock:
            runner = self._runners.get(device)
            if runner is None:
                runner = self._runners[device] = self._open(device)
            return InterruptibleRunner(runner)

    def close(self) -> None:
        """End every process. Idempotent."""
        with self._lock:
            runners, self._runners = list(self._runners.values()), {}
        for runner in runners:
            runner.close()
