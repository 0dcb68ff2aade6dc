"""Processes for chaos.py and netns.py: a PostgreSQL of our own, and programs that are started again when they end.

PostgreSQL's programs are those of PG_BIN, else the newest of Debian's, else those on the PATH. Carried from another
machine they keep their tree (`usr/lib/postgresql/15` beside `usr/share/postgresql/15`: they find one from the other),
and PG_LIB names the folder of the libraries that came with them, for them alone. Where root starts them they run as
PG_USER, by default `postgres` if there is such a user, else `nobody`: initdb refuses root.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
START_S = 60.0


@contextlib.contextmanager
def work_folder(keep: str | None, prefix: str) -> Iterator[Path]:
    """A new folder: `keep`, which stays, or a temporary one."""
    if keep is not None:
        Path(keep).mkdir(parents=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class StuckError(Exception):
    """Something did not come true in time."""


class Process:
    """A program under a supervisor: `tend` starts it again `pause_s` after it ended. Its output goes to `log`."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, environ: Mapping[str, str] | None = None,
        pause_s: float = 0.5, rights: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`rights`: of `subprocess.Popen`, whom it runs as."""
        self.name, self.log, self.exits = name, log, Counter[int]()
        self._command, self._pause_s, self._rights = list(command), pause_s, dict(rights or {})
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._environ = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tend(self) -> None:
        """Start it if it does not run, and has not for long enough."""
        if self.alive:
            return
        if self._process is not None:
            self.exits[self._process.returncode] += 1
            self._process, self._start_at = None, time.monotonic() + self._pause_s
        if time.monotonic() >= self._start_at:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ,
                    cwd=self.log.parent, start_new_session=True, **self._rights,
                )  # fmt: skip

    def signal(self, number: signal.Signals, *, group: bool = False) -> bool:
        """Send it; False if it does not run."""
        if not self.alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)
        return True

    def children(self, of: str) -> list[psutil.Process]:
        """Processes below it whose command line holds `of`."""
        if not self.alive:
            return []
        with contextlib.suppress(psutil.Error):
            return [child for child in psutil.Process(self.pid).children(recursive=True) if _runs(child, of)]
        return []

    def tail(self, lines: int = 8) -> list[str]:
        """What it said last."""
        return self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []

    def end(self, timeout_s: float = 30.0) -> int | None:
        """SIGTERM, and SIGKILL to all of it after `timeout_s`; its exit status."""
        if self._process is None:
            return None
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        self.signal(signal.SIGKILL, group=True)
        return self._process.wait()


class Postgres(Process):
    """A server with one database, `autotune`, that checks its pages. Raises SystemExit where there is none."""

    def __init__(self, folder: Path, *, listen: Sequence[str] = (), inside: Sequence[str] = ()) -> None:
        """`listen`: addresses beside its socket, with TLS and passwords. `inside`: what enters a namespace."""
        self.programs, owner = programs(), server_user()
        self._tool_rights: dict[str, Any] = {}
        if owner is not None:
            self._tool_rights = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self._owner = (-1, -1) if owner is None else (owner.pw_uid, owner.pw_gid)
        os.chown(folder, *self._owner)
        self.folder, self.data = folder, folder / "data"
        self._expect_programs()
        self.run("initdb", "-D", str(self.data), "--data-checksums", "--auth=trust", "--username=autotune",
                 "--encoding=UTF8", "--locale=C")  # fmt: skip
        if listen:
            self._expect_tls(listen)
        drop = []
        if inside and owner is not None:
            drop = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        command = [*inside, *drop, str(self.programs / "postgres"), "-D", str(self.data), "-k", str(folder)]
        command += ["-c", f"listen_addresses={','.join(listen)}", "-c", "max_connections=200"]
        command += ["-c", f"ssl={'on' if listen else 'off'}"]
        super().__init__(
            "postgresql", command, folder / "postgresql.log", environ=_libraries(),
            rights={} if inside else self._tool_rights,
        )  # fmt: skip
        self.log.touch()
        os.chown(self.log, *self._owner)

    @property
    def url(self) -> str:
        """Over its socket."""
        return f"postgresql+psycopg://autotune@/autotune?host={self.folder}"

    @property
    def certificate(self) -> Path:
        """For clients that check whom they talk to."""
        return self.folder / "server.crt"

    def _expect_programs(self) -> None:
        """Raises SystemExit where they do not run as the user they must run as: an unreadable folder, a missing
        library."""
        command, environ = [str(self.programs / "initdb"), "--version"], {**os.environ, **_libraries()}
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=self.folder, env=environ, **self._tool_rights
            )
        except (OSError, subprocess.CalledProcessError) as error:
            found = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            user = self._tool_rights.get("user", os.geteuid())
            raise SystemExit(f"expected that user {user} can run {command[0]}, found: {found}") from None

    def worker_role(self, password: str) -> None:
        """db/worker_role.sql, once a service has set up the database."""
        where = ("-h", str(self.folder), "-U", "autotune", "-d", "autotune")
        self.run("psql", "-q", *where, "-v", f"password={password}", "-f", str(ROOT / "db" / "worker_role.sql"))

    def _expect_tls(self, addresses: Sequence[str]) -> None:
        names = ",".join(f"IP:{address}" for address in addresses)
        key = self.data / "server.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=postgresql",
             "-addext", f"subjectAltName={names}", "-keyout", key, "-out", self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        shutil.copy(self.certificate, self.data / "server.crt")
        for file in (key, self.data / "server.crt"):
            file.chmod(0o600)
            os.chown(file, *self._owner)
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("hostssl all all 0.0.0.0/0 scram-sha-256\n")

    def create(self) -> None:
        """Start it, with its database."""
        self.tend()
        give_up_at = time.monotonic() + START_S
        while self.run("pg_isready", "-q", "-h", str(self.folder), check=False) and time.monotonic() < give_up_at:
            time.sleep(0.2)
        self.run("createdb", "-h", str(self.folder), "-U", "autotune", "autotune")

    def damage(self) -> list[str]:
        """What is wrong with its tables, indexes and, once it is stopped, its pages; ends it."""
        found = []
        if self.run(
            "pg_amcheck", "-h", str(self.folder), "-U", "autotune", "--install-missing", "autotune", check=False
        ):
            found.append("pg_amcheck found damage")
        self.signal(signal.SIGINT)
        self.end()
        if self.run("pg_checksums", "--check", "-D", str(self.data), check=False):
            found.append("pg_checksums found damage")
        return found

    def run(self, program: str, *arguments: str, check: bool = True) -> int:
        """One of its programs; the exit status."""
        return subprocess.run(
            [str(self.programs / program), *arguments], cwd=self.folder, check=check, timeout=300,
            stdout=subprocess.DEVNULL, env={**os.environ, **_libraries()}, **self._tool_rights,
        ).returncode  # fmt: skip


def server_user() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as where root starts it; None: as whoever starts it. Raises SystemExit for nobody known."""
    if os.geteuid() != 0:
        return None
    wanted = [os.environ["PG_USER"]] if "PG_USER" in os.environ else ["postgres", "nobody"]
    for name in wanted:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise SystemExit(f"expected a user to run PostgreSQL as, found none of {', '.join(wanted)}: name one by PG_USER")


def programs() -> Path:
    """Where PostgreSQL's programs are."""
    if given := os.environ.get("PG_BIN"):
        if not Path(given, "initdb").is_file():
            raise SystemExit(f"expected PostgreSQL's programs at PG_BIN={given}, found no initdb there")
        return Path(given).resolve()
    on_path = shutil.which("initdb")
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path is None and not installed:
        raise SystemExit(
            "expected PostgreSQL's programs, found none: install it (Debian: postgresql), or name them by PG_BIN"
        )
    return max(installed, default=None) or Path(str(on_path)).resolve().parent


def _libraries() -> dict[str, str]:
    """The environment in which PostgreSQL's programs find those that came with them."""
    given = os.environ.get("PG_LIB")
    if not given:
        return {}
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, (given, os.environ.get("LD_LIBRARY_PATH"))))}


def autotune(*arguments: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "api.cli", *arguments]


def _runs(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in part for part in process.cmdline())
    except psutil.Error:
        return False
