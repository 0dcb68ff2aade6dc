"""Every store through one contract, and what is a file's alone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.engine import make_url

pytest.register_assert_rewrite("tests.store_contract")

from autotune.job import Budget  # noqa: E402
from autotune.store import Store  # noqa: E402
from db import (  # noqa: E402
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnreachableError,
    NotADatabaseError,
    SqlStore,
    StatementRefusedError,
    open_store,
)
from db.address import dialect_for  # noqa: E402
from db.changes import Counter  # noqa: E402
from db.models import MeasurementRow  # noqa: E402
from db.postgresql import Postgresql  # noqa: E402
from tests.databases import child, new_database  # noqa: E402
from tests.store_contract import StoreContract  # noqa: E402
from tests.values import a_key, a_measurement, a_winner  # noqa: E402

FILLER = """
import resource, sys
from db import DatabaseError, open_store
from tests.values import a_measurement
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    for number in range(100_000):
        store.record(a_measurement(str(number)))
        print(number, flush=True)
except DatabaseError as error:
    print("end", error)
"""

UNPRIVILEGED = """
import os, sys
from db import DatabaseError, open_store
if os.geteuid() == 0:  # root may write anywhere
    os.setresuid(65534, 65534, 65534)
try:
    open_store(sys.argv[1])
except DatabaseError as error:
    print(type(error).__name__, error)
"""


BECOMES_READ_ONLY = """
import os, sys
from db import DatabaseError, open_store
open_store(sys.argv[2]).close()  # imports what migrations need: nobody else may read it where root installed Python
if os.geteuid() == 0:  # root may write anywhere
    os.setresuid(65534, 65534, 65534)
store = open_store(sys.argv[1], busy_timeout_s=1.0)
store.expect_writable()
print("writable", flush=True)
sys.stdin.readline()
store.close()
try:
    store.expect_writable()
except DatabaseError as error:
    print(type(error).__name__, error)
