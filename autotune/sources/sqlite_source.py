"""Winners from the service's own SQLite file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from autotune.bundle import BundleError, parse_json
from autotune.sources.source import SourceError, checked, usable
from autotune.winner import Winner
from strategies.key import ConvKey
from strategies.locks import ForkLock

if TYPE_CHECKING:
    import sqlite3

SQLITE_TIMEOUT_S = 0.3
CHUNK = 500
"""Keys per statement: SQLite before 3.32 takes 999 parameters."""


class SqliteSource:
    """A database read through the view `lookup_v1` (documented in db/README.md), also while the service writes."""

    def __init__(self, path: Path, *, timeout_s: float = SQLITE_TIMEOUT_S) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._lock = ForkLock()
        self._connection: sqlite3.Connection | None = None
        self._immutable = False
        self._opened: tuple[Any, ...] = ()
        self._abandoned: list[sqlite3.Connection] = []

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        import sqlite3

        wanted = sorted({key.digest for key in keys})
        found: dict[str, Any] = {}
        with self._lock:
            try:
                connection = self._connect()
                for start in range(0, len(wanted), CHUNK):
                    chunk = wanted[start : start + CHUNK]
                    marks = ",".join("?" * len(chunk))
                    query = f"SELECT key_digest, winner FROM lookup_v1 WHERE key_digest IN ({marks})"  # noqa: S608
                    found.update(connection.execute(query, chunk).fetchall())
            except (sqlite3.Error, OSError) as error:
                self._drop()
                raise SourceError(
                    f"expected a database of the autotune service at {self._path}, found: {error}; check the path, "
                    f"and see what `autotune doctor` says of it"
                ) from error
        return usable(checked({digest: self._json(text) for digest, text in found.items()}, self._path))

    def version(self) -> object:
        """The file's identity and SQLite's own counter of others' commits; an error's text while it is unreadable."""
        import sqlite3

        with self._lock:
            try:
                connection = self._connect()
                return (self._opened, connection.execute("PRAGMA data_version").fetchone()[0])
            except (sqlite3.Error, OSError) as error:
                self._drop()
                return str(error)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _connect(self) -> sqlite3.Connection:
        """The held connection, unless the path names another file by now or this is a forked child."""
        import sqlite3

        if self._connection is not None:
            if self._opened == self._identity(immutable=self._immutable):
                return self._connection
            if self._opened[0] != os.getpid():
                # SQLite forbids even closing it on the other side of a fork.
                self._abandoned.append(self._connection)
                self._connection = None
            self._drop()
        self._path.stat()  # a clearer error than SQLite's
        try:
            return self._open(immutable=False)
        except sqlite3.OperationalError:
            # Nobody can write in a read-only directory, so there SQLite cannot keep the lock file that a live
            # database needs, and need not: an image or a mounted cache.
            if os.access(self._path.parent, os.W_OK) or self._wal_exists():
                raise
            return self._open(immutable=True)

    def _open(self, *, immutable: bool) -> sqlite3.Connection:
        import sqlite3

        identity = self._identity(immutable=immutable)  # before opening: a change in between is seen next time
        uri = f"file:{quote(os.fspath(self._path.absolute()))}?mode=ro{'&immutable=1' if immutable else ''}"
        connection = sqlite3.connect(uri, uri=True, timeout=self._timeout_s, check_same_thread=False)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens the file, which `connect` does not
        except sqlite3.Error:
            connection.close()
            raise
        self._connection, self._immutable, self._opened = connection, immutable, identity
        return connection

    def _identity(self, *, immutable: bool) -> tuple[Any, ...]:
        info = self._path.stat()
        change = (info.st_size, info.st_mtime_ns, self._wal_exists()) if immutable else ()
        return (os.getpid(), info.st_dev, info.st_ino, *change)

    def _wal_exists(self) -> bool:
        return self._path.with_name(self._path.name + "-wal").exists()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._opened = None, ()

    def _json(self, text: object) -> Any:
        try:
            return parse_json(text.encode() if isinstance(text, str) else b"")
        except BundleError as error:
            raise SourceError(f"{self._path}: {error}") from None
