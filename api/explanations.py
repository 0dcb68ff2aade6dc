"""Explanations that the service has made, remembered: each costs the device some ten seconds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from autotune.explanation import Explanation, explain
from autotune.peak_cache import PeakCache
from autotune.store import Store
from autotune.winner import Winner

REMEMBERED = 256
MAX_WAITING = 4
"""Requests at once, the one at work included: each holds a thread of the service for as long as it waits."""


class ExplanationsBusyError(RuntimeError):
    """Too many wait for the device already."""


class Explanations:
    """By winner, with sources; one is made at a time, and asked for meanwhile it is waited for."""

    def __init__(
        self, make: Callable[..., Explanation] = explain, peaks: PeakCache | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._make, self._peaks, self._should_stop = make, peaks or PeakCache.of_user(), should_stop
        self._making, self._lock = threading.Lock(), threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_WAITING)
        self._known: OrderedDict[tuple[str, str], Explanation] = OrderedDict()

    def known(self, winner: Winner) -> Explanation | None:
        """What was made before: costs the device nothing."""
        with self._lock:
            return self._known.get(_wanted(winner))

    def of(self, store: Store, winner: Winner) -> Explanation:
        """Raises what `explain` raises, and ExplanationsBusyError."""
        if (known := self.known(winner)) is not None:
            return known
        if not self._places.acquire(blocking=False):
            raise ExplanationsBusyError(f"{MAX_WAITING} requests wait for the device already: try again in a minute")
        try:
            with self._making:
                found = self.known(winner) or self._make(
                    store, winner, peaks=self._peaks, source=True, should_stop=self._should_stop
                )
        finally:
            self._places.release()
        with self._lock:
            self._known[_wanted(winner)] = found
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found


def _wanted(winner: Winner) -> tuple[str, str]:
    return winner.key.digest, winner.candidate.digest
