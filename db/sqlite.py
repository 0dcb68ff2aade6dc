"""Everything that is SQLite's alone: the file, its pragmas, how transactions begin, what its errors mean."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError

from db.errors import DatabaseBusyError, DatabaseError, DatabaseUnreachableError, NotADatabaseError

MIN_FREE_BYTES = 32 << 20
WRITE = "autotune_write"
"""The execution option of a connection that is going to write."""


class Sqlite:
    """A database file in WAL mode: readers never wait, writers wait for each other, a returned commit is on disk."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self.path = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - a link stays a link
        self.busy_timeout_s = busy_timeout_s
        self._opened: os.stat_result | None = None

    def __str__(self) -> str:
        return str(self.path)

    def connect(self) -> Engine:
        """An engine on the file, which is created if only it is missing. Raises DatabaseUnreachableError."""
        self.check_access()
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            connect_args={"timeout": self.busy_timeout_s, "isolation_level": None},
            pool_size=8, max_overflow=64, pool_timeout=self.busy_timeout_s,
        )  # fmt: skip
        event.listen(engine, "do_connect", self._before_connect)
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", self._on_begin)
        event.listen(engine, "handle_error", _on_error)
        return engine

    def prepare(self, engine: Engine) -> None:
        """Switch to WAL, which the file remembers. Not a part of a transaction, and not covered by `busy_timeout`:
        SQLite answers at once when another process switches, too, so this waits itself."""
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            raw = engine.raw_connection()
            try:
                mode = raw.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
                if mode != ("wal",):
                    raise DatabaseUnreachableError(
                        f"{self}: expected a file system on which SQLite can share memory between processes (WAL), "
                        f"found one on which it cannot: put the database on a local disk"
                    )
                self._opened = self._opened or self.path.stat()
                return
            except sqlite3.OperationalError as error:
                if not _busy(error) or time.monotonic() > deadline:
                    raise (self._explain(error) or error) from error
            finally:
                raw.close()
            time.sleep(0.02)

    def lock_migrations(self, connection: Connection) -> None:
        """Nothing to add: migrations run in one transaction, and BEGIN IMMEDIATE lets one process at a time in."""

    def explain(self, error: DBAPIError) -> DatabaseError | None:
        """What a driver's error means to a user; None for one that is a bug of ours."""
        return self._explain(error.orig) if isinstance(error.orig, sqlite3.DatabaseError) else None

    def now(self, connection: Connection) -> float:  # noqa: ARG002 - the same for every dialect
        """Seconds since the epoch, of this machine."""
        return time.time()

    def expect_room(self) -> None:
        """Raises DatabaseError when the disk is nearly full: before a write fails."""
        free = shutil.disk_usage(self.path.parent).free
        if free < MIN_FREE_BYTES:
            raise DatabaseError(
                f"{self}: expected at least {MIN_FREE_BYTES >> 20} MiB of room on its disk, found {free >> 20}: "
                "free some"
            )

    def check(self, connection: Connection) -> list[str]:
        """What is wrong inside the file, one line each."""
        damage = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check") if row[0] != "ok"]
        orphans = [] if damage else connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        return damage + [
            f"row {row_id} of {table} refers to a row of {parent} that is not there"
            for table, row_id, parent, _ in orphans
        ]

    def session_options(self) -> str:
        """There are no sessions."""
        return ""

    def backup(self, engine: Engine, target: Path) -> None:
        """Copy the database while others write to it; the copy is on disk and whole before it gets its name."""
        if target.exists():
            raise DatabaseError(f"{target}: expected a path at which there is nothing yet, found a file: name another")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        source = engine.raw_connection()
        try:
            copy = sqlite3.connect(partial)
            try:
                connection: Any = source.driver_connection
                connection.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, no side files
            finally:
                copy.close()
            _sync(partial)
            os.link(partial, target)  # unlike a rename, never replaces a file
            _sync(target.parent)
        except (OSError, sqlite3.Error) as error:
            raise DatabaseError(
                f"{target}: expected to write a backup there, found: {error}; name another path"
            ) from error
        finally:
            source.close()
            partial.unlink(missing_ok=True)

    def _before_connect(self, *_: object) -> None:
        self._expect_same()

    def _on_begin(self, connection: Connection) -> None:
        # A transaction that reads and then writes must lock first: upgrading later fails at once if another has
        # written.
        write = connection.get_execution_options().get(WRITE, False)
        if write:
            self._expect_same()
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def _expect_same(self) -> None:
        """Raises DatabaseError if the file is no longer the one that was opened: what is written would be lost, and
        another file is damaged by the log that belongs to this one."""
        if self._opened is None:
            return
        try:
            if os.path.samestat(self._opened, self.path.stat()):
                return
            found = "another one in its place"
        except OSError:
            found = "none"
        raise DatabaseError(
            f"{self}: expected the file that was opened, found {found}: end every program that uses it, put the file "
            f"in place, remove what is beside it with -wal and -shm at its end, and start them again"
        )

    def check_access(self) -> None:
        """Raises DatabaseUnreachableError where this user can have no database."""
        path, parent = self.path, self.path.parent
        if not parent.is_dir():
            raise DatabaseUnreachableError(
                f"{path}: expected the directory {parent}, found none: create it (mkdir -p {parent}) "
                f"or name another path"
            )
        if path.is_dir():
            raise DatabaseUnreachableError(f"{path}: expected a database file, found a directory: name a file in it")
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise DatabaseUnreachableError(
                f"{path}: expected a file that this user may write, found one it may not: "
                f"give it the rights (chmod u+rw) or name another path"
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise DatabaseUnreachableError(
                f"{path}: expected a directory that this user may write (SQLite keeps its log beside the file), "
                f"found that {parent} is read-only: give it the rights or name another path"
            )

    def _explain(self, error: BaseException) -> DatabaseError | None:
        text = str(error)
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return None
        if "not a database" in text:
            return NotADatabaseError(
                f"{self}: expected an SQLite database, found another kind of file: name another path, or move this one"
            )
        if _busy(error):
            return DatabaseBusyError(
                f"{self}: expected to write within {self.busy_timeout_s:g} s, found it locked by another process all "
                f"that time: end that process, or try again"
            )
        if "malformed" in text:
            return DatabaseError(f"{self}: expected a sound database, found damage ({text}): restore a backup")
        if "readonly" in text or "unable to open" in text:
            return DatabaseUnreachableError(
                f"{self}: expected a file that this user may write in a directory that this user may write, "
                f"found: {text}; give it the rights or name another path"
            )
        if "full" in text:
            return DatabaseError(f"{self}: expected room on the disk, found none ({text}): free some and try again")
        return DatabaseError(f"{self}: expected SQLite to work, found: {text}; see `autotune doctor`")


def _busy(error: BaseException) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _on_connect(connection: sqlite3.Connection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit that returned survives a power cut, not only a kill
    cursor.execute("PRAGMA fullfsync=ON")  # macOS: through the drive's own cache; elsewhere without effect
    cursor.close()


def _on_error(context: ExceptionContext) -> None:
    """A connection that was opened while the file could only be read stays so: it is not used again."""
    if "readonly" in str(context.original_exception):
        context.is_disconnect = True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