"""


class TestSqlite(StoreContract):
    @pytest.fixture
    def address(self, tmp_path: Path) -> Iterator[str]:
        with new_database("sqlite", tmp_path) as address:
            yield address


class TestPostgresql(StoreContract):
    @pytest.fixture
    def address(self, tmp_path: Path) -> Iterator[str]:
        with new_database("postgresql", tmp_path) as address:
            yield address

    def test_what_it_does_not_take_is_told_apart_from_what_passes(self, address: str) -> None:
        refused = pytest.raises(StatementRefusedError, match="expected PostgreSQL to accept a statement, found")
        with open_store(address) as store, refused, store._writing() as connection:
            connection.exec_driver_sql("SELECT chr(0)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "autotune.db"


def test_a_store_is_what_autotune_asks_for(path: Path) -> None:
    with open_store(path) as store:
        asked: Store = store
        assert asked.winner(a_key()) is None
        assert str(store) == str(path)


@pytest.mark.parametrize("address", ["sqlite:///{}", "{}"])
def test_a_file_by_path_or_url(path: Path, address: str) -> None:
    with open_store(address.format(path)) as store:
        store.record(a_measurement("one"))
    with open_store(path) as store:
        assert store.counts()["measurements"] == 1


def test_commits_are_durable(path: Path) -> None:
    with open_store(path) as store, store._engine.connect() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas}
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", "expected a path, sqlite:///path or postgresql"),
        (":memory:", "what is kept must have a place"),
        ("sqlite://", "name one of those"),
        ("mysql://me:secret@here/autotune", "found mysql://me:\\*\\*\\*@here/autotune"),
        ("postgresql://me:secret@here:port/autotune", "found a URL that cannot be read"),
    ],
)
def test_an_address_of_another_kind(address: str, expected: str) -> None:
    with pytest.raises(DatabaseUnreachableError, match=expected) as caught:
        open_store(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "mode"),
    [
        ("postgresql://db.example/a", "require"), ("postgresql://db.example/a?sslmode=verify-full", "verify-full"),
        ("postgresql://me@10.0.0.7/a", "require"), ("postgresql:///a?host=db.example", "require"),
        ("postgresql:///a?host=/run/pg,db.example", "require"), ("postgresql:///a?hostaddr=10.0.0.7", "require"),
        ("postgresql://localhost/a", None), ("postgresql://127.0.0.1:5433/a", None), ("postgresql:///a", None),
        ("postgresql:///a?service=production", "require"),
        ("postgresql:///a?host=/run/postgresql", None), ("postgresql://localhost/a?sslmode=disable", "disable"),
    ],
)  # fmt: skip
def test_beyond_this_machine_only_with_tls(address: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)
    assert Postgresql(make_url(address), 1.0).url.query.get("sslmode") == mode


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "nonsense"])
def test_no_way_in_the_clear_beyond_this_machine(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatabaseUnreachableError, match="SSH tunnel") as caught:
        open_store(f"postgresql://me:secret@db.example/a?sslmode={mode}")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("PGSSLMODE", mode)
    with pytest.raises(DatabaseUnreachableError, match="SSH tunnel"):
        open_store("postgresql://db.example/a")


def test_no_server_there() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    with pytest.raises(DatabaseUnreachableError, match="check that it runs") as caught:
        open_store("postgresql://me:secret@127.0.0.1:1/autotune", busy_timeout_s=2.0)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreachableError, match=f"mkdir -p {tmp_path}/missing"):
        open_store(tmp_path / "missing" / "autotune.db")
    assert not (tmp_path / "missing").exists()


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreachableError, match="found a directory"):
        open_store(tmp_path)


@pytest.mark.parametrize("content", [b"hello\n", b'{"format": 1}' * 1000, os.urandom(100_000)])
def test_not_a_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(NotADatabaseError, match="expected an SQLite database"):
        open_store(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("read_only", ["file", "directory"])
def test_a_read_only_place(read_only: str) -> None:
    # pytest's own directories let nobody in but their owner.
    directory = Path(tempfile.mkdtemp(prefix="autotune-test-"))
    path = directory / "autotune.db"
    try:
        open_store(path).close()
        path.chmod(0o444 if read_only == "file" else 0o666)
        directory.chmod(0o777 if read_only == "file" else 0o555)
        with child(UNPRIVILEGED, str(path)) as process:
            said = process.communicate(timeout=60)[0]
        assert said.startswith("DatabaseUnreachableError")
        assert said.count("\n") == 1
        assert "give it the rights" in said
    finally:
        directory.chmod(0o777)
        shutil.rmtree(directory)


def test_a_file_that_becomes_read_only_is_not_writable(tmp_path: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="autotune-test-"))
    path = directory / "autotune.db"
    try:
        directory.chmod(0o777)
        with child(BECOMES_READ_ONLY, str(path), str(tmp_path / "other.db")) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "writable\n"
            path.chmod(0o444)
            directory.chmod(0o555)
            said = process.communicate("go on\n", timeout=60)[0]
        assert said.startswith("DatabaseUnreachableError")
        assert "give it the rights" in said
    finally:
        directory.chmod(0o777)
        shutil.rmtree(directory)


def test_a_server_that_becomes_read_only_is_not_writable(tmp_path: Path) -> None:
    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        store.expect_writable()
        name = make_url(address).database
        with store._writing() as connection:
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        store.close()
        with pytest.raises(DatabaseError, match="read-only transaction"):
            store.expect_writable()
        with store._reading() as connection:
            assert connection.execute(text("SELECT count FROM probe")).scalar_one() == 1


def test_a_database_that_another_process_holds(path: Path) -> None:
    with open_store(path, busy_timeout_s=0.2) as store:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusyError, match=r"within 0\.2 s"):
            store.record(a_measurement("one"))
        assert store.measurements(a_key()) == []  # readers never wait
        with open_store(path, busy_timeout_s=0.2) as second:
            assert second.counts()["measurements"] == 0
        holder.close()
        assert store.record(a_measurement("one"))


def test_a_full_disk(path: Path) -> None:
    open_store(path).close()
    with child(FILLER, str(path)) as process:
        *said, last = process.communicate(timeout=120)[0].splitlines()
    assert last.startswith("end")
    assert str(path) in last
    with open_store(path) as store:
        assert set(said) <= {m.attempt for m in store.measurements(a_key())}
        assert store.check() == []


def test_damage_is_found(path: Path) -> None:
    with open_store(path) as store:
        for number in range(200):
            store.record(a_measurement(str(number)))
        assert store.check() == []
    content = bytearray(path.read_bytes())
    pages = len(content) // 4096
    for page in range(pages // 2, pages):  # the first ones hold the schema
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    with open_store(path) as store:
        assert store.check()
        with pytest.raises(DatabaseError, match="restore a backup") as caught:
            store.measurements(a_key())
    assert "\n" not in str(caught.value)


def test_a_row_without_its_parent_is_found(path: Path) -> None:
    with open_store(path) as store:
        store.record(a_measurement("one"))
        vandal = sqlite3.connect(path)
        vandal.execute("DELETE FROM keys")
        vandal.commit()
        vandal.close()
        assert store.check() == ["row 1 of measurements refers to a row of keys that is not there"]


def test_a_backup_while_others_write(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with open_store(path) as store:
        store.decide(a_winner())
        store.backup(copy)
        store.record(a_measurement("after"))
        with pytest.raises(DatabaseError, match="found a file: name another"):
            store.backup(copy)
        with pytest.raises(DatabaseError, match="name another path"):
            store.backup(tmp_path / "missing" / "copy.db")
    assert {file.name for file in tmp_path.iterdir()} == {"autotune.db", "copy.db"}
    with open_store(copy) as restored:
        assert restored.winner(a_key()) == a_winner()
        assert restored.measurements(a_key()) == []
        assert restored.check() == []


@pytest.mark.parametrize("instead", ["another", "nothing"])
def test_a_file_that_is_replaced_is_not_written(path: Path, tmp_path: Path, instead: str) -> None:
    """Nor opened: the log of the one that was opened would be played into it."""
    copy, moved = tmp_path / "copy.db", tmp_path / "moved.db"
    with open_store(path) as store:
        store.record(a_measurement("before"))
        store.backup(copy)
        for number in range(200):
            store.record(a_measurement(f"after {number}"))
        path.rename(moved)
        if instead == "another":
            copy.rename(path)
        expected = f"expected the file that was opened, found {'another' if instead == 'another' else 'none'}"
        with pytest.raises(DatabaseError, match=expected):
            store.record(a_measurement("lost"))
        with pytest.raises(DatabaseError, match=expected):
            store.expect_writable()
        with ThreadPoolExecutor(1) as threads, store._engine.begin(), pytest.raises(DatabaseError, match=expected):
            threads.submit(store.counts).result()  # over a connection of its own
    if instead == "another":
        for end in ("-wal", "-shm"):  # as it was told
            Path(f"{path}{end}").unlink(missing_ok=True)
        with open_store(path) as restored:
            assert restored.check() == []
            assert len(restored.measurements(a_key())) == 1
    else:
        assert not path.exists()


def test_a_job_that_is_followed_costs_no_parsing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several reads a second, perhaps of 1000 keys, on the processor that is measured."""
    with open_store(path) as store:
        job = store.submit([a_key(cout) for cout in range(1, 30)], Budget(trials=1))
        monkeypatch.setattr("db.jobs.ConvKey.from_json", lambda _: pytest.fail("parsed again"))
        assert store.job(job.id) == job
        assert store.jobs() == [job]


