"""Brings a database to this release's schema, whoever opens it first."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from db.address import Dialect
from db.errors import DatabaseError, DatabaseFromTheFutureError, NotADatabaseError
from db.models import Base
from db.sqlite import WRITE

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = Path(__file__).parent / "migrations"
FIRST, HEAD = "0001", "0009"
"""The oldest and the newest revision in `migrations/versions`. Revisions are numbers of four digits that count up."""

_ALEMBIC = threading.Lock()
"""Alembic keeps what it works on in a module: threads of one process take turns, whatever their databases."""


def prepare(engine: Engine, dialect: Dialect) -> None:
    """Create or upgrade the schema. Two processes may do this at once: one migrates, the other waits.

    Raises DatabaseFromTheFutureError or NotADatabaseError before anything is written.
    """
    with engine.connect() as connection:
        found = _ours(connection, dialect)
    dialect.prepare(engine)
    if found != HEAD:
        with engine.execution_options(**{WRITE: True}).begin() as connection:
            dialect.lock_migrations(connection)
            found = _ours(connection, dialect)
            if found != HEAD:  # else another process was first
                _expect_owner(connection, dialect, HEAD, found)
                upgrade(connection)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Migrate forward within the connection's transaction: all of it happens, or nothing."""
    from alembic import command  # a quarter of a second that an up-to-date database does not cost

    with _ALEMBIC:
        command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Migrate back within the connection's transaction. What the older schema cannot hold is lost."""
    from alembic import command

    with _ALEMBIC:
        command.downgrade(_config(connection), revision)


def go_back(connection: Connection, dialect: Dialect, wanted: str) -> None:
    """`downgrade`, for whoever may change tables. Raises DatabaseError before anything is written."""
    if not (wanted.isdecimal() and len(wanted) == len(HEAD) and FIRST <= wanted <= HEAD):
        raise DatabaseError(
            f"{dialect}: expected a schema to go back to, from {FIRST} to {HEAD}, found {wanted[:20]!r}: "
            "name one of those"
        )
    dialect.lock_migrations(connection)
    _expect_owner(connection, dialect, wanted, HEAD)
    if wanted != HEAD:
        downgrade(connection, wanted)


def revision(connection: Connection) -> str | None:
    """The revision of the schema that is there; None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT max(version_num) FROM alembic_version")).scalar()


def _ours(connection: Connection, dialect: Dialect) -> str | None:
    found = revision(connection)
    if found is None:
        # On a server, other programs may have tables of their own beside ours; a file belongs to one program.
        there = set(inspect(connection).get_table_names())
        in_the_way = there if connection.dialect.name == "sqlite" else there & set(Base.metadata.tables)
        if in_the_way - {"alembic_version"}:
            raise NotADatabaseError(
                f"{dialect}: expected a database of autotune or an empty one, found another program's "
                f"(tables {', '.join(sorted(in_the_way)[:4])}): name another one"
            )
    elif not (found.isdigit() and len(found) == len(HEAD)):
        raise NotADatabaseError(
            f"{dialect}: expected a database of autotune, found another program's (its schema is {found!r}): "
            f"name another one"
        )
    elif found > HEAD:
        raise DatabaseFromTheFutureError(
            f"{dialect}: expected schema {HEAD} or older, found {found}, written by a newer release: "
            f"upgrade tinygrad-autotune, or name another database; nothing was changed"
        )
    return found


def _expect_owner(connection: Connection, dialect: Dialect, wanted: str, found: str | None) -> None:
    """Raises DatabaseError for a role that may not change tables: its owner migrates."""
    if connection.dialect.name == "postgresql":
        may = text("SELECT has_schema_privilege(current_user, 'public', 'CREATE')")
        if not connection.execute(may).scalar_one():
            raise DatabaseError(
                f"{dialect}: expected schema {wanted}, found {found or 'none'}, and a role that may not change tables: "
                f"run `autotune migrate` as the owner of the database"
            )


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
