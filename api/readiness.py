"""Whether the database takes writes, asked by anyone as often as they like, tried as often as is good for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from api.shared import Shared

HOLDS_S = 1.0
"""So long an answer holds. Who asks needs no token, and each try is a write that others wait for."""


class Readiness:
    """Remembers what the last try said. All who ask at once wait for one try, in one thread, and share its answer."""

    def __init__(
        self, attempt: Callable[[], None], counts: Callable[[], Mapping[str, int]],
        *, clock: Callable[[], float] = time.monotonic, holds_s: float = HOLDS_S,
    ) -> None:  # fmt: skip
        """`attempt` raises DatabaseError where the database takes no writes, `counts` says what there is to be done."""

        def read() -> Mapping[str, int]:
            attempt()
            return counts()

        self._shared = Shared(read, holds_s, clock=clock)

    async def expect_writable(self) -> Mapping[str, int]:
        """Raises DatabaseError, with what the last try within HOLDS_S said, if the database takes no writes."""
        return await self._shared.get()