def test_pruning_takes_as_long_whatever_the_keys_are(path: Path) -> None:
    """Nobody else writes to a file meanwhile, and one key may have thousands of candidates."""
    with open_store(path) as store:
        store.record(a_measurement("first"))
        with store._writing() as connection:
            row = connection.execute(select(MeasurementRow.__table__)).one()._asdict()
            del row["id"]
            more = ({"attempt": f"a{n}", "candidate": f"c{n}", "measured_at": float(n)} for n in range(4000))
            connection.execute(insert(MeasurementRow), [{**row, **values} for values in more])
        started = time.process_time()
        assert store.prune(1e9)["measurements"] == 0
        assert time.process_time() - started < 3


def test_a_server_that_is_silent_is_found_out_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred requests that each dial for ten seconds, one after the other, would be a quarter of an hour."""
    counter, dialled = Counter(create_engine("sqlite://")), []

    def dial() -> object:
        dialled.append(time.monotonic())
        time.sleep(0.5)
        raise TimeoutError("no answer")

    with monkeypatch.context() as silent, ThreadPoolExecutor(8) as threads:
        silent.setattr(counter, "_open", dial)
        found = [thread.exception() for thread in [threads.submit(counter.read) for _ in range(8)]]
    assert all(isinstance(error, OSError) and "no answer" in str(error) for error in found)
    assert len(dialled) <= 2
    with counter._engine.begin() as connection:
        connection.execute(text("CREATE TABLE changes (count INTEGER)"))
        connection.execute(text("INSERT INTO changes VALUES (7)"))
    assert counter.read() == 7  # the next one who asks dials again


def test_a_closed_store_opens_again(path: Path) -> None:
    store: SqlStore = open_store(path)
    store.close()
    store.close()
    assert store.record(a_measurement("one"))
    store.close()


def test_a_server_named_by_the_environment_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert Postgresql(make_url("postgresql:///a"), 1.0).url.query.get("sslmode") == "require"


def test_a_password_among_the_parameters_is_not_shown() -> None:
    dialect = dialect_for("postgresql://me@localhost/a?password=secret", 1.0)
    assert "secret" not in str(dialect)
