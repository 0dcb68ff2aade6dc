"""A database of every schema that there ever was, as the code that had it wrote it, is upgraded with all that is in it.

When a schema is added: `python tests/released.py NNNN` writes its dumps; a test says if they are missing.
"""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from databases import KINDS, new_database
from sqlalchemy import text
from values import CPU, a_key, a_measurement, a_winner

from autotune.fleet import Refusal
from autotune.job import JobState
from autotune.runner import Request
from db import Scope, SqlStore, open_store
from db.migrate import HEAD, downgrade, upgrade

DATA = Path(__file__).parent / "data"
NAME = re.compile(r"schema_(\d+)_sqlite.sql")
LEASES, TOKENS, FLEET, REFUSALS = 3, 4, 5, 7
"""The schemas that brought them."""
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
            assert store.recover() == (1 if number >= LEASES else 0)  # of whoever was killed with it
            assert [(job.state, len(job.keys)) for job in store.jobs()][::-1] == [
                (JobState.DONE, 1), (JobState.QUEUED, 2), (JobState.QUEUED, 1),
            ]  # fmt: skip
            claim = store.claim("new")
            assert claim is not None
            assert (claim.key, claim.job.total_keys) == (a_key(), 2)  # none of the job that is done
            assert store.record(a_measurement("three"))
            store.decide(a_winner(tile=6, decided_at=3.0))
            assert store.lookup([a_key().digest])[a_key().digest].decided_at == 3.0
            check_tokens(store, number)
            check_fleet(store, number)
            store.expect_writable()
            assert store.prune(2000.0) == {
                "measurements": 1, "winners": 2, "jobs": 1, "tasks": int(number >= FLEET), "workers": 0,
            }  # fmt: skip
            assert store.check() == []


def check_tokens(store: SqlStore, number: int) -> None:
    if number < TOKENS:
        assert store.tokens() == []
        return
    [token] = store.tokens()
    assert (token.name, token.scope, token.holds(2000.0)) == ("me", Scope.TUNE, True)
    before = store.changes()
    assert not store.revoke_token(token.id).holds(time.time())
    assert store.changes() > before


def check_fleet(store: SqlStore, number: int) -> None:
    """The last schema before them has neither workers nor tasks; the queue is none of the schema's."""
    if number < FLEET:
        assert (store.workers(), store.counts()["tasks"]) == ([], 0)
        return
    [worker] = store.workers()
    assert (worker.name, worker.device, bool(worker.unfit)) == ("w", CPU, number >= REFUSALS)
    assert store.measurements(a_key(32)) == [a_measurement("delivered", a_key(32), 1000.0)]
    with store._reading() as connection:
        rows = connection.execute(text("SELECT name, state, lost FROM tasks ORDER BY id")).all()
        counted = connection.execute(text("SELECT count(*) FROM attempts WHERE counted")).scalar_one()
    assert [(row.state, row.lost, counted) for row in rows] == [("done", "[]", 1), ("queued", "[]", 1)]
    found = store.begin(rows[1].name, 1, "new")
    if number < REFUSALS:  # what an older release asks for is refused in words, see adr/0006
        assert isinstance(found, Refusal)
        assert found.unreadable
        return
    assert isinstance(found, Request)
    assert (found.key, found.rounds) == (a_key(32), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_was_done_before_leases_is_not_done_again(kind: str, tmp_path: Path) -> None:
    """Migration 0003 once queued its keys anew."""
    with new_database(kind, tmp_path) as address:
        load(kind, address, 7)
        script = "UPDATE job_keys SET state = 'queued' WHERE job_id = 1"
        if kind == "sqlite":
            with closing(sqlite3.connect(address)) as connection:
                connection.executescript(script)
        else:
            import psycopg

            with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as server:
                server.execute(script)
        with open_store(address) as store:
            store.recover()
            assert store.jobs()[-1].states == (JobState.DONE,)
            assert sum(waiting.keys for waiting in store.waiting()) == 3
            claim = store.claim("new")
            assert claim is not None
            assert claim.job.total_keys == 2


def test_every_schema_has_its_database() -> None:
    assert [f"{number:04}" for number in range(1, int(HEAD) + 1)] == [f"{number:04}" for number in SCHEMAS]
    for number in SCHEMAS:
        assert all((DATA / f"schema_{number:04}_{kind}.sql").is_file() for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [SCHEMAS[0], SCHEMAS[-1]])
def test_back_to_the_first_schema_and_forward_again(kind: str, number: int, tmp_path: Path) -> None:
    with new_database(kind, tmp_path) as address:
        load(kind, address, number)
        with open_store(address) as store:
            with store._writing() as connection:
                downgrade(connection, f"{SCHEMAS[0]:04}")
            with store._writing() as connection:
                upgrade(connection)
            assert store.measurements(a_key()) == [a_measurement("one")]
            assert len(store.winners()) == 2
            assert [len(job.keys) for job in store.jobs()] == [1, 2, 1]
            assert store.check() == []
