"""Where the hook reads winners: every source through one contract, and what can be wrong with each."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from autotune import bundle
from autotune.sources import HttpSource, JsonSource, Source, SourceError, SqliteSource, open_source
from autotune.winner import Winner, WinnerState
from db import open_store
from strategies.key import ConvKey
from tests.databases import ROOT, child
from tests.http_service import service
from tests.values import CPU, a_key, a_measurement, a_winner

KEYS = [a_key(4), a_key(8), a_key(16)]

WRITER = """
import sys
from db import open_store
from tests.values import a_key, a_winner
store = open_store(sys.argv[1])
for number in range(100_000):
    store.decide(a_winner(a_key(8), decided_at=float(number)))
    print(number, flush=True)
"""

UNPRIVILEGED = """
import os, sys
from autotune.sources import SqliteSource, SourceError
from pathlib import Path
from tests.values import a_key
import sqlite3
if os.geteuid() == 0:  # root may write anywhere
    os.setresuid(65534, 65534, 65534)
source = SqliteSource(Path(sys.argv[1]))
before = source.version()
print(len(source.lookup([a_key()])), source.version() == before, flush=True)
sys.stdin.readline()
print(len(source.lookup([a_key()])), source.version() == before)
"""


def by_digest(winners: Sequence[Winner]) -> dict[str, Winner]:
    return {winner.key.digest: winner for winner in winners}


class Known:
    """Winners that a source under test should know, and a way to change them."""

    def __init__(self, source: Source, put: Callable[[list[Winner]], None]) -> None:
        self.source, self.put = source, put


@pytest.fixture(params=["json", "sqlite", "http"])
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Known]:
    if request.param == "json":
        path = tmp_path / "winners.json"
        bundle.write(path, [])
        yield Known(open_source(path), lambda winners: bundle.write(path, winners))
    elif request.param == "sqlite":
        with open_store(tmp_path / "autotune.db") as store:
            source = open_source(tmp_path / "autotune.db")
            yield Known(source, lambda winners: [store.decide(winner) for winner in winners] and None)
            source.close()
    else:
        there: list[Winner] = []

        def answer(_: BaseHTTPRequestHandler, body: Any) -> object:
            asked = {ConvKey.from_json(key).digest for key in body["keys"]}
            return {"winners": {w.key.digest: w.to_json() for w in there if w.key.digest in asked}}

        with service(answer) as url:
            yield Known(HttpSource(url, timeout_s=10.0, window_s=1e-9), there.extend)


def test_what_is_known_is_found(known: Known) -> None:
    assert known.source.lookup(KEYS) == {}
    before = known.source.version()
    known.put([a_winner(KEYS[0]), a_winner(KEYS[2], state="guess"), a_winner(a_key(32))])
    assert known.source.version() != before
    assert known.source.lookup(KEYS) == by_digest([a_winner(KEYS[0]), a_winner(KEYS[2], state="guess")])
    assert known.source.lookup([]) == {}


def test_what_was_revoked_is_not_found(known: Known) -> None:
    known.put([a_winner(KEYS[0], state="revoked"), a_winner(KEYS[1])])
    assert known.source.lookup(KEYS) == by_digest([a_winner(KEYS[1])])


def test_another_driver_finds_the_same_winner(known: Known) -> None:
    known.put([a_winner(KEYS[0])])
    other = a_key(4, device=dataclasses.replace(CPU, driver="clang 19"))
    assert known.source.lookup([other]) == by_digest([a_winner(KEYS[0])])


def test_more_keys_than_a_statement_takes(known: Known) -> None:
    known.put([a_winner(a_key(1200))])
    assert len(known.source.lookup([a_key(1 + number) for number in range(1200)])) == 1


def test_threads_share_a_source(known: Known) -> None:
    known.put([a_winner(KEYS[0])])
    found: list[object] = []

    def work() -> None:
        for _ in range(10):
            known.source.version()
            found.append(known.source.lookup(KEYS))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [by_digest([a_winner(KEYS[0])])] * 60


def test_a_closed_source_opens_again(known: Known) -> None:
    known.put([a_winner(KEYS[0])])
    known.source.lookup(KEYS)
    known.source.close()
    known.source.close()
    assert len(known.source.lookup(KEYS)) == 1


# Addresses


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("http://127.0.0.1:8000", HttpSource), ("https://example.org/autotune/", HttpSource),
        ("winners.json", JsonSource), ("autotune.db", SqliteSource), ("sqlite:///autotune.db", SqliteSource),
        (Path("winners.json"), JsonSource), ("file:///tmp/winners.json", JsonSource), ("~/autotune", SqliteSource),
    ],
)  # fmt: skip
def test_an_address(spec: str, kind: type) -> None:
    assert isinstance(open_source(spec), kind)


def test_a_file_is_what_is_in_it(tmp_path: Path) -> None:
    open_store(tmp_path / "misleading.json").close()
    bundle.write(tmp_path / "misleading.db", [])
    assert isinstance(open_source(tmp_path / "misleading.json"), SqliteSource)
    assert isinstance(open_source(tmp_path / "misleading.db"), JsonSource)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("postgresql://me:secret@here/autotune", "start `autotune serve`"), ("ftp://here/x", "found ftp://"),
        ("http://", "found no such URL"), ("http://[::1", "found no such URL"), ("http://here:99999", "no such URL"),
        ("http://here:8000/?x=1", "found no such URL"), ("http://me:secret@here", "goes into AUTOTUNE_TOKEN"),
        ("sqlite://", "found sqlite://"), ("~nobody-here/w.json", "expected a file's path"),
        ("a\0b", "expected a file's path"), ("\ud800", "expected a file's path"),
    ],
)  # fmt: skip
def test_an_address_of_another_kind(spec: str, expected: str) -> None:
    with pytest.raises(SourceError, match=expected) as caught:
        open_source(spec)
    assert "secret" not in str(caught.value)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=r"^expected a SQLite file .*, found a device or pipe at"):
        open_source(tmp_path / "pipe")
    assert isinstance(open_source(tmp_path), SqliteSource)  # which says so when it is asked, and no program ends


def test_sources_are_cheap_to_import() -> None:
    program = "import autotune.sources, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    costly = {"sqlalchemy", "db", "api", "numpy", "optuna", "urllib.request", "http.client", "sqlite3", "ssl"}
    assert not costly & set(done.stdout.split())


# JSON files


def test_a_json_file_that_is_missing_damaged_and_repaired(tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    source = JsonSource(path)
    with pytest.raises(SourceError, match="No such file"):
        source.lookup(KEYS)
    path.write_bytes(bundle.dump([a_winner(KEYS[0])])[:-9])
    for _ in range(2):
        with pytest.raises(SourceError, match=r"winners\.json: expected JSON"):
            source.lookup(KEYS)
    bundle.write(path, [a_winner(KEYS[0])])
    assert len(source.lookup(KEYS)) == 1
    path.unlink()
    with pytest.raises(SourceError, match="No such file"):
        source.lookup(KEYS)


# SQLite files


def test_a_database_that_is_missing_until_later(tmp_path: Path) -> None:
    path = tmp_path / "autotune.db"
    source = SqliteSource(path)
    with pytest.raises(SourceError, match="No such file"):
        source.lookup(KEYS)
    missing = source.version()
    assert not path.exists()
    with open_store(path) as store:
        store.decide(a_winner(KEYS[0]))
        assert source.version() != missing
        assert len(source.lookup(KEYS)) == 1
    source.close()


def test_a_database_that_is_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "autotune.db", tmp_path / "other.db"
    with open_store(path) as store:
        store.decide(a_winner(KEYS[0]))
    source = SqliteSource(path)
    assert source.lookup(KEYS) == by_digest([a_winner(KEYS[0])])
    before = source.version()
    with open_store(other) as store:
        store.decide(a_winner(KEYS[1]))
    other.replace(path)
    assert source.version() != before
    assert source.lookup(KEYS) == by_digest([a_winner(KEYS[1])])
    source.close()


@pytest.mark.parametrize(
    ("content", "expected"), [(b"hello " * 1000, "not a database"), (b"", "no such table: lookup_v1")]
)
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "autotune.db"
    path.write_bytes(content)
    source = SqliteSource(path)
    with pytest.raises(SourceError, match=expected) as caught:
        source.lookup(KEYS)
    assert "\n" not in str(caught.value)
    source.version()
    source.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        ("{", "expected JSON"), ("[]", "found one that cannot be read"), (None, "expected JSON"),
        (json.dumps(a_winner(a_key(8)).to_json()), "do not trust this source"),
    ],
)  # fmt: skip
def test_a_database_whose_winners_were_changed(tmp_path: Path, winner: str | None, expected: str) -> None:
    path = tmp_path / "autotune.db"
    with open_store(path) as store:
        store.decide(a_winner(KEYS[0]))
    vandal = sqlite3.connect(path)
    vandal.execute("DROP VIEW lookup_v1")
    vandal.execute("CREATE TABLE lookup_v1 AS SELECT ? AS key_digest, ? AS winner", (KEYS[0].digest, winner))
    vandal.commit()
    vandal.close()
    source = SqliteSource(path)
    with pytest.raises(SourceError, match=expected):
        source.lookup(KEYS)
    source.close()


def test_a_database_while_the_service_writes(tmp_path: Path) -> None:
    path = tmp_path / "autotune.db"
    open_store(path).close()
    source = SqliteSource(path)
    with child(WRITER, str(path)) as writer:
        assert writer.stdout
        for _ in range(30):
            said = float(writer.stdout.readline())
            found = source.lookup(KEYS)[KEYS[1].digest]
            assert found.decided_at >= said  # what was acknowledged is seen
        writer.kill()
    assert source.lookup(KEYS)[KEYS[1].digest].decided_at >= said
    source.close()


def test_the_version_stands_still_when_nothing_happens(tmp_path: Path) -> None:
    path = tmp_path / "autotune.db"
    with open_store(path) as store:
        source = SqliteSource(path)
        before = source.version()
        source.lookup(KEYS)
        assert source.version() == before
        store.record(a_measurement("one"))
        assert source.version() != before
        source.close()


def test_a_database_in_a_read_only_directory() -> None:
    # pytest's own directories let nobody in but their owner.
    directory = Path(tempfile.mkdtemp(prefix="autotune-test-"))
    path = directory / "autotune.db"
    try:
        with open_store(path) as store:
            store.decide(a_winner())
        path.chmod(0o444)
        directory.chmod(0o555)
        with child(UNPRIVILEGED, str(path)) as reader:
            assert reader.stdout
            assert reader.stdout.readline() == "1 True\n"
            directory.chmod(0o755)
            path.chmod(0o644)
            with open_store(path) as store:
                for winner_id, _ in store.winners():
                    store.set_state(winner_id, WinnerState.REVOKED)
            assert reader.communicate("go\n", timeout=60)[0] == "0 False\n"
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)


def test_a_forked_child_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "autotune.db"
    with open_store(path) as store:
        store.decide(a_winner())
    program = (
        "import os, sys; from pathlib import Path; from autotune.sources import SqliteSource\n"
        "from tests.values import a_key\n"
        "source = SqliteSource(Path(sys.argv[1])); source.lookup([a_key()])\n"
        "child = os.fork()\n"
        "ok = len(source.lookup([a_key()])) == 1\n"
        "os._exit(0 if ok else 1) if child == 0 else print(ok, os.waitpid(child, 0)[1])"
    )
    with child(program, str(path)) as parent:
        assert parent.communicate(timeout=60)[0] == "True 0\n"
