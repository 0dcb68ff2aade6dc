"""What may happen to a service: a clear answer each time, and nothing that was acknowledged is lost.

bench/faults.py does the same at length. A token revoked in mid-stream: test_tokens. A database that may only be read,
and one of which nothing is left: test_store.
"""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from databases import ROOT
from served import Served, body, ended, key_of, served, until, winner_of
from sqlalchemy.exc import OperationalError

from api.cli import main
from api.settings import Settings, SettingsError
from db import DatabaseBusyError, DatabaseError, Scope, open_store
from db.address import dialect_for
from db.errors import DatabaseFullError


@contextmanager
def full_disk(service: Served, database: Path) -> Iterator[None]:
    """No file of the service may grow any more, as where a disk or a quota is used up."""
    size = max(path.stat().st_size for path in database.parent.iterdir())
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def jobs_of(database: Path) -> set[str]:
    with open_store(database) as store:
        assert store.check() == []
        return {job.id for job in store.jobs(limit=100_000)}


def test_a_full_disk(tmp_path: Path) -> None:
    database = tmp_path / "autotune.db"
    with served(database, trial_s=5.0) as service:
        acknowledged = {service.http.post("/tune", json=body(1)).json()["id"]}
        with full_disk(service, database):
            refused = 0
            for number in range(2, 200):
                answer = service.http.post("/tune", json=body(number))
                assert answer.status_code in (202, 503), answer.text
                if answer.status_code == 202:
                    acknowledged.add(answer.json()["id"])
                else:
                    assert answer.headers["retry-after"] == "5"
                    assert "room on the disk" in answer.json()["detail"] or "disk I/O" in answer.json()["detail"]
                    refused += 1
                    if refused == 3:
                        break
            assert refused == 3
            unready = until(lambda: found if (found := service.http.get("/readyz")).status_code == 503 else None)
            assert "room on the disk" in unready.json()["detail"] or "disk I/O" in unready.json()["detail"]
            assert service.http.get("/healthz").status_code == 200
            assert service.http.get("/jobs").status_code == 200
        acknowledged.add(service.http.post("/tune", json=body(300)).json()["id"])
        until(lambda: service.http.get("/readyz").status_code == 200)
    assert jobs_of(database) == acknowledged


