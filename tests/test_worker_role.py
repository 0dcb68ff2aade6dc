"""db/worker_role.sql on a real server: workers can do their work with it, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import ROOT, new_database
from sqlalchemy import text
from sqlalchemy.engine import make_url
from values import CPU, a_key, a_measurement, a_winner

from autotune.fleet import Worker
from autotune.job import Budget
from autotune.runner import Request
from db import DatabaseError, Scope, SqlStore, open_store
from db.queue import MEASURE
from strategies.candidate import Candidate

PASSWORD = "it's"
QUEUE = "queue-of-tests"
REQUEST = Request(key=a_key(), candidates=(Candidate.of("direct"),), rounds=3, seed=1)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[SqlStore]:
    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        store.prepare_queue()
        psql = max(Path("/usr/lib/postgresql").glob("*/bin/psql"))
        target = address.replace("postgresql+psycopg", "postgresql")
        for _ in range(2):  # again after an upgrade
            command = [
                psql,
                "-v",
                "ON_ERROR_STOP=1",
                "-v",
                "password=it's",
                "-qf",
                ROOT / "db" / "worker_role.sql",
                target,
            ]
            subprocess.run(command, check=True)
        yield store


@pytest.fixture
def worker(owner: SqlStore) -> Iterator[SqlStore]:
    url = make_url(owner.queue_conninfo).set(
        drivername="postgresql+psycopg", username="autotune_worker", password="it's"
    )
    with open_store(url.render_as_string(hide_password=False)) as store:
        yield store


def test_a_worker_can_work(owner: SqlStore, worker: SqlStore) -> None:
    worker.expect_queue()
    worker.register(Worker(name="w:1", device=CPU))
    task = owner.post(QUEUE, REQUEST)
    assert _fetched(worker) == [(task, 1)]
    assert worker.begin(task, 1, "w:1") == REQUEST
    assert worker.heard("w:1", in_use=False, task=(task, 1))
    assert worker.deliver(task, 1, "w:1", [a_measurement("one")])
    worker.retire("w:1")
    assert [m.attempt for m in owner.measurements(a_key())] == ["one"]
    assert [found.name for found in worker.workers()] == ["w:1"]


REFUSED = r"permission denied|must be owner|have privileges"
FORBIDDEN = [
    "SELECT * FROM tokens", "SELECT * FROM winners", "SELECT * FROM jobs", "SELECT * FROM job_keys",
    "UPDATE winners SET state = 'revoked'", "INSERT INTO winners DEFAULT VALUES", "UPDATE changes SET count = 0",
    "UPDATE measurements SET body = ''", "DELETE FROM measurements", "DELETE FROM attempts", "DELETE FROM tasks",
    "UPDATE keys SET shape = ''", "UPDATE tasks SET request = '{}'", "UPDATE attempts SET counted = true",
    "INSERT INTO keys DEFAULT VALUES", "INSERT INTO devices DEFAULT VALUES", "UPDATE workers SET name = 'mine'",
    "SELECT body FROM measurements", "UPDATE alembic_version SET version_num = '9999'", "CREATE TABLE mine (id int)",
    "CREATE TEMP TABLE measurements (id int)", "DROP TABLE workers", "CREATE ROLE another",
    "COPY workers TO PROGRAM 'id'", "SELECT pg_read_file('/etc/passwd')",
]  # fmt: skip


def test_a_worker_can_do_nothing_else(owner: SqlStore, worker: SqlStore) -> None:
    owner.create_token("secret", Scope.ADMIN)
    owner.decide(a_winner())
    for statement in FORBIDDEN:
        with pytest.raises(DatabaseError, match=REFUSED), worker._writing() as connection:
            connection.execute(text(statement))
    for call in (
        lambda: worker.decide(a_winner(a_key(8))), lambda: worker.create_token("mine", Scope.ADMIN), worker.tokens,
        lambda: worker.submit([a_key()], Budget(trials=1)), lambda: worker.prune(9e9), worker.winners,
        lambda: worker.record(a_measurement("of nobody's asking")),
    ):  # fmt: skip
        with pytest.raises(DatabaseError, match=REFUSED):
            call()


def test_a_measurement_needs_an_attempt_of_its_own(owner: SqlStore, worker: SqlStore) -> None:
    """Row by row: of a task that it has, for the key that it was asked about, in the transaction that delivers it."""
    worker.register(Worker(name="w:1", device=CPU))
    other = a_key(8)
    owner.submit([other], Budget(trials=1))  # which makes its key known
    task = owner.post(QUEUE, REQUEST)
    with pytest.raises(DatabaseError, match="measurement of no attempt"):
        worker.record(a_measurement("one"))
    with pytest.raises(DatabaseError, match="not the current one"), worker._writing() as connection:
        connection.execute(text(FORGED))
    assert worker.begin(task, 1, "w:1") == REQUEST
    with pytest.raises(DatabaseError, match="measurement of no attempt"):
        worker.deliver(task, 1, "w:1", [a_measurement("two", other)])
    assert owner.measurements(other) == []
    assert worker.deliver(task, 1, "w:1", [a_measurement("three")])
    with pytest.raises(DatabaseError, match="measurement of no attempt"):  # it is over
        worker.record(a_measurement("four"))
    assert not worker.deliver(task, 2, "w:1", [a_measurement("five")])
    assert [m.attempt for m in owner.measurements(a_key())] == ["three"]
    assert owner.counts()["attempts"] == 2  # evidence


def test_a_table_of_its_own_stands_in_for_none_of_ours(owner: SqlStore, worker: SqlStore) -> None:
    """Where somebody lets it make temporary tables, which are searched first."""
    owner.submit([a_key(8)], Budget(trials=1))
    with owner._writing() as connection:
        database = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"GRANT TEMPORARY ON DATABASE {database} TO autotune_worker"))
    for table, row in (("measurements", PLANTED), ("attempts", FORGED.replace("attempts", "public.attempts"))):
        owner.post(QUEUE, REQUEST)
        planted = f"CREATE TEMP TABLE {table} (id int); SET LOCAL search_path = pg_temp, public; {row}"
        with pytest.raises(DatabaseError, match="permission denied"), worker._writing() as connection:
            connection.exec_driver_sql(planted)
    assert owner.measurements(a_key(8)) == []


PLANTED = """INSERT INTO public.measurements (attempt, key_id, device_id, status, candidate, measured_at, body)
SELECT digest, id, device_id, 'ok', 'direct', 0, '{}' FROM public.keys"""
FORGED = "INSERT INTO attempts SELECT id, attempt, 'w:1', true, '[]', '', 0 FROM tasks"


def test_another_programs_tables_are_nobodys(owner: SqlStore) -> None:
    """Of a service with a role of its own; tests/test_roles.py lets one work."""
    with owner._writing() as connection:
        connection.execute(text("CREATE TABLE of_another_program (id serial PRIMARY KEY)"))
        connection.execute(text("CREATE ROLE autotune_service"))
    try:
        owner.grant_rights()
        with owner._reading() as connection:
            may = text("SELECT has_table_privilege('autotune_service', :name, :right)")
            asked = [("of_another_program", "SELECT"), ("alembic_version", "UPDATE"), ("winners", "DELETE"),
                     ("winners", "TRUNCATE"), ("lookup_v1", "SELECT"), ("procrastinate_jobs", "INSERT")]  # fmt: skip
            found = [connection.execute(may, {"name": name, "right": right}).scalar() for name, right in asked]
            assert found == [False, False, True, False, True, True]
            numbers = text("SELECT has_sequence_privilege('autotune_service', :name, 'USAGE')")
            asked_numbers = ("of_another_program_id_seq", "jobs_id_seq", "procrastinate_jobs_id_seq")
            assert [connection.execute(numbers, {"name": n}).scalar() for n in asked_numbers] == [False, True, True]
    finally:
        with owner._writing() as connection:
            connection.execute(text("DROP OWNED BY autotune_service"))
            connection.execute(text("DROP ROLE autotune_service"))


def _fetched(store: SqlStore) -> list[tuple[str, int]]:
    """What procrastinate hands a worker that connects with this role."""
    from procrastinate import App, PsycopgConnector

    found: list[tuple[str, int]] = []
    app = App(connector=PsycopgConnector(conninfo=store.queue_conninfo))

    @app.task(name=MEASURE)
    def measure(task: str, attempt: int) -> None:
        found.append((task, attempt))

    async def work() -> None:
        async with app.open_async():
            await app.run_worker_async(queues=[QUEUE], wait=False, install_signal_handlers=False)

    asyncio.run(work())
    return found
