"""How many bundles may be on their way into the service, and out of it, at once."""

from __future__ import annotations

import asyncio

MAX_IMPORTS = 4
MAX_EXPORTS = 2


class Imports:
    """A place per bundle, from its first byte to its answer (`with`), and one `turn` for all: parsing takes many times
    a bundle's size. Of one event loop."""

    def __init__(self) -> None:
        self._places = MAX_IMPORTS
        self.turn = asyncio.Lock()

    @property
    def full(self) -> bool:
        """Whether there is no place."""
        return self._places == 0

    def __enter__(self) -> None:
        self._places -= 1

    def __exit__(self, *_: object) -> None:
        self._places += 1
