"""Jobs: queued, claimed by one owner at a time, ended once."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import ColumnElement, Connection, and_, insert, or_, select, update

from autotune.job import Budget, Job, JobState
from db.address import insert_new
from db.codec import MAX_ID, decode, digest, encode, plain
from db.keys import chunks, keep_keys
from db.models import ACTIVE, JobKeyRow, JobRow
from strategies.key import ConvKey
from strategies.shape import JsonObject

CACHED_KEYS = 10_000
"""A job is asked for several times a second while it is followed, and its keys never change: for 1000 of them,
a read took 91 ms with parsing and takes 3 ms without, on the processor that is measured (2 cores, CPython 3.11)."""
QUEUED, RUNNING = str(JobState.QUEUED), str(JobState.RUNNING)


def submit(connection: Connection, keys: Sequence[ConvKey], budget: Budget, now: float) -> Job:
    """Queue a job, or return the active one with the same set of keys."""
    distinct = list({key.digest: key for key in keys}.values())
    if not distinct:
        raise ValueError("a job needs at least one key: got none")
    keys_digest = digest(sorted(key.digest for key in distinct))
    ids = keep_keys(connection, distinct)
    name = uuid.uuid4().hex
    while not insert_new(
        connection, JobRow, name=name, keys_digest=keys_digest, state=QUEUED, budget=encode(budget.to_json()),
        done_keys=0, progress="{}", error="", owner="", created_at=now,
    ):  # fmt: skip
        active = _jobs(connection, and_(JobRow.keys_digest == keys_digest, ACTIVE))
        if active:
            return active[0]
        # It ended between the two statements (PostgreSQL only): now there is room for a new one.
    job_id = connection.execute(select(JobRow.id).where(JobRow.name == name)).scalar_one()
    rows = [
        {"job_id": job_id, "position": position, "key_id": row.key, "body": encode(key.to_json())}
        for position, (key, row) in enumerate(zip(distinct, ids, strict=True))
    ]
    connection.execute(insert(JobKeyRow), rows)
    return _jobs(connection, JobRow.id == job_id)[0]


def job(connection: Connection, name: str) -> Job | None:
    """The job of that id."""
    found = _jobs(connection, JobRow.name == plain(name))
    return found[0] if found else None


def jobs(connection: Connection, limit: int, offset: int) -> list[Job]:
    """Latest first."""
    page = select(JobRow.id).order_by(JobRow.id.desc()).limit(min(max(limit, 0), MAX_ID))
    ids = connection.execute(page.offset(min(max(offset, 0), MAX_ID))).scalars().all()
    return [job for chunk in chunks(ids) for job in reversed(_jobs(connection, JobRow.id.in_(chunk)))]


def claim(connection: Connection, owner: str, now: float) -> Job | None:
    """Take the oldest queued job that no other claim is taking right now."""
    oldest = select(JobRow.id).where(JobRow.state == QUEUED).order_by(JobRow.id).limit(1)
    job_id = connection.execute(oldest.with_for_update(skip_locked=True)).scalar()
    if job_id is None:
        return None
    taken = update(JobRow).where(JobRow.id == job_id)
    connection.execute(taken.values(state=RUNNING, owner=plain(owner), started_at=now, seen_at=now))
    return _jobs(connection, JobRow.id == job_id)[0]


def unfinished(connection: Connection, idle_s: float, now: float) -> list[Job]:
    """Running ones whose owner has said nothing for `idle_s`, oldest first."""
    return _jobs(connection, _idle(idle_s, now))


def requeue(connection: Connection, name: str, idle_s: float, owner: str | None, now: float) -> None:
    """Back to its place in the queue, if it is still running, idle and (that owner's)."""
    left = update(JobRow).where(JobRow.name == plain(name), _idle(idle_s, now), _owned_by(owner))
    connection.execute(left.values(state=QUEUED, owner="", started_at=None, seen_at=None))


def progress(
    connection: Connection, name: str, done_keys: int, progress: JsonObject, owner: str | None, now: float
) -> bool:
    """Keep it while the job runs (for that owner)."""
    running = update(JobRow).where(JobRow.name == plain(name), JobRow.state == RUNNING, _owned_by(owner))
    values = running.values(done_keys=done_keys, progress=encode(progress), seen_at=now)
    return connection.execute(values).rowcount == 1


def finish(connection: Connection, name: str, error: str, owner: str | None, now: float) -> None:
    """End it, if it has not ended and is (that owner's). Raises LookupError for an unknown id."""
    state = JobState.FAILED if error else JobState.DONE
    active = update(JobRow).where(JobRow.name == plain(name), ACTIVE, _owned_by(owner))
    values = active.values(state=str(state), error=plain(error), ended_at=now)
    if connection.execute(values).rowcount == 0:
        _expect(connection, name)


def cancel(connection: Connection, name: str, now: float) -> Job:
    """Cancel it, if it has not ended. Raises LookupError for an unknown id."""
    active = update(JobRow).where(JobRow.name == plain(name), ACTIVE)
    connection.execute(active.values(state=str(JobState.CANCELLED), ended_at=now))
    return _expect(connection, name)


def _idle(idle_s: float, now: float) -> ColumnElement[bool]:
    # As long ahead counts, too: the clock was set back, and nobody would ever call that owner idle.
    silent = or_(JobRow.seen_at <= now - idle_s, JobRow.seen_at >= now + idle_s)
    return and_(JobRow.state == RUNNING, silent)


def _owned_by(owner: str | None) -> ColumnElement[bool]:
    return JobRow.id.is_not(None) if owner is None else JobRow.owner == plain(owner)


def _expect(connection: Connection, name: str) -> Job:
    found = job(connection, name)
    if found is None:
        raise LookupError(f"expected the id of a job, found none with {name!r}: GET /jobs lists them")
    return found


@lru_cache(maxsize=CACHED_KEYS)
def _key(body: str) -> ConvKey:
    return ConvKey.from_json(decode(body))


def _jobs(connection: Connection, where: ColumnElement[bool]) -> list[Job]:
    """In the order of submission."""
    rows = connection.execute(select(JobRow.__table__).where(where).order_by(JobRow.id)).all()
    keys: dict[int, list[ConvKey]] = {row.id: [] for row in rows}
    query = select(JobKeyRow.job_id, JobKeyRow.body).order_by(JobKeyRow.job_id, JobKeyRow.position)
    for chunk in chunks(list(keys)):
        for job_id, body in connection.execute(query.where(JobKeyRow.job_id.in_(chunk))):
            keys[job_id].append(_key(body))
    return [
        Job(
            id=row.name, keys=tuple(keys[row.id]), budget=Budget.from_json(decode(row.budget)),
            state=JobState(row.state), done_keys=row.done_keys, progress=decode(row.progress), error=row.error,
            created_at=row.created_at, started_at=row.started_at, ended_at=row.ended_at,
        )
        for row in rows
    ]  # fmt: skip
