"""Fresh databases for tests: an SQLite file, and one on a PostgreSQL server.

The server is the one at AUTOTUNE_TEST_POSTGRES, else one that is started here and thrown away, if its programs are
on this machine.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KINDS = ("sqlite", "postgresql")


@contextmanager
def new_database(kind: str, directory: Path) -> Iterator[str]:
    """The address of an empty database of that kind, or a skip that says what is missing."""
    if kind == "sqlite":
        yield str(directory / "autotune.db")
        return
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    server = _server()
    name = f"autotune_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        from sqlalchemy.engine import make_url

        yield make_url(server).set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A real process that runs a program against this checkout; close it with `with`."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _server() -> str:
    given = os.environ.get("AUTOTUNE_TEST_POSTGRES")
    if given:
        return given
    programs = _programs()
    if programs is None:
        pytest.skip(
            "no PostgreSQL here: install it (Debian: postgresql), or set AUTOTUNE_TEST_POSTGRES to a server's DSN"
        )
    return _start(programs)


def _programs() -> Path | None:
    on_path = shutil.which("initdb")
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return Path(on_path).parent if on_path else max(installed, default=None)


@functools.cache  # one server per test process
def _start(programs: Path) -> str:
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            user = pwd.getpwnam("postgres").pw_uid
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
    directory = Path(tempfile.mkdtemp(prefix="autotune-pg-"))  # short: a socket's path has about 100 characters
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    if user is not None:
        os.chown(directory, user, -1)
    data = str(directory / "data")

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), "-D", data, *arguments], user=user, cwd=directory, check=True, timeout=120,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    run("initdb", "--no-sync", "--auth=trust", "--username=autotune", "--encoding=UTF8", "--locale=C")
    options = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off -c full_page_writes=off"
    run("pg_ctl", "-w", "-s", "-l", str(directory / "log"), "-o", options, "start")
    atexit.register(run, "pg_ctl", "-s", "-m", "immediate", "stop")
    return f"postgresql://autotune@/postgres?host={directory}"
