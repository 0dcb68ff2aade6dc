"""The schema: created by migrations, the same as the models, refused when it is not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text

from api.cli import main
from autotune.job import Budget, JobState, target_of
from db import DatabaseFromTheFutureError, NotADatabaseError, Scope, open_store
from db.address import dialect_for
from db.migrate import HEAD, SCRIPTS, downgrade, revision, upgrade
from db.models import Base
from db.sqlite import WRITE
from tests.databases import KINDS, new_database
from tests.values import a_key, a_measurement, a_winner


@pytest.fixture(params=KINDS)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with new_database(request.param, tmp_path) as address:
        yield address


@pytest.fixture
def engine(address: str) -> Iterator[Engine]:
    engine = dialect_for(address, 10.0).connect().execution_options(**{WRITE: True})
    yield engine
    engine.dispose()


def test_the_models_are_what_migrations_make(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_partial_indexes_are_what_the_models_say(engine: Engine) -> None:
    # `compare_metadata` does not look at their conditions.
    with engine.begin() as connection:
        upgrade(connection)
        migrated = _conditions(connection)
        downgrade(connection, "base")
        Base.metadata.create_all(connection)
        assert migrated == _conditions(connection)
        assert len(migrated) == 6


def test_forward_and_back_and_forward(engine: Engine, address: str) -> None:
    open_store(address).close()
    with engine.begin() as connection:
        downgrade(connection, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
        assert inspect(connection).get_view_names() == []
    with open_store(address) as store:
        assert store.record(a_measurement("one"))
        assert store.revision() == HEAD


def test_a_migration_happens_whole_or_not_at_all(engine: Engine) -> None:
    with engine.connect() as connection, connection.begin() as transaction:
        upgrade(connection)
        assert revision(connection) == HEAD
        transaction.rollback()
    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == []
        assert revision(connection) is None


def test_head_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    found = [script.revision for script in scripts.walk_revisions()][::-1]
    assert found == [f"{number:04}" for number in range(1, len(found) + 1)]


def test_a_database_from_the_future_is_not_touched(engine: Engine, address: str) -> None:
    with open_store(address) as store:
        store.decide(a_winner())
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
        connection.execute(text("ALTER TABLE keys ADD COLUMN tomorrow TEXT"))
    engine.dispose()
    before = _content(engine, address)
    with pytest.raises(DatabaseFromTheFutureError, match=f"expected schema {HEAD} or older, found 0999") as caught:
        open_store(address)
    assert "\n" not in str(caught.value)
    assert _content(engine, address) == before


def test_a_database_of_another_program_is_not_touched(engine: Engine, address: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (song TEXT)"))
    engine.dispose()
    before = _content(engine, address)
    with pytest.raises(NotADatabaseError, match=r"found another program's \(tables jobs\)"):
        open_store(address)
    assert _content(engine, address) == before


def test_another_programs_alembic_is_not_touched(engine: Engine, address: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('1975ea83b712')"))
    engine.dispose()
    before = _content(engine, address)
    with pytest.raises(NotADatabaseError, match="its schema is '1975ea83b712'"):
        open_store(address)
    assert _content(engine, address) == before


def test_a_path_with_special_characters(tmp_path: Path) -> None:
    path = tmp_path / "100% mine?mode=memory#1 ü.db"
    with open_store(path) as store:
        store.decide(a_winner())
    with open_store(path) as store:
        assert store.winner(a_key()) == a_winner()
    assert path.exists()


def _conditions(connection) -> dict[str, str]:
    """The condition of every partial index by name, as the database itself spells it."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'"
    else:
        query = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexdef LIKE '% WHERE %'"
    return {name: sql.partition(" WHERE ")[2] for name, sql in connection.execute(text(query))}


def _content(engine: Engine, address: str) -> object:
    """All that opening could change."""
    if engine.dialect.name == "sqlite":
        path = Path(address)
        return path.read_bytes(), path.stat().st_mtime_ns
    other = create_engine(engine.url)
    try:
        with other.connect() as connection:
            tables = inspect(connection).get_table_names()
            return {table: connection.execute(text(f'SELECT * FROM "{table}"')).all() for table in sorted(tables)}
    finally:
        other.dispose()


def test_jobs_survive_the_way_back_and_forward(engine: Engine, address: str) -> None:
    with open_store(address) as store:
        store.submit([a_key(4), a_key(8)], Budget(trials=1))
        claim = store.claim("me")
        assert claim is not None
        store.finish(claim)
        assert store.claim("me") is not None
        cancelled = store.cancel(store.submit([a_key(16)], Budget(trials=1)).id)
    with engine.begin() as connection:
        downgrade(connection, "0001")
    with open_store(address) as store:
        job = store.job(claim.job.id)
        assert job is not None
        assert (job.state, job.states) == (JobState.QUEUED, (JobState.DONE, JobState.QUEUED))
        assert store.job(cancelled.id).states == (JobState.CANCELLED,)
        again = store.claim("me", target=target_of(a_key().device))
        assert again is not None
        assert again.key == a_key(8)


def test_on_the_way_back_no_key_of_a_job_is_lost(engine: Engine, address: str) -> None:
    with open_store(address) as store:
        job = store.submit([a_key(cout) for cout in (4, 8, 16, 32)], Budget(trials=1))
        claims = [claim for _ in range(4) if (claim := store.claim("me"))]
        for index in (0, 2, 3):  # an older release knows how many have ended, and takes them for the first ones
            store.finish(claims[index])
    with engine.begin() as connection:
        downgrade(connection, "0002")
        assert connection.execute(text("SELECT state, done_keys FROM jobs")).all() == [("queued", 1)]
    with open_store(address) as store:
        back = store.job(job.id)
        assert back is not None
        assert back.states == (JobState.DONE, *[JobState.QUEUED] * 3)


def test_the_command_goes_back_for_an_older_release(
    engine: Engine, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "--db", address]) == 0
    with open_store(address) as store:
        store.record(a_measurement(attempt="a"))
        store.decide(a_winner())
        store.create_token("me", Scope.READ)
        assert store.counts()["tokens"] == 1
    capsys.readouterr()
    assert main(["migrate", "--db", address, "--to", "0003", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "0003"
    with engine.connect() as connection:
        assert revision(connection) == "0003"
        assert "tokens" not in inspect(connection).get_table_names()
    assert main(["migrate", "--db", address]) == 0
    with open_store(address) as store:
        counts = store.counts()
        assert (counts["measurements"], counts["winners"], counts["tokens"]) == (1, 1, 0)
    for wanted in (f"{int(HEAD) + 1:04}", "0000", "7", "base", ""):
        assert main(["migrate", "--db", address, "--to", wanted]) == 1
        assert f"expected a schema to go back to, from 0001 to {HEAD}" in capsys.readouterr().err
    with open_store(address) as store:
        assert store.revision() == HEAD


def test_threads_of_one_process_migrate_databases_of_their_own(tmp_path: Path) -> None:
    def fresh(number: int) -> str:
        with open_store(tmp_path / f"{number}.db") as store:
            return store.revision()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(fresh, range(8))) == {HEAD}
