"""Makes tests/data/schema_NNNN_*.sql: a database as the code that had that schema wrote it.

    python tests/released.py 0007

Checks out the last commit before the next migration into a folder of its own, runs `fill` there against a fresh
database of each kind, and dumps them. PostgreSQL is as for the tests, see databases.py. `fill` says what there was.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA, VERSIONS = ROOT / "tests" / "data", "db/migrations/versions"
NOISE = re.compile(r"^(--.*|\\(un)?restrict .*|SET transaction_timeout.*|)\n", re.MULTILINE)
"""What another pg_dump would write differently, and empty lines."""


def fill(address: str, schema: int) -> None:
    """Runs in the checkout of that schema: what is imported here is that release's."""
    from autotune.job import Budget
    from db import open_store
    from tests.values import CPU, a_key, a_measurement, a_winner

    with open_store(address, clock=lambda: 1000.0) as store:
        assert store.revision() == f"{schema:04}"
        store.record(a_measurement("one"))
        store.record(a_measurement("two", a_key(8), 2.0))
        store.decide(a_winner(tile=2))
        store.decide(a_winner(tile=4, decided_at=2.0))
        store.decide(a_winner(a_key(8), state="pinned"))
        store.submit([a_key()], Budget(trials=3))
        done = store.claim("old")
        store.finish(done.id if schema < 3 else done)
        store.submit([a_key(), a_key(8)], Budget(seconds=60.0))
        store.claim("killed")
        options = {}
        if schema >= 3:
            from autotune.job import Terms

            options["terms"] = Terms(priority=-1)
        if schema >= 4:
            from db import Scope

            store.create_token("me", Scope.TUNE)
        if schema >= 6:
            from autotune.job import Submitter

            options["submitter"] = Submitter(name="token:1")
        store.submit([a_key(16)], Budget(trials=1), **options)
        if schema >= 5:
            from autotune.fleet import Worker
            from autotune.runner import Request
            from db import queue
            from strategies.candidate import Candidate

            queue.defer = lambda *_: None  # the tables hold the truth, the queue is made anew
            store.register(Worker(name="w", device=CPU))
            names = [
                store.post("q", Request(key=a_key(32), candidates=(Candidate.of("direct"),), rounds=rounds))
                for rounds in (1, 2)
            ]
            assert store.begin(names[0], 1, "w")
            assert store.deliver(names[0], 1, "w", [a_measurement("delivered", a_key(32), 1000.0)])
        if schema >= 7:
            store.unfit("w", "its device fails a test")
        if schema >= 8:
            store.expect_writable()


def dumped(kind: str, address: str) -> str:
    """The database as SQL that loads into an empty one."""
    if kind == "sqlite":
        connection = sqlite3.connect(address)
        try:
            return "\n".join(connection.iterdump()) + "\n"
        finally:
            connection.close()
    program = max(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    command = [program, "--inserts", "--no-owner", "--no-privileges", address.replace("+psycopg", "")]
    return NOISE.sub("", subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout)


def last_commit(schema: int) -> str:
    """The last one that had this schema: the parent of the one that brought the next, else what is checked out."""
    following = [path.name for path in (ROOT / VERSIONS).glob(f"v{schema + 1:04}_*.py")]
    if not following:
        return "HEAD"
    log = ["git", "log", "--diff-filter=A", "--format=%H", "--", f"{VERSIONS}/{following[0]}"]
    return subprocess.run(log, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout.split()[-1] + "^"


def main(schema: int) -> None:
    """Write both dumps."""
    sys.path.insert(0, str(ROOT / "tests"))
    from databases import KINDS, new_database

    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        checkout.mkdir()
        archive = subprocess.Popen(["git", "archive", last_commit(schema)], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", checkout], stdin=archive.stdout, check=True)
        for kind in KINDS:
            with new_database(kind, Path(folder)) as address:
                command = [sys.executable, str(Path(__file__)), str(schema), address]
                subprocess.run(command, cwd=checkout, check=True, env={**os.environ, "PYTHONPATH": str(checkout)})
                (DATA / f"schema_{schema:04}_{kind}.sql").write_text(dumped(kind, address))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        fill(sys.argv[2], int(sys.argv[1]))
    else:
        main(int(sys.argv[1]))
