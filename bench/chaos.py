"""Random SIGKILLs over everything that tunes; afterwards nothing may be lost, counted twice or stuck.

    python bench/chaos.py --kills 200 --database postgresql     service, two workers, their children, PostgreSQL
    python bench/chaos.py --kills 200 --database sqlite         service and its child, on one machine
    python bench/chaos.py --kills 12 --shapes 3 --database sqlite --seed 1
    python bench/chaos.py --kills 200 --database postgresql --deadline 540     all of it within 540 s

Real processes under a supervisor that starts them again. A witness reads the database all the while, and the workers'
logs say what was acknowledged to them. The last line is the verdict; exit status 1 if anything does not hold. Needs no
root; PG_BIN and PG_USER name PostgreSQL's programs and user (bench/cluster.py).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from cluster import Postgres, Process, StuckError, autotune, work_folder
from sqlalchemy import create_engine, text

from db import DatabaseError, SqlStore, open_store

TICK_S = 0.1
PATIENT = 0.5
"""This share of the kills waits until something more was measured, or nothing ever would be; others come in bursts."""
START_S, END_S = 120.0, 1800.0
RAGE = 0.55
"""This share of a deadline is for the kills; the rest is for the jobs to end, and to look at what is left."""
LOOK_S = 30.0
"""What looking takes, at the most: of a deadline it is kept back from the jobs."""
CHILD = "autotune.child"
DELIVERED = re.compile(r"task (\w+), attempt (\d+): delivered")
ENDED = ("done", "failed", "cancelled")


@dataclass
class Witness:
    """What was seen to be kept: it must be there at the end."""

    attempts: set[str] = field(default_factory=set)
    jobs: set[str] = field(default_factory=set)


class Chaos:
    """The processes, and who may be killed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder, self.options, self.random = folder, options, random.Random(options.seed)
        self.postgres = Postgres(folder) if options.database == "postgresql" else None
        self.database = self.postgres.url if self.postgres else str(folder / "chaos.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environ = {"DEV": "CPU", "AUTOTUNE_LOCKS": str(folder / "locks")}
        serve = autotune("serve", "--port", str(self.port), "--db", self.database)
        self.service = Process("service", serve, folder / "service.log", environ=environ)
        count = 2 if self.postgres else 0
        work = autotune("worker", "--device", "CPU", "--db", self.database)
        self.workers = [
            Process(
                f"worker {number}", work, folder / f"worker-{number}.log",
                environ={**environ, "AUTOTUNE_LOCKS": str(folder / f"locks-{number}")},  # as on another machine
            )
            for number in range(1, count + 1)
        ]  # fmt: skip
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10.0)
        self.witness, self.killed = Witness(), Counter[str]()
        self.dying = set[int]()
        """Process ids that were sent SIGKILL: one that is not gone yet is not killed, and counted, again."""
        self.begun = time.monotonic()

    def left_s(self, share: float) -> float:
        """Seconds until that share of the deadline is over; without one, for ever."""
        deadline_s: float = self.options.deadline
        return share * deadline_s - (time.monotonic() - self.begun) if deadline_s else float("inf")

    @property
    def kills(self) -> int:
        """How many there were."""
        return sum(self.killed.values())

    @property
    def processes(self) -> list[Process]:
        return [*([self.postgres] if self.postgres else []), self.service, *self.workers]

    def tend(self) -> None:
        """Start again what has ended."""
        for process in self.processes:
            process.tend()

    def start(self) -> None:
        """Everything, until the service answers."""
        if self.postgres is not None:
            self.postgres.create()
        self.wait("the service to answer", lambda: self.ask("GET", "/readyz") is not None, START_S)

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float) -> None:
        """Raises StuckError if it does not come true in time."""
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > give_up_at:
                raise StuckError(f"waited {timeout_s:.0f} s in vain for {what}")
            self.tend()
            time.sleep(TICK_S)

    def ask(self, method: str, path: str, **body: object) -> dict[str, object] | None:
        """The service's answer, None while it is away or cannot work."""
        with contextlib.suppress(httpx.HTTPError):
            response = self.http.request(method, path, json=body or None)
            if response.status_code < 500:
                return dict(response.raise_for_status().json())
        return None

    def post(self) -> None:
        """Ask for all shapes, until it is acknowledged."""
        shapes = [
            {"input": [1, 4 + index, 8, 8], "weight": [4, 4 + index, 3, 3], "padding": 1, "device": "CPU"}
            for index in range(self.options.shapes)
        ]

        def acknowledged() -> bool:
            job = self.ask("POST", "/tune", shapes=shapes, trials=self.options.trials)
            if job is not None:
                self.witness.jobs.add(str(job["id"]))
            return job is not None

        self.wait("a job to be taken", acknowledged, START_S)

    def kill_one(self, patience_s: float) -> None:
        """SIGKILL to somebody who lives, of a kind that is waited for."""
        kinds = ["service", "child"] + (["worker", "child", "postgresql"] if self.postgres else [])
        kind, give_up_at = self.random.choice(kinds), time.monotonic() + patience_s
        while not self._kill(kind):
            if time.monotonic() > give_up_at:
                kind = self.random.choice(kinds)
            self.tend()
            self.look()
            time.sleep(TICK_S)

    def _kill(self, kind: str) -> bool:
        if kind == "child":
            found = [child for process in self.processes for child in process.children(CHILD)]
            children = [child for child in found if child.pid not in self.dying]
            if not children or not self._ended(self.random.choice(children)):
                return False
        elif kind == "postgresql":
            assert self.postgres is not None
            backends = self.postgres.children("postgres")
            whole = self.random.random() < 0.5 or not backends
            if not self._ended(self.postgres if whole else self.random.choice(backends)):
                return False
            for backend in backends if whole else ():  # which has lost its head
                self._ended(backend)
        else:
            process = self.service if kind == "service" else self.random.choice(self.workers)
            if not self._ended(process):
                return False
        self.killed[kind] += 1
        return True

    def _ended(self, process: Process | psutil.Process) -> bool:
        """SIGKILL; False if there was nobody to be killed any more."""
        if process.pid in self.dying:
            return False
        try:
            if isinstance(process, Process):
                sent = process.signal(signal.SIGKILL)
            else:
                process.kill()
                sent = True
        except psutil.Error:  # it was quicker
            return False
        self.dying.add(process.pid)
        return sent

    def look(self) -> None:
        """What the database holds now, it must hold for ever."""
        with contextlib.suppress(Exception):  # it was killed just now
            self.witness.attempts |= read_attempts(self.database)

    def ended(self) -> bool:
        """Whether every job has."""
        answer = self.ask("GET", "/jobs?limit=1000")
        jobs = answer["jobs"] if answer is not None else None
        return isinstance(jobs, list) and all(job["state"] in ENDED for job in jobs)

    def acknowledged(self) -> set[tuple[str, int]]:
        """What workers were told is kept."""
        found = (DELIVERED.findall(worker.log.read_text(errors="replace")) for worker in self.workers)
        return {(task, int(attempt)) for said in found for task, attempt in said}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was killed, what was kept and what does not hold."""
    options = _options(arguments)
    with work_folder(options.keep, "chaos-") as folder:
        chaos = Chaos(options, folder)
        try:
            faults = _played(chaos)
        except StuckError as error:
            faults = [str(error), *_last_words(chaos)]
        finally:
            for process in reversed(chaos.processes):
                process.end(5.0)
    for fault in faults:
        print(f"DOES NOT HOLD: {fault}")
    run = f"{options.database}, {chaos.kills} kills, {options.shapes} shapes, seed {options.seed}"
    verdict = "everything holds" if not faults else f"{len(faults)} faults"
    print(f"verdict after {time.monotonic() - chaos.begun:.0f} s ({run}): {verdict}")
    return 1 if faults else 0


def _played(chaos: Chaos) -> list[str]:
    """From the first process to the last; what does not hold. Raises StuckError."""
    chaos.start()
    chaos.post()
    _rage(chaos)
    print(f"{chaos.kills} kills in {time.monotonic() - chaos.begun:.0f} s: {_counted(chaos.killed)}", flush=True)
    calm = time.monotonic()
    chaos.wait("every job to end", chaos.ended, min(END_S, max(0.0, chaos.left_s(1.0) - LOOK_S)))
    print(f"every job has ended {time.monotonic() - calm:.0f} s after the last kill", flush=True)
    chaos.look()
    for process in [chaos.service, *chaos.workers]:
        process.end()
    faults = _faults(chaos)
    for process in chaos.processes:
        ends = {f"status {status}": count for status, count in process.exits.items()}
        print(f"{process.name} ended {sum(process.exits.values())} times: {_counted(ends)}")
    return faults


def _last_words(chaos: Chaos) -> list[str]:
    """What jobs say of themselves, and the end of each log, for whoever finds out why."""
    answer = chaos.ask("GET", "/jobs?limit=10")
    jobs = answer["jobs"] if answer is not None else []
    said = [
        f"job {job['id']} is {job['state']}, {job['done_keys']} shapes done, {job['progress']}"[:600]
        for job in (jobs if isinstance(jobs, list) else [])
        if job["state"] not in ENDED
    ]
    for process in chaos.processes:
        print("\n".join([f"-- the end of {process.name}'s log", *process.tail()]))
    return said


def _rage(chaos: Chaos) -> None:
    options = chaos.options
    while chaos.kills < options.kills:
        seen, patient = len(chaos.witness.attempts), chaos.random.random() < PATIENT
        # where a deadline is near, nobody waits for longer than it allows all that are still to come
        share_s = max(0.0, chaos.left_s(RAGE)) / (options.kills - chaos.kills)
        now = time.monotonic()
        least = now + min(chaos.random.expovariate(1.0 / options.pace), share_s)
        most = now + min(options.patience, 3.0 * share_s)
        while time.monotonic() < least or (patient and len(chaos.witness.attempts) == seen and time.monotonic() < most):
            chaos.tend()
            chaos.look()
            time.sleep(TICK_S)
        chaos.kill_one(2.0 * min(options.pace, share_s) + max(0.0, most - time.monotonic()))
        if chaos.left_s(RAGE) > 0 and chaos.ended():  # faster than we are: more of the same
            chaos.post()
        if chaos.kills % 10 == 0:
            print(
                f"{time.monotonic() - chaos.begun:.0f} s: {chaos.kills} kills, "
                f"{len(chaos.witness.attempts)} measurements seen",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def _faults(chaos: Chaos) -> list[str]:
    """What does not hold, one line each."""
    with open_store(chaos.database) as store:
        faults = [f"integrity: {fault}" for fault in store.check()]
        faults += _lost(chaos, store) + _twice(chaos) + _stuck(store)
        counts = store.counts()
        failures = Counter(failure for job in store.jobs(limit=1000) for failure in job.progress.get("failures", []))
    engine = create_engine(_engine_url(chaos.database))
    with engine.connect() as connection:
        statuses = connection.execute(text("SELECT status, count(*) FROM measurements GROUP BY status")).all()
        stale = connection.execute(text("SELECT count(*) FROM attempts WHERE NOT counted")).scalar_one()
    engine.dispose()
    print(
        f"{counts['jobs']} jobs, {counts['measurements']} measurements ({_counted(dict(map(tuple, statuses)))}), "
        f"{counts['winners']} winners, {counts['tasks']} tasks, {counts['attempts']} attempts, {stale} of them stale"
    )
    for failure, count in failures.most_common(3):
        print(f"a shape failed, {count} times: {failure[:200]}")
    if chaos.postgres is not None:
        faults += chaos.postgres.damage()
    return faults


def _lost(chaos: Chaos, store: SqlStore) -> list[str]:
    """Of measurements that were seen, jobs that were taken, results that workers were told are kept."""
    faults, recorded = [], read_attempts(chaos.database)
    missing = chaos.witness.attempts - recorded
    if missing:
        faults.append(f"{len(missing)} measurements were in the database and are not any more")
    unknown = [job for job in chaos.witness.jobs if store.job(job) is None]
    if unknown:
        faults.append(f"{len(unknown)} jobs were taken and are not known any more")
    for task, attempt in chaos.acknowledged():
        found = store.task(task)
        kept = found is not None and (found.attempt, str(found.state)) == (attempt, "done")
        if not kept or any(m.attempt not in recorded for m in found.measurements):
            faults.append(f"a worker was told that attempt {attempt} at task {task} counts, and it does not")
    return faults


def _twice(chaos: Chaos) -> list[str]:
    """Attempts, tasks and winners that count more than once; late answers that count at all."""
    queries = {
        "measurements with one attempt": "SELECT attempt FROM measurements GROUP BY attempt HAVING count(*) > 1",
        "tasks with two results": "SELECT task_id FROM attempts WHERE counted GROUP BY task_id HAVING count(*) > 1",
        "keys with two winners": "SELECT key_id FROM winners WHERE is_current GROUP BY key_id HAVING count(*) > 1",
    }
    engine = create_engine(_engine_url(chaos.database))
    with engine.connect() as connection:
        found = {what: len(connection.execute(text(query)).all()) for what, query in queries.items()}
        late = connection.execute(text("SELECT result FROM attempts WHERE NOT counted")).scalars().all()
    engine.dispose()
    names = {name for result in late for name in re.findall(r'"attempt":"(\w+)"', result)}
    counted = names & read_attempts(chaos.database)
    found["late answers that were counted"] = len(counted)
    return [f"{what}: {count}" for what, count in found.items() if count]


def _stuck(store: SqlStore) -> list[str]:
    """Jobs that have not ended, keys that are nobody's, and shapes that no winner was found for without a reason."""
    faults = []
    for job in store.jobs(limit=1000):
        if not job.state.ended or any(not state.ended for state in job.states):
            faults.append(f"job {job.id} is {job.state}, its keys {Counter(map(str, job.states))}")
        for key, state in zip(job.keys, job.states, strict=True):
            if str(state) == "done" and store.winner(key) is None:
                faults.append(f"job {job.id} is done with {key}, which has no winner")
    return faults


def read_attempts(database: str) -> set[str]:
    """All that are recorded, by a connection of its own."""
    engine = create_engine(_engine_url(database))
    try:
        with engine.connect() as connection:
            return set(connection.execute(text("SELECT attempt FROM measurements")).scalars())
    finally:
        engine.dispose()


def _engine_url(database: str) -> str:
    return database if "://" in database else f"sqlite:///file:{database}?mode=ro&uri=true"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how many (200)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--shapes", type=int, default=30, metavar="N", help="in one job (30)")
    parser.add_argument("--trials", type=int, default=4, metavar="N", help="candidates per shape (4)")
    parser.add_argument(
        "--pace", type=float, default=1.0, metavar="SECONDS", help="between kills, on average, at the least (1)"
    )
    parser.add_argument("--patience", type=float, default=120.0, metavar="SECONDS",
                        help="how long half of them wait for progress, at the most (120)")  # fmt: skip
    parser.add_argument("--deadline", type=float, default=0.0, metavar="SECONDS",
                        help="for all of it: the kills then come as fast as that takes (0: none)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="FOLDER", help="a new folder for database and logs (default: thrown away)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DatabaseError as error:
        raise SystemExit(f"DOES NOT HOLD: {error}") from None
