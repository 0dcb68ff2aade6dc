"""Faults at length: what may happen to a service, and that nothing acknowledged is lost.

    python bench/faults.py
    python bench/faults.py --jobs 500 --locked 3
    python bench/faults.py --only clock --only revoked

10,000 jobs posted at once, a database locked for 30 s, a full disk, PostgreSQL on a disk that fills up until it ends, a
database that may only be read, a clock that jumps back by a day, a token that is revoked in mid-stream: each against a
service with a scripted search (tests/served.py) on a database of its own. Every request must be answered, with 202, or
with 429 or 503 and when to try again; what was answered with 202 must be in the database after `kill -9`. A line per
fault, then the verdict; exit status 1 if anything is lost or an answer is another. Only root can mount a small disk for
PostgreSQL: without, that one is skipped. PG_BIN and PG_USER name PostgreSQL's programs and user (bench/cluster.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]

from cluster import Postgres, server_user, work_folder  # noqa: E402
from served import Served, body, ended, key_of, served, until  # noqa: E402

from db import Scope, open_store  # noqa: E402

CONNECTIONS = 64
RETRIES = 20
PATIENCE_S = 300.0
"""For a job of hundreds of trials, on a machine that has other things to do."""
UNLIMITED = resource.RLIM_INFINITY
FAULTS = ("many", "locked", "full", "full-server", "readonly", "clock", "revoked")
DISK_BYTES = 128 << 20
"""For a PostgreSQL: its empty database takes some 60 MB."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--locked", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--only", action="append", choices=FAULTS)
    options = parser.parse_args(arguments)
    faults: dict[str, Callable[[Path], bool]] = {
        "many": lambda path: _many(path, options.jobs), "locked": lambda path: _locked(path, options.locked),
        "full": _full, "full-server": _full_server, "readonly": _readonly, "clock": _clock, "revoked": _revoked,
    }  # fmt: skip
    started, held = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as directory:
        for name in options.only or faults:
            folder = Path(directory) / name
            folder.mkdir()
            held[name] = faults[name](folder / "autotune.db")
    broken = [name for name, good in held.items() if not good]
    taken_s = time.monotonic() - started
    print(f"faults: {'NOT HELD: ' + ', '.join(broken) if broken else 'HELD'}: {len(held)} of them in {taken_s:.0f} s")
    return 1 if broken else 0


