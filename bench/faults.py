"""Faults at length: 10,000 jobs posted at once, a database locked for 30 s, a disk that is full.

    python bench/faults.py
    python bench/faults.py --jobs 500 --locked 3

A service with a scripted search (tests/served.py) on a database of its own. Every request must be answered, with 202,
or with 429 or 503 and when to try again; what was answered with 202 must be in the database after `kill -9`.
Exit status 1 if anything is lost or an answer is another.
"""

from __future__ import annotations

import argparse
import resource
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from served import Served, body, served  # noqa: E402

from db import open_store  # noqa: E402

CONNECTIONS = 64
RETRIES = 20
UNLIMITED = resource.RLIM_INFINITY


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--locked", type=float, default=30.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        held = [
            _many(Path(directory) / "many.db", options.jobs),
            _locked(Path(directory) / "locked.db", options.locked),
            _full(Path(directory) / "full.db"),
        ]
    return 0 if all(held) else 1


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


def _kept(database: Path) -> set[str]:
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


def _told(what: str, answers: Sequence[tuple[list[int], str]], database: Path) -> bool:
    acknowledged = {job for _, job in answers if job}
    lost = acknowledged - _kept(database)
    statuses = Counter(status for answered, _ in answers for status in answered)
    said = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
    print(f"{what}: {said}; {len(acknowledged)} of {len(answers)} accepted in the end, {len(lost)} lost", flush=True)
    return not lost and len(acknowledged) == len(answers) and statuses.keys() <= {202, 429, 503}


if __name__ == "__main__":
    raise SystemExit(main())
