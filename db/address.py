"""Where a database is: a path, or a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from db.errors import DatabaseError, DatabaseUnreachableError
from db.postgresql import Postgresql
from db.sqlite import Sqlite

_EXPECTED = "expected a path, sqlite:///path or postgresql+psycopg://user@host/name"


class Dialect(Protocol):
    """What differs between databases. `str()` of one is its address without a password."""

    busy_timeout_s: float

    def connect(self) -> Engine: ...
    def prepare(self, engine: Engine) -> None: ...
    def lock_migrations(self, connection: Connection) -> None: ...
    def explain(self, error: DBAPIError) -> DatabaseError | None: ...
    def check(self, connection: Connection) -> list[str]: ...
    def now(self, connection: Connection) -> float: ...
    def expect_room(self) -> None: ...
    def session_options(self) -> str: ...
    def backup(self, engine: Engine, target: Path) -> None: ...


def dialect_for(address: str | os.PathLike[str], busy_timeout_s: float) -> Dialect:
    """Raises DatabaseUnreachableError for an address of a kind that there is no code for."""
    text = os.fspath(address)
    if "://" not in text:
        if text in ("", ":memory:"):
            raise DatabaseUnreachableError(f"{_EXPECTED}, found {text!r}: what is kept must have a place")
        return Sqlite(Path(text), busy_timeout_s)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Not repeated: what cannot be parsed may hold a password anywhere.
        raise DatabaseUnreachableError(f"{_EXPECTED}, found a URL that cannot be read: correct it") from None
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return Sqlite(Path(url.database), busy_timeout_s)
    if backend in ("postgresql", "postgres"):
        return Postgresql(_password_in_its_place(url), busy_timeout_s)
    raise DatabaseUnreachableError(f"{_EXPECTED}, found {url.render_as_string(hide_password=True)}: name one of those")


def _password_in_its_place(url: URL) -> URL:
    """`?password=` is libpq's other way to say it, and no rendering would hide it."""
    password = url.query.get("password")
    if not isinstance(password, str):
        return url
    return url.difference_update_query(["password"]).set(password=url.password or password)


def insert_new(connection: Connection, row: type, **values: object) -> bool:
    """Insert a row unless a unique constraint of its table holds one already. False if it does."""
    statement = _insert_new(connection, row).values(**values)
    # Of an INSERT, SQLAlchemy forgets the row count unless asked to keep it.
    return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount == 1


def insert_all_new(connection: Connection, row: type, rows: Sequence[Mapping[str, object]]) -> None:
    """As `insert_new`, of many rows at once."""
    if rows:
        connection.execute(_insert_new(connection, row), rows)


def _insert_new(connection: Connection, row: type) -> postgresql.Insert | sqlite.Insert:
    table = row.__table__  # type: ignore[attr-defined]
    assert isinstance(table, Table)
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
