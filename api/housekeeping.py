"""What a service removes by itself, once a day: what is old and has ended or been superseded."""

from __future__ import annotations

import logging
import threading

from db import DatabaseError, SqlStore

EVERY_S = 24 * 3600.0
FIRST_S = 600.0
"""After a start there is more urgent work."""

log = logging.getLogger("autotune.housekeeping")


class Housekeeping:
    """A thread that removes what is older than `retention_s` (0: never), some thousand rows per transaction."""

    def __init__(
        self, store: SqlStore, retention_s: float, *, first_s: float = FIRST_S, every_s: float = EVERY_S
    ) -> None:
        self._store, self._retention_s, self._first_s, self._every_s = store, retention_s, first_s, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin, if there is a time after which anything goes."""
        if self._retention_s:
            self._thread.start()

    def stop(self) -> None:
        """End after the transaction under way; what is left is for the next time. Idempotent."""
        self._stopping.set()

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._stopping.wait(wait_s):
            wait_s = self._every_s
            try:
                removed = self._store.prune(self._store.now() - self._retention_s, should_stop=self._stopping.is_set)
            except DatabaseError as error:
                log.warning("nothing old was removed: %s", error)
                continue
            except Exception:
                log.exception("a bug in housekeeping, which goes on")
                continue
            if any(removed.values()):
                log.info("old rows removed: %s", ", ".join(f"{count} {what}" for what, count in removed.items()))
