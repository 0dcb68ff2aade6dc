"""procrastinate, the queue of a fleet: it wakes workers up and carries a task's name and attempt, nothing else.

Its tables live beside ours and come with its own SQL; its version is pinned for that.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from db.errors import DatabaseUnreachableError

if TYPE_CHECKING:
    from procrastinate import App

MEASURE = "autotune.measure"
SCHEMA = text("SELECT to_regclass('procrastinate_jobs')")


def prepare(connection: Connection) -> None:
    """Create procrastinate's tables if they are missing. The caller holds the migrations' lock."""
    if connection.execute(SCHEMA).scalar() is None:
        from procrastinate.schema import SchemaManager

        connection.exec_driver_sql(SchemaManager.get_schema().replace("%", "%%"))


def expect(connection: Connection) -> None:
    """Raises DatabaseUnreachableError if no service has prepared the queue yet: a worker may not have the right to."""
    if connection.execute(SCHEMA).scalar() is None:
        raise DatabaseUnreachableError(
            "expected a database that a service has set up for workers, found no queue in it: "
            "start `autotune serve` on it first"
        )


def defer(connection: Connection, queue: str, task: str, attempt: int) -> None:
    """Queue an attempt at a task within the connection's transaction. Queued already: no change."""
    from procrastinate.exceptions import AlreadyEnqueued

    savepoint = connection.begin_nested()
    try:
        _app().configure_task(
            MEASURE,
            queue=queue,
            queueing_lock=_lock(task, attempt),
            connection=connection.connection.driver_connection,
        ).defer(task=task, attempt=attempt)
        savepoint.commit()
    except AlreadyEnqueued:
        savepoint.rollback()


def forget(connection: Connection, task: str, attempt: int) -> None:
    """Take an attempt out of the queue, if nobody has fetched it: it may be one to which nobody will ever listen."""
    gone = text("DELETE FROM procrastinate_jobs WHERE status = 'todo' AND queueing_lock = :lock")
    connection.execute(gone, {"lock": _lock(task, attempt)})


def _lock(task: str, attempt: int) -> str:
    return f"{task}:{attempt}"


def conninfo(url: Any) -> str:
    """libpq's address of an SQLAlchemy URL."""
    return str(url.set(drivername="postgresql").render_as_string(hide_password=False))


@cache
def _app() -> App:
    """Only writes statements: the connection is the caller's."""
    from procrastinate import App, SyncPsycopgConnector

    return App(connector=SyncPsycopgConnector())
