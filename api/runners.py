"""The runners of this process, one per device, opened when first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from autotune.runner import Runner

OpenRunner = Callable[[str], Runner]


class Runners:
    """One runner per device name. `get` and `close` may be called from any thread; `close` waits for what runs."""

    def __init__(self, open_runner: OpenRunner) -> None:
        self._open = open_runner
        self._lock = threading.Lock()
        self._runners: dict[str, Runner] = {}

    def get(self, device: str) -> Runner:
        """The device's runner; raises what opening it raises."""
        with self._lock:
            if device not in self._runners:
                self._runners[device] = self._open(device)
            return self._runners[device]

    def close(self) -> None:
        """End every process behind them; `get` opens them again. Idempotent."""
        with self._lock:
            runners, self._runners = list(self._runners.values()), {}
        for runner in runners:
            runner.close()
