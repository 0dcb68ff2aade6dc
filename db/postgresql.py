"""Everything that is PostgreSQL's alone: its driver, its locks, what its errors mean."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from db.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseFullError,
    DatabaseUnreachableError,
    StatementRefusedError,
)

MIGRATION_LOCK = 0x6175746F74756E65  # "autotune" in ASCII: advisory locks are numbers that all programs share
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TLS_MODES = ("require", "verify-ca", "verify-full")
STATEMENT_S, IDLE_S = 60.0, 30.0
"""How long the server lets one statement take, and a transaction wait for us: nobody who stands still or was cut off
keeps others from a row. Migrations may take as long as they must."""
BUSY_CODES = ("55P03", "57014", "40P01")  # lock_not_available, query_canceled, deadlock_detected
FULL_CODE, CROWDED_CODE = "53100", "53300"  # disk_full, too_many_connections
LIMITS = "54"  # program_limit_exceeded: a class of errors
CROWDED = ("too many clients", "too many connections", "connection slots are reserved")
"""What a server says that refuses a connection for it; psycopg knows no code then."""


class Postgresql:
    """A database on a server, which several machines may share."""

    def __init__(self, url: URL, busy_timeout_s: float) -> None:
        self.url = _encrypted(url.set(drivername="postgresql+psycopg"))
        self.busy_timeout_s = busy_timeout_s

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def connect(self) -> Engine:
        """An engine on the server; nothing is dialled yet."""
        try:
            return create_engine(
                self.url,
                pool_pre_ping=True,  # a server that was restarted meanwhile costs a reconnect, not a failed request
                pool_timeout=self.busy_timeout_s,
                isolation_level="READ COMMITTED",  # what `FOR UPDATE` and `ON CONFLICT` here rely on
                connect_args={
                    "connect_timeout": max(1, round(self.busy_timeout_s)),
                    # a silent cut is noticed: without these a read from a vanished server never ends
                    "keepalives_idle": 5,
                    "keepalives_interval": 3,
                    "keepalives_count": 3,
                    "tcp_user_timeout": 15_000,
                    "options": self.session_options(),
                },
            )
        except ModuleNotFoundError as error:
            raise DatabaseUnreachableError(
                f"{self}: expected the driver psycopg, found none: pip install 'psycopg[binary]'"
            ) from error

    def session_options(self) -> str:
        """What the server holds our sessions to; what the address says comes last and prevails."""
        limits = {"lock_timeout": self.busy_timeout_s, "statement_timeout": STATEMENT_S}
        limits["idle_in_transaction_session_timeout"] = IDLE_S
        said = _texts(self.url.query.get("options", ()), separator=None)
        return " ".join([*(f"-c {name}={round(limit * 1000)}" for name, limit in limits.items()), *said])

    def prepare(self, engine: Engine) -> None:
        """Nothing to do: the server is configured by who runs it."""

    def lock_migrations(self, connection: Connection) -> None:
        """Let one process at a time migrate; released when the transaction ends, however it ends. Who waits for the
        lock waits as long as the migration takes."""
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(text(f"SET LOCAL {name} = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})

    def explain(self, error: DBAPIError) -> DatabaseError | None:
        """What a driver's error means to a user; None for one that is a bug of ours."""
        found = " ".join(str(error.orig).split())
        if isinstance(error, IntegrityError):
            return None
        code = getattr(error.orig, "sqlstate", None)
        if code == FULL_CODE:
            return DatabaseFullError(
                f"{self}: expected room on its server's disk, found none ({found}): free some there"
            )
        if code == CROWDED_CODE or any(said in found for said in CROWDED):
            return DatabaseBusyError(
                f"{self}: expected a free connection on its server, found all taken ({found}): raise max_connections"
            )
        if code in BUSY_CODES:
            return DatabaseBusyError(f"{self}: expected to get a lock, found it held by others ({found}): try again")
        refused = isinstance(error, DataError | NotSupportedError | ProgrammingError)
        if refused or (code or "").startswith(LIMITS):
            return StatementRefusedError(f"{self}: expected PostgreSQL to accept a statement, found: {found}")
        if isinstance(error, OperationalError):
            return DatabaseUnreachableError(
                f"{self}: expected a PostgreSQL server that lets us in, found: {found}; check that it runs, "
                f"and the address, user and password"
            )
        return DatabaseError(f"{self}: expected PostgreSQL to work, found: {found}")

    def now(self, connection: Connection) -> float:
        """Seconds since the epoch, of the server."""
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def expect_room(self) -> None:
        """The server's disk is its operator's to watch; once it is full, a write says so."""

    def check(self, connection: Connection) -> list[str]:
        """Nothing beyond being reachable: constraints are the server's to keep, its own damage its operator's."""
        connection.execute(text("SELECT 1"))
        return []

    def backup(self, engine: Engine, target: Path) -> None:  # noqa: ARG002 - the same for every dialect
        """By pg_dump, in its custom format (pg_restore reads it): a snapshot while others write, whole or not there."""
        program = _pg_dump()
        if target.exists():
            raise DatabaseError(f"{target}: expected a path at which there is nothing yet, found a file: name another")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        url = self.url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
        environ = os.environ | ({"PGPASSWORD": str(self.url.password)} if self.url.password else {})  # not an argument
        try:
            command = [program, "--format=custom", "--no-owner", f"--file={partial}", url]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                found = " ".join(done.stderr.split())[:300]
                raise DatabaseError(f"{target}: expected pg_dump to copy {self}, found: {found}; see its manual")
            os.link(partial, target)  # unlike a rename, never replaces a file
        except OSError as error:
            raise DatabaseError(f"{target}: expected to write a backup there, found: {error}; name another") from error
        finally:
            partial.unlink(missing_ok=True)


def _encrypted(url: URL) -> URL:
    """With TLS, unless the server is on this machine. Raises DatabaseUnreachableError for an address that forbids it.

    libpq's own default encrypts if the server offers it, and goes on in the clear if somebody in between says it does
    not.
    """
    hosts = [url.host or "", *_texts(url.query.get("host", ())), *_texts(url.query.get("hostaddr", ()))]
    if not any(hosts):  # libpq takes it from elsewhere
        hosts = [os.environ.get("PGHOST", ""), os.environ.get("PGHOSTADDR", "")]
    named = url.query.get("service") or os.environ.get("PGSERVICE")  # a file says where that is: it may be anywhere
    if not named and all(not host or host.startswith(("/", "@")) or host in LOOPBACK for host in hosts):
        return url
    mode = url.query.get("sslmode") or os.environ.get("PGSSLMODE")
    if mode is None:
        return url.update_query_dict({"sslmode": "require"})
    if mode not in TLS_MODES:
        raise DatabaseUnreachableError(
            f"{url.render_as_string(hide_password=True)}: expected an encrypted way to a server on another machine, "
            f"found sslmode={mode}: use {', '.join(TLS_MODES)}, or an SSH tunnel to 127.0.0.1"
        )
    return url


def _texts(value: str | tuple[str, ...], separator: str | None = ",") -> list[str]:
    texts = [value] if isinstance(value, str) else value
    return [part for text in texts for part in (text.split(separator) if separator else [text])]


def _pg_dump() -> str:
    """The newest one here: an older one refuses a newer server. Raises DatabaseError if there is none."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"), key=lambda path: int(path.parts[4]))
    program = shutil.which("pg_dump") if not installed else str(installed[-1])
    if program is None:
        raise DatabaseError("expected the program pg_dump, found none: install PostgreSQL's client programs")
    return program
