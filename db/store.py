"""The store: one short transaction per method, over the functions in `measurements`, `winners` and `jobs`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from autotune.fleet import Refusal, Task, Worker, this_release
from autotune.job import Budget, Claim, Job, JobState, Submitter, Terms, Waiting
from autotune.measurement import Measurement
from autotune.runner import Request
from autotune.winner import Winner, WinnerState
from db import (
    changes,
    figures,
    jobs,
    lists,
    measurements,
    migrate,
    probe,
    queue,
    retention,
    rights,
    tasks,
    tokens,
    winners,
    workers,
)
from db.address import Dialect, dialect_for
from db.codec import decode, plain
from db.errors import DatabaseBusyError, DatabaseError, DatabaseFullError, DatabaseUnreachableError
from db.lookup_cache import LookupCache
from db.models import Base, DeviceRow
from db.sqlite import WRITE
from db.tokens import Scope, Token
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import JsonObject

BUSY_TIMEOUT_S = 10.0
MERGED_AT_ONCE = 2000
"""Rows per transaction of `merge`: others may write in between."""
AT_JOBS = 4
"""Of the connections to a server, which lanes may use at once to change jobs: those that work on one job wait for each
other there, and as many as there are workers would leave none for anybody else."""
FULL_S = 30.0
"""So long a server is taken for full that said so: what needs no room, as the probe, it still writes."""


class SqlStore:
    """`autotune.store.Store` on SQLite or PostgreSQL; see there for what each method promises.

    Every method may raise DatabaseError, whose message is one line for the user. Threads share one store; a forked
    child may go on using it.
    """

    def __init__(self, dialect: Dialect, clock: Callable[[], float] | None = None) -> None:
        """Use `open_store`. `clock` gives seconds since the epoch, by default the one that all who share it share."""
        self._dialect = dialect
        self._clock = clock
        self._engine: Engine = dialect.connect()
        self._pid = os.getpid()
        self._writers, self._at_jobs = threading.Lock(), threading.Semaphore(AT_JOBS)
        self._full: tuple[float, DatabaseFullError] | None = None
        self._counter, self._lookups = changes.Counter(self._engine), LookupCache()
        try:
            with self._explained():
                migrate.prepare(self._engine, dialect)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return str(self._dialect)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back every connection. Idempotent; the store opens new ones if it is used again."""
        self._counter.close()
        self._engine.dispose()

    # Measurements

    def record(self, measurement: Measurement) -> bool:
        with self._writing() as connection:
            return measurements.record(connection, measurement)

    def measurements(self, key: ConvKey) -> list[Measurement]:
        with self._reading() as connection:
            return measurements.measurements(connection, key)

    def prune(self, before: float, *, should_stop: Callable[[], bool] = lambda: False) -> dict[str, int]:
        """Remove what is older than `before` (epoch seconds); how much of what.

        What is at work stays, and so do of measurements the last of each candidate of a key on a device, the last that
        went well, and what a current winner rests on; of former winners those superseded later than that or pinned,
        revoked or banned; of workers the last of each device. Workers that have
        not been heard of for a day go in any case, but the last twenty of each device. In small transactions: others
        may write in between, and `should_stop` is asked.
        """
        return retention.prune(self._writing, retention.When(before, self.now()), should_stop)

    def prunable(self, before: float) -> dict[str, int]:
        """How much of what `prune` would remove."""
        with self._reading() as connection:
            return retention.prunable(connection, retention.When(before, self._now(connection)))

    def now(self) -> float:
        """Seconds since the epoch, by the clock that all who share the database share."""
        with self._reading() as connection:
            return self._now(connection)

    # Winners

    def decide(self, winner: Winner) -> int:
        with self._writing() as connection:
            return winners.decide(connection, winner)

    def winner(self, key: ConvKey) -> Winner | None:
        with self._reading() as connection:
            return winners.winner(connection, key)

    def key(self, digest: str) -> ConvKey | None:
        """A key that anything here is about, as it was first seen."""
        with self._reading() as connection:
            return lists.key(connection, digest)

    def current_winner(self, digest: str) -> tuple[int, Winner] | None:
        """The current winner of a key with its id, whatever its state."""
        with self._reading() as connection:
            return lists.current_winner(connection, digest)

    def winner_by_id(self, winner_id: int) -> Winner | None:
        with self._reading() as connection:
            return winners.winner_by_id(connection, winner_id)

    def merge(self, incoming: Iterable[Winner]) -> int:
        kept, rest = 0, iter(incoming)
        while part := list(islice(rest, MERGED_AT_ONCE)):
            with self._writing() as connection:
                kept += winners.merge(connection, part)
        return kept

    def history(self, key: ConvKey) -> list[tuple[int, Winner]]:
        with self._reading() as connection:
            return winners.history(connection, key)

    def lookup(self, digests: Sequence[str]) -> dict[str, Winner]:
        found = self.lookup_json(digests)
        return {digest: Winner.from_json(decode(text)) for digest, text in found.items()}

    def lookup_json(self, digests: Sequence[str]) -> dict[str, str]:
        return self._lookups.get(digests, self.changes(), self._find)

    def changes(self) -> int:
        try:
            return self._counter.read()
        except Exception:  # noqa: BLE001 - a server that was restarted, a lock: the usual way says what is wrong
            with self._reading() as connection:
                return changes.count(connection)

    @property
    def reads_at_once(self) -> bool:
        """Whether `changes` takes microseconds: so for a file, but not where a server must be asked."""
        return self._engine.dialect.name == "sqlite"

    def winners(self, *, device: str | None = None, limit: int = 1000, offset: int = 0) -> list[tuple[int, Winner]]:
        with self._reading() as connection:
            return winners.winners(connection, device, limit, offset)

    def set_state(self, winner_id: int, state: WinnerState) -> Winner:
        with self._writing() as connection:
            return winners.set_state(connection, winner_id, state)

    # Jobs

    def submit(
        self, keys: Sequence[ConvKey], budget: Budget, terms: Terms | None = None, *, retry_of: str = "",
        submitter: Submitter | None = None,
    ) -> Job:  # fmt: skip
        with self._writing() as connection:
            return jobs.submit(
                connection, keys, budget, terms or Terms(), retry_of, submitter or Submitter(), self._now(connection)
            )

    def job(self, job_id: str) -> Job | None:
        with self._reading() as connection:
            return jobs.job(connection, job_id)

    def jobs(self, *, limit: int = 100, offset: int = 0, state: JobState | None = None) -> list[Job]:
        with self._reading() as connection:
            return jobs.jobs(connection, limit, offset, state)

    def listed_job(self, job_id: str) -> Job | None:
        """As `job`, with its first keys only: for whoever asks again and again."""
        with self._reading() as connection:
            return lists.job(connection, job_id)

    def named_jobs(self, names: Collection[str]) -> dict[str, Job]:
        """Of those ids the jobs that there are, each with its first keys only."""
        with self._reading() as connection:
            return {job.id: job for job in lists.named(connection, names)}

    def listed_jobs(self, *, limit: int = 100, offset: int = 0, state: JobState | None = None) -> list[Job]:
        """As `jobs`, each with its first keys only."""
        with self._reading() as connection:
            return lists.jobs(connection, limit, offset, state)

    def waiting(self) -> list[Waiting]:
        with self._reading() as connection:
            return jobs.waiting(connection)

    def claim(self, owner: str, *, target: str | None = None, busy: bool = False) -> Claim | None:
        with self._at_job() as connection:
            return jobs.claim(connection, owner, target, busy, self._now(connection))

    def beat(self, owners: Collection[str]) -> None:
        with self._writing() as connection:
            jobs.beat(connection, owners, self._now(connection))

    def recover(self, *, idle_s: float = 0.0) -> int:
        with self._writing() as connection:
            return jobs.recover(connection, idle_s, self._now(connection))

    def expire(self) -> int:
        with self._writing() as connection:
            return jobs.expire(connection, self._now(connection))

    def release(self, claim: Claim) -> None:
        with self._at_job() as connection:
            jobs.release(connection, claim)

    def progress(self, claim: Claim, progress: JsonObject) -> bool:
        with self._at_job() as connection:
            return jobs.progress(connection, claim, progress, self._now(connection))

    def finish(self, claim: Claim, error: str = "") -> None:
        with self._at_job() as connection:
            jobs.finish(connection, claim, error, self._now(connection))

    def cancel(self, job_id: str) -> Job:
        with self._writing() as connection:
            return jobs.cancel(connection, job_id, self._now(connection))

    # Tokens

    def create_token(self, name: str, scope: Scope, *, expires_at: float | None = None) -> tuple[Token, str]:
        """A new token and its secret, which is kept nowhere. Raises ValueError for a name that is none."""
        with self._writing() as connection:
            return tokens.create(connection, name, scope, expires_at, self._now(connection))

    def tokens(self) -> list[Token]:
        """All that were ever made, oldest first."""
        with self._reading() as connection:
            return tokens.tokens(connection)

    def token(self, secret_digest: str) -> Token | None:
        """The one whose secret has that digest (`db.tokens.digest`), whether it holds or not."""
        with self._reading() as connection:
            return tokens.token(connection, secret_digest)

    def revoke_token(self, token_id: int) -> Token:
        """Withdraw it for good. Raises LookupError for an unknown id."""
        with self._writing() as connection:
            return tokens.revoke(connection, token_id, self._now(connection))

    # Workers and what they are asked for (PostgreSQL)

    def prepare_queue(self) -> None:
        """Set up the queue that workers listen to; one process at a time. Raises DatabaseError where there is none."""
        self._expect_server()
        with self._writing() as connection:
            self._dialect.lock_migrations(connection)
            queue.prepare(connection)

    def grant_rights(self) -> None:
        """What other roles may do, of those that there are; for the owner of the database."""
        self._expect_server()
        with self._writing() as connection:
            self._dialect.lock_migrations(connection)
            rights.grant(connection)

    def expect_queue(self) -> None:
        """Raises DatabaseError, which says what to do, if there is no queue."""
        self._expect_server()
        with self._reading() as connection:
            queue.expect(connection)

    def register(self, worker: Worker) -> None:
        """Say who a worker is."""
        with self._writing() as connection:
            workers.register(connection, worker, self._now(connection))

    def heard(self, worker: str, *, in_use: bool, task: tuple[str, int] | None = None) -> bool:
        """A worker lives; whether the attempt at a task that it works on still counts. Raises UnknownWorkerError."""
        with self._writing() as connection:
            now = self._now(connection)
            workers.heard(connection, worker, in_use, now)
            return task is None or tasks.beat(connection, task, worker, now)

    def unfit(self, worker: str, reason: str) -> None:
        """A worker takes no more work, and why."""
        with self._writing() as connection:
            workers.unfit(connection, worker, reason)

    def retire(self, worker: str) -> None:
        """A worker has ended in good order."""
        with self._writing() as connection:
            workers.retire(connection, worker, self._now(connection))

    def workers(self) -> list[Worker]:
        """Who was heard of last comes first."""
        with self._reading() as connection:
            return workers.workers(connection, self._now(connection))

    def post(self, queue: str, request: Request, *, idle: bool = False) -> str:
        """Ask the workers of a queue for a measurement: the task's id. The same request, still open, is that task.
        `idle`: only one whose device no program uses may begin it."""
        with self._writing() as connection:
            now = self._now(connection)
            return tasks.post(connection, queue, request, release=this_release(), idle=idle, now=now)

    def task(self, task_id: str) -> Task | None:
        """As it stands, with the measurements of the attempt that counted."""
        return self.tasks([task_id]).get(task_id)

    def tasks(self, task_ids: Collection[str]) -> dict[str, Task]:
        """Of those ids the tasks that there are, each as `task` has it."""
        with self._reading() as connection:
            return {task.id: task for task in tasks.tasks(connection, task_ids)}

    def begin(
        self, task_id: str, attempt: int, worker: str, *, release: str | None = None, in_use: bool = False
    ) -> Request | Refusal | None:
        """Take a task; None if that attempt is not the current one, or begun by another; a Refusal, which others see as
        the task's `waiting`, if this worker must not begin it."""
        with self._writing() as connection:
            now, mine = self._now(connection), this_release() if release is None else release
            return tasks.begin(connection, task_id, attempt, worker, release=mine, in_use=in_use, now=now)

    def deliver(
        self, task_id: str, attempt: int, worker: str, measured: Sequence[Measurement], error: str = ""
    ) -> bool:
        """Keep what an attempt gave. True: it counts, and its measurements are recorded; False: it is evidence. Times
        of a worker whose clock is wrong are corrected by the server's."""
        with self._writing() as connection:
            now = self._now(connection)
            skew_s = now - time.time() if self._clock is None else 0.0
            return tasks.deliver(connection, (task_id, attempt), worker, measured, error, now=now, skew_s=skew_s)

    def reassign(self, task_id: str, attempt: int, *, most_lost: int | None = None, waiting: str = "") -> bool:
        """Give a running attempt's work to another worker; False if it is not the current one any more. With
        `most_lost` its worker is taken for lost; a task that has lost so many is given to nobody any more. With
        `waiting`, why its worker could not do it, it is offered to nobody until it is asked for again."""
        with self._writing() as connection:
            now = self._now(connection)
            return tasks.reassign(connection, task_id, attempt, now=now, most_lost=most_lost, waiting=waiting)

    def remind(self, task_id: str) -> None:
        """Queue a task once more if it still waits."""
        with self._writing() as connection:
            tasks.remind(connection, task_id)

    def withdraw(self, task_id: str) -> None:
        """Nobody waits for a task any more."""
        with self._writing() as connection:
            tasks.withdraw(connection, task_id, self._now(connection))

    @property
    def queue_conninfo(self) -> str:
        """The server's address for procrastinate, password included: never printed."""
        self._expect_server()
        return queue.conninfo(self._engine.url)

    @property
    def queue_options(self) -> str:
        """libpq's `options` for it: what the server holds our sessions to."""
        self._expect_server()
        return self._dialect.session_options()

    @property
    def serves_fleet(self) -> bool:
        """Whether workers elsewhere can share it: a server, not a file."""
        return self._engine.dialect.name == "postgresql"

    def _expect_server(self) -> None:
        if not self.serves_fleet:
            raise DatabaseUnreachableError(
                f"expected a PostgreSQL server, which workers share, found the file {self}: "
                f"name one with --db postgresql+psycopg://user@host/name"
            )

    # The database itself

    def devices(self, name: str, limit: int) -> list[DeviceSpec]:
        """Those of this name that a key or a measurement names, who was first seen last comes last: `limit` of them."""
        with self._reading() as connection:
            latest = select(DeviceRow.spec).where(DeviceRow.name == plain(name)).order_by(DeviceRow.id.desc())
            specs = connection.execute(latest.limit(limit)).scalars().all()
            return [DeviceSpec.from_json(decode(spec)) for spec in reversed(specs)]

    def revision(self) -> str:
        """The schema's revision: this release's."""
        with self._reading() as connection:
            return migrate.revision(connection) or ""

    def migrate_back(self, revision: str) -> None:
        """To an older schema (four digits), for an older release: what that has no place for is lost, and this release
        upgrades it again as soon as it opens it. Nobody may use the database meanwhile, this store no more."""
        with self._writing() as connection:
            migrate.go_back(connection, self._dialect, revision)

    def counts(self) -> dict[str, int]:
        """Rows per table, by the table's name."""
        with self._reading() as connection:
            return {
                name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for name, table in sorted(Base.metadata.tables.items())
            }

    def active_jobs(self) -> dict[str, int]:
        """Jobs queued and running: costs what is active, however much has ended."""
        with self._reading() as connection:
            return figures.active_jobs(connection)

    def figures(self) -> figures.Figures:
        """What is watched of a service, in a few bounded queries."""
        with self._reading() as connection:
            return figures.Figures(
                now=self._now(connection), rows=figures.rows(connection), jobs=figures.recent_jobs(connection),
                queues=figures.queues(connection), attempts=figures.attempts(connection),
                pool=figures.pool(self._engine.pool), revision=migrate.revision(connection) or "",
            )  # fmt: skip

    def expect_writable(self) -> None:
        """Write, durably: raises DatabaseError if nothing can be written: locked by others, read-only, gone, full (also
        if it was for another write of the last FULL_S), or hardly any room left."""
        if self._full is not None and time.monotonic() - self._full[0] < FULL_S:
            raise DatabaseFullError(str(self._full[1]))
        with self._writing() as connection:
            self._dialect.expect_room()
            probe.write(connection)

    def check(self) -> list[str]:
        """What is wrong inside the database, one line each; empty when it is sound. Reads all of it."""
        try:
            with self._reading() as connection:
                return self._dialect.check(connection)
        except DatabaseError as error:  # damaged so badly that the check itself cannot go on, or gone
            return [str(error)]

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the database to a new file while it is in use: SQLite's own format, or that of pg_dump."""
        self._dialect.backup(self._engine, Path(target))

    def _find(self, digests: Sequence[str]) -> dict[str, str]:
        with self._reading() as connection:
            return winners.lookup(connection, digests)

    def _now(self, connection: Connection) -> float:
        """Of a server, its own time: the machines that share it need not agree on theirs."""
        if self._clock is not None:
            return self._clock()
        return self._dialect.now(connection)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        self._after_fork()
        with self._explained(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        self._after_fork()
        with self._turn(), self._explained(), self._engine.execution_options(**{WRITE: True}).begin() as connection:
            yield connection

    @contextmanager
    def _at_job(self) -> Iterator[Connection]:
        """As `_writing`, for lanes, which can wait."""
        self._after_fork()
        with self._at_jobs, self._writing() as connection:
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Threads that write to a file take turns here: left to SQLite, which polls, many of them starve each other."""
        if not self.reads_at_once:
            yield
            return
        lock = self._writers  # a fork replaces it
        if not lock.acquire(timeout=self._dialect.busy_timeout_s):
            raise DatabaseBusyError(
                f"{self}: expected to write within {self._dialect.busy_timeout_s:g} s, found it locked by other "
                f"requests of this process all that time: try again, or ask less at once"
            )
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            explained = self._dialect.explain(error)
            if explained is None:
                raise
            if isinstance(explained, DatabaseFullError):
                self._full = (time.monotonic(), explained)
            raise explained from error
        except PoolTimeoutError as error:
            raise DatabaseBusyError(
                f"{self}: expected a free connection, found all in use by this process: try again, or ask less at once"
            ) from error

    def _after_fork(self) -> None:
        """A connection must not be used on both sides of a fork: the child forgets its parent's, unclosed."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._writers, self._at_jobs = threading.Lock(), threading.Semaphore(AT_JOBS)
            self._engine.dispose(close=False)


def open_store(
    address: str | os.PathLike[str], *, busy_timeout_s: float = BUSY_TIMEOUT_S, clock: Callable[[], float] | None = None
) -> SqlStore:
    """The store in a file (a path or `sqlite:///path`) or on a server (`postgresql+psycopg://...`).

    A new file is created, an older schema is upgraded. `busy_timeout_s` is how long a call waits for other writers.
    Raises DatabaseError: of its subclasses DatabaseUnreachableError, NotADatabaseError, DatabaseFromTheFutureError.
    """
    return SqlStore(dialect_for(address, busy_timeout_s), clock)
