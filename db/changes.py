"""Whether winners have changed since one last looked: what a cache must know to be right, cheaply."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from sqlalchemy import Connection, Engine, select

from db.models import ChangeRow

QUERY = "SELECT count FROM changes"


def count(connection: Connection) -> int:
    """How many changes there were."""
    return connection.execute(select(ChangeRow.count)).scalar_one()


class Counter:
    """Reads `changes` over a connection of its own, which costs some microseconds on SQLite.

    One connection, threads take turns. A forked child opens its own: its parent's must not even be closed there.
    Where a server fell silent, it takes seconds to find that out: who waits meanwhile is told what the one before
    found, instead of finding it out once more, one after the other.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: Any = None
        self._pid = os.getpid()
        self._abandoned: list[Any] = []
        self._failed_at, self._failure = float("-inf"), ""

    def read(self) -> int:
        """Raises what the driver raises, or ConnectionError for what it raised while we waited; the next call dials
        again."""
        asked_at = time.monotonic()
        with self._lock:
            if self._failed_at > asked_at:
                raise ConnectionError(self._failure)
            if self._pid != os.getpid():
                self._abandoned.append(self._connection)
                self._connection, self._pid = None, os.getpid()
            try:
                if self._connection is None:
                    self._connection = self._open()
                return int(self._connection.execute(QUERY).fetchone()[0])
            except Exception as error:
                self._failed_at, self._failure = time.monotonic(), f"{type(error).__name__}: {error}"
                self._drop()
                raise

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._pid == os.getpid():
                self._drop()

    def _open(self) -> Any:
        """A driver's connection, out of the pool for good, in which each statement is a transaction of its own."""
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        if self._engine.dialect.name == "postgresql":
            connection.rollback()
            connection.autocommit = True
        else:
            connection.execute("PRAGMA busy_timeout=0")  # whoever asks has another way to find out, and does not wait
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
