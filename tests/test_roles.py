"""db/server/postgresql.sh as the image runs it, and the three roles it makes: owner, service, worker; no superuser."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import ROOT
from served import free_port, until

SECRETS = {role: f"{role}'s pass@word/with ?signs" for role in ("owner", "service", "worker")}
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

NOT_THE_SERVICES = (
    "CREATE TABLE mine (id int)", "DROP TABLE workers", "UPDATE alembic_version SET version_num = ''",
    "ALTER TABLE workers ADD COLUMN mine int", "CREATE ROLE another",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not PROGRAMS, reason="needs root, to become postgres, and PostgreSQL"),
]


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of user postgres, with a short name: a socket's path has about 100 characters."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="roles-"))
    (folder / "data").mkdir(mode=0o700)
    shutil.copy(ROOT / "db" / "server" / "postgresql.sh", folder)
    user = pwd.getpwnam("postgres")
    for path in (folder, folder / "data", folder / "postgresql.sh"):
        os.chown(path, user.pw_uid, user.pw_gid)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def server(home: Path, **environ: str) -> subprocess.Popen[bytes]:
    secrets = {f"{role.upper()}_PASSWORD": secret for role, secret in SECRETS.items()}
    places = {"PGDATA": str(home / "data"), "PGSOCKETS": str(home), "PGLISTEN": "", "PATH": "/usr/bin:/bin"}
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            ["sh", str(home / "postgresql.sh")], env={**places, **secrets, **environ}, user="postgres",
            group="postgres", extra_groups=[], cwd=home, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def running(process: subprocess.Popen[Any], number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(number)
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def accepts(home: Path, port: int = 5432) -> bool:
    command = [PROGRAMS[-1] / "pg_isready", "--quiet", f"--host={home}", f"--port={port}", "--dbname=autotune"]
    return subprocess.run(command, check=False).returncode == 0


def autotune(home: Path, role: str, *arguments: str) -> subprocess.Popen[str]:
    """A command of ours as that role."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGPASSWORD": SECRETS[role], "DEV": "CPU"}
    environ |= {"AUTOTUNE_DB": f"postgresql+psycopg://autotune_{role}@/autotune?host={home}"}
    environ |= {"AUTOTUNE_LOCKS": str(home / "locks")}
    command = [sys.executable, "-m", "api.cli", *arguments]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def test_a_shape_is_tuned_and_nobody_is_more_than_they_must_be(home: Path) -> None:
    import httpx
    import psycopg

    def connected(role: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(home), dbname="autotune", user=f"autotune_{role}", password=SECRETS[role], autocommit=True
        )

    with running(server(home)):
        until(lambda: accepts(home), 60)
        status, text = said(autotune(home, "service", "serve", "--port", "0"))
        assert (status, "run `autotune migrate` as the owner" in text) == (1, True), text
        status, text = said(autotune(home, "owner", "migrate"))
        assert status == 0, text
        port = free_port()
        service = autotune(home, "service", "serve", "--port", str(port))
        with (
            running(service, signal.SIGTERM),
            running(autotune(home, "worker", "worker"), signal.SIGTERM),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as http,
        ):

            def answer(path: str) -> Any:
                with contextlib.suppress(httpx.TransportError):
                    return http.get(path).json()

            until(lambda: (found := answer("/workers")) and found["workers"], 90)
            shape = {"input": [1, 4, 8, 8], "weight": [4, 4, 3, 3], "padding": 1, "device": "CPU", "trials": 2}
            job = http.post("/tune", json=shape).json()
            ended = until(lambda: (j := answer(f"/jobs/{job['id']}"))["state"] not in ("queued", "running") and j, 180)
            assert (ended["state"], ended["error"]) == ("done", "")
        with connected("service") as session:
            assert session.execute("SELECT count(*) FROM winners").fetchone() == (1,)
            for statement in NOT_THE_SERVICES:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement)
        with connected("worker") as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT * FROM tokens")
        with connected("owner") as session:
            supers = session.execute("SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin").fetchall()
            assert supers == [("postgres",)]
        with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
            psycopg.connect(host=str(home), dbname="autotune", user="postgres", password="")
        status, text = said(autotune(home, "owner", "migrate"))  # again, as at an upgrade
        assert status == 0, text


def test_from_elsewhere_only_with_tls(home: Path) -> None:
    import psycopg

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))  # sends nothing: it says which address this machine has beyond loopback
        except OSError:
            pytest.skip("needs an address beyond loopback")
        outside = route.getsockname()[0]
    port = free_port(outside)

    def encrypted(host: str, mode: str) -> bool:
        with psycopg.connect(
            host=host, port=port, dbname="autotune", user="autotune_worker", password=SECRETS["worker"], sslmode=mode
        ) as session:
            [found] = session.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() or ()
        return bool(found)

    with running(server(home, PGLISTEN=f"127.0.0.1,{outside}", PGPORT=str(port))):
        until(lambda: accepts(home, port), 60)
        assert encrypted("127.0.0.1", "prefer")
        assert not encrypted("127.0.0.1", "disable")
        assert encrypted(outside, "prefer")
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            encrypted(outside, "disable")


def test_a_start_that_was_killed_is_begun_anew_and_foreign_files_are_left_alone(home: Path) -> None:
    for delay_s in (0.0, 0.3, 1.0, 2.0):
        process = server(home)
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    with running(server(home)):
        until(lambda: accepts(home), 60)
    for path in (home / "data").iterdir():  # amid the move of what is made
        if path.name not in ("base", "global"):
            subprocess.run(["rm", "-r", str(path)], check=True)
    (home / "data" / ".making").touch()
    os.chown(home / "data" / ".making", pwd.getpwnam("postgres").pw_uid, -1)
    with running(server(home)):
        until(lambda: accepts(home), 60)
    (home / "data" / "PG_VERSION").unlink()
    assert server(home).wait(60) == 1
    assert "found something in" in (home / "log").read_text()
    assert (home / "data" / "base").exists()