def _shape(number: int) -> dict[str, object]:
    return body(1 + number % 400, 8 + number // 400)


def _post(service: Served, number: int) -> tuple[list[int], str]:
    """Statuses until it was accepted or patience ended, and the job's id."""
    statuses = []
    for _ in range(RETRIES):
        answer = service.http.post("/tune", json=_shape(number), timeout=120)
        statuses.append(answer.status_code)
        if answer.status_code == httpx.codes.ACCEPTED:
            return statuses, answer.json()["id"]
        assert answer.headers["retry-after"], answer.text
        time.sleep(0.5)
    return statuses, ""


def _kept(database: Path | str) -> set[str]:
    with open_store(database) as store:
        assert store.check() == [], store.check()
        return {job.id for job in store.jobs(limit=10**6)}


def _many(database: Path, jobs: int) -> bool:
    with served(database, trial_s=0.01) as service, ThreadPoolExecutor(CONNECTIONS) as threads:
        started = time.perf_counter()
        answers = list(threads.map(lambda number: _post(service, number), range(jobs)))
        taken = time.perf_counter() - started
        service.kill()
    return _told(f"{jobs} jobs over {CONNECTIONS} connections in {taken:.0f} s, then killed", answers, database)


def _locked(database: Path, seconds: float) -> bool:
    with served(database, trial_s=0.01) as service, ThreadPoolExecutor(8) as threads:
        _post(service, 0)
        holder = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        release = threading.Timer(seconds, holder.close)
        release.start()
        answers = list(threads.map(lambda number: _post(service, number), range(1, 9)))
        release.join()
        service.kill()
    return _told(f"locked for {seconds:g} s, 8 jobs posted meanwhile", answers, database)


def _full(database: Path) -> bool:
    with served(database, trial_s=10.0) as service:
        _post(service, 0)
        size = max(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (size + 4096, UNLIMITED))
        refused = 0
        for number in range(1, 1000):
            status = service.http.post("/tune", json=_shape(number)).status_code
            refused += status == httpx.codes.SERVICE_UNAVAILABLE
            if refused == 3:
                break
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        answers = [_post(service, number) for number in range(2000, 2010)]
        service.kill()
    return _told(f"a full disk: {refused} refused, then room again", answers, database) and refused == 3


def _full_server(_: Path) -> bool:
    """First tables cannot grow; then there is no room for its log, without which PostgreSQL ends, and does not start.
    Its supervisor goes on trying."""
    with work_folder(None, "faults-") as folder, _small_disk(folder / "data") as disk:
        if disk is None:
            print("PostgreSQL on a full disk: SKIPPED: expected root, who may mount a small disk", flush=True)
            return True
        server = Postgres(folder)
        server.create()
        with _tended(server), served(server.url, trial_s=10.0) as service:
            answers = [_post(service, 0)]
            with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(1 << 16))
            full = [_asked(service, number) for number in range(1, 400)]
            told = [said for status, _, said in full if "expected room on its server's disk" in said]
            ready = [service.http.get("/readyz", timeout=60).status_code]
            with contextlib.suppress(psycopg.Error), psycopg.connect(host=str(folder), user="autotune") as connection:
                connection.execute("SELECT pg_switch_wal()")
            gone = [_asked(service, number) for number in range(400, 420)]
            ready.append(service.http.get("/readyz", timeout=60).status_code)
            (disk / "ballast").unlink()
            until(lambda: service.http.get("/readyz", timeout=60).status_code == httpx.codes.OK, timeout_s=120)
            answers += [([status], job) for status, job, _ in (*full, *gone) if job]
            answers += [_post(service, number) for number in range(2000, 2010)]
            service.kill()
            statuses = Counter(status for status, *_ in (*full, *gone))
            print(
                f"PostgreSQL on a full disk: {dict(statuses)}, {len(told)} times told that it "
                f"is full; without room for its log it ended {sum(server.exits.values())} times; /readyz said {ready}"
            )
            held = _told("then room again", answers, server.url)
            return held and bool(told) and statuses.keys() <= {202, 503} and ready == [503, 503]


def _asked(service: Served, number: int) -> tuple[int, str, str]:
    """Once: the status, the job's id, what a problem says."""
    answer = service.http.post("/tune", json=_shape(number), timeout=120)
    found = answer.json()
    return answer.status_code, found.get("id", ""), found.get("detail", "")


@contextmanager
def _small_disk(place: Path) -> Iterator[Path | None]:
    """A file system in memory, for PostgreSQL's user; None where it cannot be mounted."""
    place.mkdir()
    owner = server_user()
    rights = "" if owner is None else f",uid={owner.pw_uid},gid={owner.pw_gid}"
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700{rights}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=False)


@contextmanager
def _tended(server: Postgres) -> Iterator[None]:
    """Started again whenever it ends, as by its supervisor."""
    over = threading.Event()

    def tend() -> None:
        while not over.wait(0.2):
            server.tend()

    tending = threading.Thread(target=tend)
    tending.start()
    try:
        yield
    finally:
        over.set()
        tending.join()
        server.end()


@contextmanager
def _only_readable(database: Path) -> Iterator[None]:
    """Its files and their folder, as for a user who has no rights there."""
    files = [path for path in database.parent.iterdir() if path.is_file()]
    for path in files:
        path.chmod(0o444)
    database.parent.chmod(0o555)
    try:
        yield
    finally:
        database.parent.chmod(0o755)
        for path in files:
            path.chmod(0o644)


def _without_privileges() -> list[str]:
    """What starts a program to which rights of files apply, root's included."""
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []


