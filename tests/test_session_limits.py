"""What PostgreSQL itself holds our sessions to: nobody who stands still keeps others from a row."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import new_database
from sqlalchemy import text
from sqlalchemy.engine import make_url
from values import a_key

from autotune.job import Budget
from db import DatabaseBusyError, DatabaseError, SqlStore, open_store

LIMITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("db.postgresql.IDLE_S", 1.0)
    monkeypatch.setattr("db.postgresql.STATEMENT_S", 3.0)
    with new_database("postgresql", tmp_path) as address:
        yield address


@pytest.fixture
def store(address: str) -> Iterator[SqlStore]:
    with open_store(address, busy_timeout_s=5.0) as store:
        yield store


def test_whoever_stands_still_in_a_transaction_is_ended(store: SqlStore) -> None:
    """A process that was stopped holds the row of a job; the others go on."""
    job = store.submit([a_key()], Budget(trials=1))
    begun = time.monotonic()
    with (  # noqa: PT012 - who stands still, and others meanwhile
        pytest.raises(DatabaseError, match="idle-in-transaction"),
        store._writing() as stands_still,
    ):
        stands_still.execute(text("SELECT * FROM jobs FOR UPDATE"))
        assert store.cancel(job.id).state.ended  # waits for the row, and gets it
        stands_still.execute(text("SELECT 1"))
    assert time.monotonic() - begun < 5.0
    assert store.job(job.id).state.ended  # this store goes on, too


def test_a_statement_that_takes_too_long_is_ended(store: SqlStore) -> None:
    with pytest.raises(DatabaseBusyError, match="statement timeout"), store._reading() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))


def test_a_migration_may_take_its_time(address: str, store: SqlStore) -> None:
    with store._writing() as connection:
        store._dialect.lock_migrations(connection)
        connection.execute(text("SELECT pg_sleep(3.5)"))
        time.sleep(1.5)
        connection.execute(text("SELECT 1"))
    with store._reading() as connection:
        assert [connection.execute(text(f"SHOW {name}")).scalar() for name in LIMITS] == ["5s", "3s", "1s"]


def test_the_queues_sessions_are_held_to_the_same_and_an_address_may_say_otherwise(address: str) -> None:
    import psycopg

    said = make_url(address).update_query_dict({"options": "-c statement_timeout=9000"})
    with open_store(said.render_as_string(hide_password=False)) as store:
        with psycopg.connect(store.queue_conninfo, options=store.queue_options) as session:
            found = [session.execute(f"SHOW {name}").fetchone() for name in LIMITS]
        assert found == [("10s",), ("9s",), ("1s",)]
