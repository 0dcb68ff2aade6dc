"""Whether the database takes writes, asked by anyone as often as they like, tried as often as is good for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from db import DatabaseError

HOLDS_S = 1.0
"""So long an answer holds. Who asks needs no token, and each try is a write that others wait for."""


class Readiness:
    """Remembers what the last try said. Threads that ask at once wait for one try and share its answer."""

    def __init__(
        self, attempt: Callable[[], None], *, clock: Callable[[], float] = time.monotonic, holds_s: float = HOLDS_S
    ) -> None:
        """`attempt` raises DatabaseError where the database takes no writes."""
        self._attempt, self._clock, self._holds_s = attempt, clock, holds_s
        self._lock = threading.Lock()
        self._at = float("-inf")
        self._said = ""

    def expect_writable(self) -> None:
        """Raises DatabaseError, with what the last try within HOLDS_S said, if the database takes no writes."""
        with self._lock:
            if self._clock() - self._at >= self._holds_s:
                try:
                    self._attempt()
                    self._said = ""
                except DatabaseError as error:
                    self._said = str(error)
                self._at = self._clock()
            said = self._said
        if said:
            raise DatabaseError(said)
