"""Winners in memory, right after every write of any process: what is kept holds while no change is counted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_CHARACTERS = 64 << 20
"""Of winners as JSON: some 40,000 of them."""
OVERHEAD = 200
"""Of an entry that says that nothing is known."""

Find = Callable[[Sequence[str]], Mapping[str, str]]


class LookupCache:
    """The least recently used go first. Safe to use from several threads."""

    def __init__(self, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_characters = max_characters
        self._lock = threading.Lock()
        self._changes = -1
        self._winners: OrderedDict[str, str | None] = OrderedDict()
        self._characters = 0

    def get(self, digests: Iterable[str], changes: int, find: Find) -> dict[str, str]:
        """The winners of `digests` as JSON text, unknown ones absent, with those that are missing here from `find`.

        `changes` is the count of changes, read before: what is found under another count is not kept.
        """
        wanted = list(digests)
        with self._lock:
            self._forget_unless(changes)
            held = {digest: self._winners[digest] for digest in wanted if digest in self._winners}
            for digest in held:
                self._winners.move_to_end(digest)
        missing = [digest for digest in wanted if digest not in held]
        if missing:
            found = find(missing)
            held |= {digest: found.get(digest) for digest in missing}
            with self._lock:
                if self._changes == changes:
                    self._keep(missing, found)
        return {digest: text for digest, text in held.items() if text is not None}

    def _forget_unless(self, changes: int) -> None:
        if self._changes != changes:
            self._winners.clear()
            self._changes, self._characters = changes, 0

    def _keep(self, digests: Iterable[str], found: Mapping[str, str]) -> None:
        for digest in digests:
            if digest not in self._winners:
                self._winners[digest] = found.get(digest)
                self._characters += OVERHEAD + len(found.get(digest, ""))
        while self._characters > self._max_characters:
            _, text = self._winners.popitem(last=False)
            self._characters -= OVERHEAD + len(text or "")
