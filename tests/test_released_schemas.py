"""A database of every schema that was ever handed out, as its release wrote it, is upgraded with all that is in it.

To add one when a schema is released: run what `tests/data/schema_NNNN_*.sql` was made with under that release, and keep
the dumps (`sqlite3.Connection.iterdump`, `pg_dump --inserts --no-owner`).
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from databases import KINDS, new_database
from values import a_key, a_measurement, a_winner

from autotune.job import JobState
from db import open_store
from db.migrate import HEAD, downgrade, upgrade

DATA = Path(__file__).parent / "data"
NAME = re.compile(r"schema_(\d+)_sqlite.sql")
SCHEMAS = sorted(int(found[1]) for path in DATA.iterdir() if (found := NAME.fullmatch(path.name)))


def load(kind: str, address: str, number: int) -> None:
    script = (DATA / f"schema_{number:04}_{kind}.sql").read_text()
    if kind == "sqlite":
        connection = sqlite3.connect(address)
        connection.executescript(script)
        connection.close()
        return
    import psycopg

    with psycopg.connect(address.replace("postgresql+psycopg", "postgresql"), autocommit=True) as server:
        server.execute(script.encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", SCHEMAS)
def test_an_old_database_is_upgraded_with_all_that_is_in_it(kind: str, number: int, tmp_path: Path) -> None:
    with new_database(kind, tmp_path) as address:
        load(kind, address, number)
        with open_store(address) as store:
            assert store.revision() == HEAD
            assert store.check() == []
            assert store.measurements(a_key()) == [a_measurement("one")]
            assert store.measurements(a_key(8)) == [a_measurement("two", a_key(8), 2.0)]
            found = {winner.key.digest: winner for _, winner in store.winners()}
            pinned = a_winner(a_key(8), state="pinned")
            assert found == {a_key().digest: a_winner(tile=4, decided_at=2.0), a_key(8).digest: pinned}
            assert store.lookup(list(found)) == found
            assert [winner for _, winner in store.history(a_key())][1] == a_winner(tile=2)
            assert [(job.state, len(job.keys)) for job in store.jobs()][::-1] == [
                (JobState.DONE, 1), (JobState.QUEUED, 2), (JobState.QUEUED, 1),
            ]  # fmt: skip
            claim = store.claim("new")
            assert claim is not None
            assert claim.key == a_key()
            assert store.record(a_measurement("three"))
            store.decide(a_winner(tile=6, decided_at=3.0))
            assert store.lookup([a_key().digest])[a_key().digest].decided_at == 3.0


@pytest.mark.parametrize("kind", KINDS)
def test_back_to_the_first_schema_and_forward_again(kind: str, tmp_path: Path) -> None:
    with new_database(kind, tmp_path) as address:
        load(kind, address, SCHEMAS[0])
        with open_store(address) as store:
            with store._writing() as connection:
                downgrade(connection, f"{SCHEMAS[0]:04}")
            with store._writing() as connection:
                upgrade(connection)
            assert store.measurements(a_key()) == [a_measurement("one")]
            assert len(store.winners()) == 2
            assert store.check() == []