def _readonly(database: Path) -> bool:
    """While it runs, connections that are open write on and new ones do not; one that starts says what is wrong."""
    with served(database, trial_s=10.0, within=_without_privileges()) as service:
        _post(service, 0)
        with _only_readable(database), ThreadPoolExecutor(16) as threads:
            statuses = Counter(
                threads.map(lambda n: service.http.post("/tune", json=_shape(n)).status_code, range(1, 65))
            )
            read = service.http.get("/jobs").status_code
        answers = [_post(service, number) for number in range(2000, 2010)]
        service.kill()
    serve = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--db", str(database)]
    with _only_readable(database):
        started = subprocess.run(
            [*_without_privileges(), *serve], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    said = started.stderr.strip()
    print(f"a database that may only be read: {dict(statuses)}; a service that starts on it: {said}")
    clear = started.returncode != 0 and "may write" in said and "\n" not in said
    return _told("then writable again", answers, database) and statuses.keys() <= {202, 503} and read == 200 and clear


def _clock(database: Path) -> bool:
    """By a day, in the middle of a job that is followed; the token was made before, and holds."""
    clock = database.with_name("clock")
    clock.write_text("0")
    with open_store(database) as store:
        secret = store.create_token("me", Scope.TUNE, expires_at=time.time() + 3600)[1]
    with served(database, trial_s=0.05, clock=str(clock), hosts=["autotune.test"]) as service:
        service.http.headers["Authorization"] = f"Bearer {secret}"
        job = service.http.post("/tune", json={**body(), "trials": 60}).json()
        until(lambda: service.http.get(f"/jobs/{job['id']}").json()["progress"].get("trials", 0) > 5)
        clock.write_text("-86400")
        answers = [_post(service, number) for number in range(1, 11)]
        with service.http.stream("GET", f"/jobs/{job['id']}/events") as stream:
            streamed = any(line == "event: end" for line in stream.iter_lines())
        states = {
            ended(service.http, name, PATIENCE_S)["state"] for name in (job["id"], *(name for _, name in answers))
        }
        service.kill()
    with open_store(database) as store:
        kept = len(store.measurements(key_of()))
    print(f"a clock that jumps back by a day: {kept} of 60 measurements, jobs {', '.join(sorted(states))}")
    return _told("jobs posted after the jump", answers, database) and streamed and kept == 60 and states == {"done"}


def _revoked(database: Path) -> bool:
    """Forty streams of one token end within seconds of its end, and say why; what it had queued goes on."""
    with open_store(database) as store:
        token, secret = store.create_token("watcher", Scope.TUNE)
        other = store.create_token("other", Scope.TUNE)[1]
    with served(database, trial_s=0.02, hosts=["autotune.test"]) as service, ThreadPoolExecutor(40) as threads:
        service.http.headers["Authorization"] = f"Bearer {secret}"
        answers = [([202], service.http.post("/tune", json={**body(), "trials": 400}).json()["id"])]
        job, opened = answers[0][1], threading.Semaphore(0)

        def watch(_: int) -> bool:
            with service.http.stream("GET", f"/jobs/{job}/events", timeout=60) as stream:
                lines = stream.iter_lines()
                next(lines)
                opened.release()
                return "event: refused" in list(lines)

        watching = [threads.submit(watch, number) for number in range(40)]
        for _ in watching:
            opened.acquire(timeout=30)
        with open_store(database) as store:
            store.revoke_token(token.id)
        started = time.monotonic()
        refused = sum(future.result() for future in watching)
        taken, after = time.monotonic() - started, service.http.get("/jobs").status_code
        service.http.headers["Authorization"] = f"Bearer {other}"
        goes_on = ended(service.http, job, PATIENCE_S)["state"] == "done"
        service.kill()
    print(f"a token revoked in mid-stream: {refused} of 40 streams refused within {taken:.1f} s, then {after}")
    return _told("its job goes on", answers, database) and refused == 40 and after == 401 and goes_on


def _told(what: str, answers: Sequence[tuple[list[int], str]], database: Path | str) -> bool:
    acknowledged = {job for _, job in answers if job}
    lost = acknowledged - _kept(database)
    statuses = Counter(status for answered, _ in answers for status in answered)
    said = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
    print(f"{what}: {said}; {len(acknowledged)} of {len(answers)} accepted in the end, {len(lost)} lost", flush=True)
    return not lost and len(acknowledged) == len(answers) and statuses.keys() <= {202, 429, 503}


if __name__ == "__main__":
    raise SystemExit(main())
