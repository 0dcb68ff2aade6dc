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


class Explanations:
    """By winner, with sources; one is made at a time, and asked for meanwhile it is waited for."""

    def __init__(self, make: Callable[..., Explanation] = explain, peaks: PeakCache | None = None) -> None:
        self._make, self._peaks = make, peaks or PeakCache.of_user()
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Explanation] = OrderedDict()

    def of(self, store: Store, winner: Winner) -> Explanation:
        """Raises what `explain` raises."""
        wanted = (winner.key.digest, winner.candidate.digest)
        with self._lock:
            if wanted not in self._known:
                self._known[wanted] = self._make(store, winner, peaks=self._peaks, source=True)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
            return self._known[wanted]