@pytest.mark.slow
def test_postgresql_on_a_full_disk() -> None:
    command = [sys.executable, "bench/faults.py", "--only", "full-server"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    if "SKIPPED" in done.stdout or "expected PostgreSQL's programs" in done.stderr:
        pytest.skip(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_server_says_what_it_has_no_more_of() -> None:
    """Not that it cannot be reached: nobody should look for a wrong password."""
    errors = pytest.importorskip("psycopg").errors
    server = dialect_for("postgresql://me@/autotune", 1.0)

    def explained(error: Exception) -> DatabaseError | None:
        return server.explain(OperationalError("INSERT", {}, error))

    full = explained(errors.DiskFull("could not extend file: No space left on device"))
    assert isinstance(full, DatabaseFullError)
    assert "expected room on its server's disk" in str(full)
    for crowded in (
        errors.TooManyConnections("too many connections for role"),
        errors.OperationalError("connection failed: FATAL:  sorry, too many clients already"),
    ):
        assert isinstance(explained(crowded), DatabaseBusyError)
        assert "expected a free connection on its server" in str(explained(crowded))


def test_a_server_that_said_it_is_full_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its probe writes needs no room: it would say that all is well."""
    with open_store(tmp_path / "autotune.db") as store:
        monkeypatch.setattr(store._dialect, "explain", lambda error: DatabaseFullError(f"full: {error.orig}"))
        store.expect_writable()
        with pytest.raises(DatabaseFullError), store._writing() as connection:
            connection.exec_driver_sql("INSERT INTO nothing VALUES (1)")
        with pytest.raises(DatabaseFullError, match="full: "):
            store.expect_writable()
        monkeypatch.setattr("db.store.FULL_S", 0.0)
        store.expect_writable()


def test_a_database_that_is_locked_for_a_while(tmp_path: Path) -> None:
    """The job that runs goes on afterwards, who waits is answered, reading is not held up."""
    database = tmp_path / "autotune.db"
    with served(database, trial_s=0.05) as service:
        job = service.http.post("/tune", json={**body(), "trials": 30}).json()
        until(lambda: service.http.get(f"/jobs/{job['id']}").json()["progress"].get("trials", 0) > 2)
        holder = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert service.http.get("/jobs").status_code == 200
        assert time.monotonic() - started < 5.0  # to wait for the lock would take 10 s, and be in vain
        release = threading.Timer(1.5, holder.close)
        release.start()
        second = service.http.post("/tune", json=body(32))
        assert second.status_code == 202
        release.join()
        assert ended(service.http, job["id"])["state"] == "done"
        assert ended(service.http, second.json()["id"])["state"] == "done"
    with open_store(database) as store:
        assert len(store.measurements(key_of())) == 30


def test_a_clock_that_jumps_back(tmp_path: Path) -> None:
    clock, database = tmp_path / "clock", tmp_path / "autotune.db"
    clock.write_text("0")
    with open_store(database) as store:
        store.decide(winner_of(key_of(7), decided_at=time.time()))
        secret = store.create_token("me", Scope.TUNE, expires_at=time.time() + 3600)[1]
    with served(database, trial_s=0.05, clock=str(clock), hosts=["autotune.test"]) as service:
        service.http.headers["Authorization"] = f"Bearer {secret}"
        job = service.http.post("/tune", json={**body(), "trials": 30}).json()
        until(lambda: service.http.get(f"/jobs/{job['id']}").json()["progress"].get("trials", 0) > 2)
        clock.write_text("-86400")
        second = service.http.post("/tune", json=body(7)).json()
        with service.http.stream("GET", f"/jobs/{job['id']}/events") as stream:
            assert any(line == "event: end" for line in stream.iter_lines())
        assert ended(service.http, job["id"])["state"] == "done"
        assert ended(service.http, second["id"])["state"] == "done"
        assert service.http.get("/readyz").status_code == 200
    with open_store(database) as store:
        assert len(store.measurements(key_of())) == 30
        latest = store.winner(key_of(7))  # of the later decision, whatever its time says
        assert latest is not None
        assert latest.decided_at < time.time() - 80_000


def test_many_jobs_at_once(tmp_path: Path) -> None:
    database = tmp_path / "autotune.db"
    shapes = [body(1 + number % 100, 8 + number // 100) for number in range(300)]
    with served(database, trial_s=0.01) as service, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda shape: service.http.post("/tune", json=shape), shapes))
        assert {answer.status_code for answer in answers} == {202}
        service.kill()
    acknowledged = {answer.json()["id"] for answer in answers}
    assert len(acknowledged) == 300
    assert jobs_of(database) == acknowledged


def test_a_queue_has_a_limit_for_each_token(tmp_path: Path) -> None:
    database = tmp_path / "autotune.db"
    with open_store(database) as store:
        mine, other = (store.create_token(name, Scope.TUNE)[1] for name in ("mine", "other"))
    with served(database, trial_s=5.0, hosts=["autotune.test"], max_queued=3) as service:

        def post(secret: str, *cins: int) -> httpx.Response:
            shapes = {"shapes": [body(cin) for cin in cins], "trials": 9}
            return service.http.post("/tune", json=shapes, headers={"Authorization": f"Bearer {secret}"})

        assert post(mine, 1, 2).status_code == 202
        full = post(mine, 3, 4)
        assert (full.status_code, full.headers["retry-after"]) == (429, "60")
        assert "at most 3 shapes of yours in the queue, found 4" in full.json()["detail"]
        assert post(mine, 1, 2).status_code == 202  # that job is there already
        assert post(mine, 3).status_code == 202
        assert post(other, 3, 4).status_code == 202
    with open_store(database) as store:
        assert [len(job.keys) for job in store.jobs()] == [2, 1, 2]


def test_a_shape_may_cost_so_much(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", max_shape_bytes=1 << 20, max_shape_macs=10**6) as service:
        for shape, says in (
            ({"input": [1, 1, 512, 512], "weight": [1, 1, 3, 3]}, "bytes"),
            ({"input": [1, 64, 28, 28], "weight": [64, 64, 3, 3]}, "multiply-accumulates"),
        ):
            answer = service.http.post("/tune", json={"shapes": [body(1, 8), {**shape, "device": "CPU"}]})
            assert (answer.status_code, says in answer.json()["detail"]) == (422, True)
        assert service.http.get("/jobs").json() == {"jobs": []}


def test_limits_come_from_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "HOME": "/h",
        "AUTOTUNE_MAX_QUEUED": "7",
        "AUTOTUNE_MAX_SHAPE_BYTES": "8",
        "AUTOTUNE_MAX_SHAPE_MACS": "9",
    }
    settings = Settings.from_environment(environ)
    assert (settings.max_queued, settings.max_shape_bytes, settings.max_shape_macs) == (7, 8, 9)
    for wrong in ("0", "-1", "many", "1.5", "٣"):
        with pytest.raises(SettingsError, match="AUTOTUNE_MAX_QUEUED must be a whole number"):
            Settings.from_environment({"HOME": "/h", "AUTOTUNE_MAX_QUEUED": wrong})
    monkeypatch.setenv("AUTOTUNE_MAX_QUEUED", "none")
    assert main(["winners"]) == 2
    assert "AUTOTUNE_MAX_QUEUED" in capsys.readouterr().err
