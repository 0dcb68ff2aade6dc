"""Jobs, whose keys are queued, claimed by one owner at a time, and ended once.

Who locks both a job and keys of it locks the job first; a claim, which begins at the keys, waits for nobody.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, func, insert, or_, select, true, update
from sqlalchemy.orm import aliased

from autotune.job import Budget, Claim, Job, JobState, QueueFullError, Submitter, Terms, Waiting, target_of
from db.address import insert_new
from db.codec import MAX_ID, decode, digest, encode, plain
from db.keys import chunks, keep_keys
from db.models import ACTIVE, KEY_QUEUED, KEY_RUNNING, JobKeyRow, JobRow
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import JsonObject

CACHED_KEYS = 10_000
"""A job is asked for several times a second while it is followed, and its keys never change: for 1000 of them,
a read took 91 ms with parsing and takes 3 ms without, on the processor that is measured (2 cores, CPython 3.11)."""
SAID_FAILURES = 100
"""How many keys' errors a job repeats; each key keeps its own."""
QUEUED, RUNNING, FAILED = str(JobState.QUEUED), str(JobState.RUNNING), str(JobState.FAILED)
OPEN = (QUEUED, RUNNING)


def submit(
    connection: Connection, keys: Sequence[ConvKey], budget: Budget, terms: Terms, retry_of: str,
    submitter: Submitter, now: float,
) -> Job:  # fmt: skip
    """Queue a job, or return the active one with the same set of keys. Raises QueueFullError."""
    distinct = list({key.digest: key for key in keys}.values())
    if not distinct:
        raise ValueError("a job needs at least one key: got none")
    keys_digest = digest(sorted(key.digest for key in distinct))
    ids = keep_keys(connection, distinct)
    name = uuid.uuid4().hex
    while not insert_new(
        connection, JobRow, name=name, keys_digest=keys_digest, state=QUEUED, budget=encode(budget.to_json()),
        done_keys=0, progress="{}", error="", created_at=now, priority=terms.priority, deadline=terms.deadline,
        idle=terms.idle, retry_of=plain(retry_of), submitter=plain(submitter.name),
    ):  # fmt: skip
        active = _jobs(connection, and_(JobRow.keys_digest == keys_digest, ACTIVE))
        if active:
            return _strengthened(connection, active[0], budget, terms)
        # It ended between the two statements (PostgreSQL only): now there is room for a new one.
    job_id = connection.execute(select(JobRow.id).where(JobRow.name == name)).scalar_one()
    rows = [
        {
            "job_id": job_id, "position": position, "key_id": row.key, "body": encode(key.to_json()),
            "target": target_of(key.device), "state": QUEUED, "owner": "", "error": "",
        }
        for position, (key, row) in enumerate(zip(distinct, ids, strict=True))
    ]  # fmt: skip
    connection.execute(insert(JobKeyRow), rows)
    _expect_room(connection, submitter)
    return _jobs(connection, JobRow.id == job_id)[0]


def _strengthened(connection: Connection, job: Job, budget: Budget, terms: Terms) -> Job:
    """The active job, on the stronger of its terms and those of whoever asks for the same once more."""
    if _lock(connection, job.id) is None:
        return job
    [job] = _jobs(connection, JobRow.name == job.id)  # as it is now that nobody else changes it
    merged, budget = job.terms.stronger(terms), job.budget.stronger(budget)
    if (merged, budget) == (job.terms, job.budget):
        return job
    values = {"priority": merged.priority, "deadline": merged.deadline, "idle": merged.idle}
    changed = update(JobRow).where(JobRow.name == job.id)
    connection.execute(changed.values(**values, budget=encode(budget.to_json())))
    return replace(job, terms=merged, budget=budget)


def _expect_room(connection: Connection, submitter: Submitter) -> None:
    """Counts what was just inserted, too: raising takes it back."""
    if submitter.max_keys is None:
        return
    waits = JobKeyRow.state.in_((QUEUED, RUNNING))
    query = select(func.count()).select_from(JobKeyRow).join(JobRow, JobRow.id == JobKeyRow.job_id)
    count = connection.execute(query.where(ACTIVE, waits, JobRow.submitter == plain(submitter.name))).scalar_one()
    if count > submitter.max_keys:
        raise QueueFullError(
            f"expected at most {submitter.max_keys} shapes of yours in the queue, found {count} with these: "
            f"wait until some are done, or cancel some"
        )


def job(connection: Connection, name: str) -> Job | None:
    """The job of that id."""
    found = _jobs(connection, JobRow.name == plain(name))
    return found[0] if found else None


def jobs(connection: Connection, limit: int, offset: int, state: JobState | None) -> list[Job]:
    """Latest first."""
    page = select(JobRow.id).order_by(JobRow.id.desc()).limit(min(max(limit, 0), MAX_ID))
    if state is not None:
        page = page.where(JobRow.state == str(state))
    ids = connection.execute(page.offset(min(max(offset, 0), MAX_ID))).scalars().all()
    return [job for chunk in chunks(ids) for job in reversed(_jobs(connection, JobRow.id.in_(chunk)))]


def waiting(connection: Connection) -> list[Waiting]:
    """Queued keys by kind of device, oldest first: one query, however many kinds there are."""
    oldest, job_id = func.min(JobRow.created_at).label("since"), func.min(JobRow.id).label("job_id")
    kinds = (
        select(JobKeyRow.target, func.count().label("keys"), oldest, job_id)
        .join(JobRow, JobRow.id == JobKeyRow.job_id)
        .where(KEY_QUEUED)
        .group_by(JobKeyRow.target)
        .subquery()
    )
    mine = (JobKeyRow.target == kinds.c.target, JobKeyRow.job_id == kinds.c.job_id)
    first = select(JobKeyRow.body).where(KEY_QUEUED, *mine).order_by(JobKeyRow.position).limit(1).scalar_subquery()
    query = select(kinds.c.target, first, kinds.c["keys"], kinds.c.since).order_by(kinds.c.job_id, kinds.c.target)
    return [
        Waiting(target=target, device=parsed_key(body).device, keys=keys, since=since)
        for target, body, keys, since in connection.execute(query)
    ]


def claim(connection: Connection, owner: str, target: str | None, busy: bool, now: float) -> Claim | None:
    """Take a queued key that no other claim is taking right now, and whose job nobody is changing right now. Where
    somebody is at all of those jobs, as where many devices work on one, wait for a turn at the first: who locks a job
    before its keys is in nobody's way."""
    other = aliased(JobKeyRow)
    same_runs = exists().where(other.key_id == JobKeyRow.key_id, other.state == RUNNING)
    query = (
        select(JobKeyRow.job_id, JobKeyRow.position, JobKeyRow.body)
        .join(JobRow, JobRow.id == JobKeyRow.job_id)
        .where(
            KEY_QUEUED,
            JobKeyRow.target == plain(target) if target is not None else true(),
            ~JobRow.idle if busy else true(),
            or_(JobRow.deadline.is_(None), JobRow.deadline > now),
            ~same_runs,
        )
        .order_by(JobRow.priority.desc(), JobRow.id, JobKeyRow.position)
        .limit(1)
    )
    take = query.with_for_update(skip_locked=True)
    found = connection.execute(take).first()
    if found is None and (there := connection.execute(query).first()) is not None:
        connection.execute(select(JobRow.id).where(JobRow.id == there.job_id).with_for_update())
        found = connection.execute(take).first()
    if found is None:
        return None
    taken = update(JobKeyRow).where(JobKeyRow.job_id == found.job_id, JobKeyRow.position == found.position)
    connection.execute(taken.values(state=RUNNING, owner=plain(owner), seen_at=now))
    begun = update(JobRow).where(JobRow.id == found.job_id)
    connection.execute(begun.values(state=RUNNING, started_at=func.coalesce(JobRow.started_at, now)))
    last = select(func.max(JobKeyRow.position)).where(JobKeyRow.job_id == found.job_id).scalar_subquery()
    row = connection.execute(select(JobRow.__table__, last.label("last")).where(JobRow.id == found.job_id)).one()
    job = job_of(row, [(parsed_key(found.body), JobState.RUNNING)], omitted=row.last)
    return Claim(job=job, index=found.position, owner=owner)


def beat(connection: Connection, owners: Collection[str], now: float) -> None:
    """Owners are alive."""
    held = update(JobKeyRow).where(KEY_RUNNING, JobKeyRow.owner.in_([plain(owner) for owner in owners]))
    connection.execute(held.values(seen_at=now))


def recover(connection: Connection, idle_s: float, now: float) -> int:
    """Put back what owners left that said nothing for `idle_s`."""
    # As long ahead counts, too: the clock was set back, and nobody would ever call that owner idle.
    silent = or_(JobKeyRow.seen_at <= now - idle_s, JobKeyRow.seen_at >= now + idle_s)
    left = select(JobKeyRow.job_id).where(KEY_RUNNING, silent).distinct().order_by(JobKeyRow.job_id)
    return sum(
        _put_back(connection, job_id, and_(KEY_RUNNING, silent)) for job_id in connection.execute(left).scalars().all()
    )


def expire(connection: Connection, now: float) -> int:
    """End the jobs whose deadline has passed."""
    late = select(JobRow.id).where(ACTIVE, JobRow.deadline <= now).order_by(JobRow.id)
    ids = connection.execute(late.with_for_update(skip_locked=True)).scalars().all()
    for job_id in ids:
        _end_keys(connection, job_id, JobState.FAILED, "its deadline passed")
        _end_job(connection, job_id, now)
    return len(ids)


def release(connection: Connection, claim: Claim) -> None:
    """Back to its place in the queue."""
    job_id = _lock(connection, claim.job.id)
    if job_id is not None:
        _put_back(connection, job_id, _held(claim))


def progress(connection: Connection, claim: Claim, said: JsonObject, now: float) -> bool:
    """Keep it while the key is its owner's."""
    job_id = _lock(connection, claim.job.id)
    alive = update(JobKeyRow).where(JobKeyRow.job_id == job_id, _held(claim)).values(seen_at=now)
    if job_id is None or connection.execute(alive).rowcount == 0:
        return False
    connection.execute(update(JobRow).where(JobRow.id == job_id).values(progress=encode(said)))
    return True


def finish(connection: Connection, claim: Claim, error: str, now: float) -> None:
    """End the key, and the job with its last one. Raises LookupError for an unknown job."""
    job_id = _lock(connection, claim.job.id)
    if job_id is None:
        raise _unknown(claim.job.id)
    ended = update(JobKeyRow).where(JobKeyRow.job_id == job_id, _held(claim))
    state = JobState.FAILED if error else JobState.DONE
    if connection.execute(ended.values(state=str(state), error=plain(error))).rowcount == 1:
        _end_job(connection, job_id, now, said={"key": str(claim.key), "digest": claim.key.digest})


def cancel(connection: Connection, name: str, now: float) -> Job:
    """Cancel it, if it has not ended. Raises LookupError for an unknown id."""
    job_id = _lock(connection, name)
    if job_id is None:
        raise _unknown(name)
    active = update(JobRow).where(JobRow.id == job_id, ACTIVE)
    if connection.execute(active.values(state=str(JobState.CANCELLED), ended_at=now)).rowcount == 1:
        _end_keys(connection, job_id, JobState.CANCELLED, "")
    return _jobs(connection, JobRow.id == job_id)[0]


def _lock(connection: Connection, name: str) -> int | None:
    """The job's row, for this transaction alone. (SQLite, whose writers are alone anyway, drops FOR UPDATE.)"""
    return connection.execute(select(JobRow.id).where(JobRow.name == plain(name)).with_for_update()).scalar()


def _held(claim: Claim) -> ColumnElement[bool]:
    return and_(JobKeyRow.position == claim.index, KEY_RUNNING, JobKeyRow.owner == plain(claim.owner))


def _put_back(connection: Connection, job_id: int, which: ColumnElement[bool]) -> int:
    connection.execute(select(JobRow.id).where(JobRow.id == job_id).with_for_update())
    left = update(JobKeyRow).where(JobKeyRow.job_id == job_id, which)
    count = connection.execute(left.values(state=QUEUED, owner="", seen_at=None)).rowcount
    running = exists().where(JobKeyRow.job_id == JobRow.id, KEY_RUNNING)
    connection.execute(
        update(JobRow).where(JobRow.id == job_id, JobRow.state == RUNNING, ~running).values(state=QUEUED)
    )
    return count


def _end_keys(connection: Connection, job_id: int, state: JobState, error: str) -> None:
    unfinished = update(JobKeyRow).where(JobKeyRow.job_id == job_id, JobKeyRow.state.in_(OPEN))
    connection.execute(unfinished.values(state=str(state), error=plain(error)))


def _end_job(connection: Connection, job_id: int, now: float, said: JsonObject | None = None) -> None:
    """Count the keys that have ended; with the last one the job ends."""
    mine = JobKeyRow.job_id == job_id
    states = dict(connection.execute(select(JobKeyRow.state, func.count()).where(mine).group_by(JobKeyRow.state)).all())
    failed = select(JobKeyRow.body, JobKeyRow.error).where(mine, JobKeyRow.state == FAILED)
    failures = [
        f"{parsed_key(row.body)}: {row.error}"
        for row in connection.execute(failed.order_by(JobKeyRow.position).limit(SAID_FAILURES))
    ]
    total, left = sum(states.values()), sum(states.get(state, 0) for state in OPEN)
    values: dict[str, object] = {"done_keys": total - left}
    values["progress"] = encode({**(said or {}), **({"failures": failures} if failures else {})})
    if left == 0:
        error = _failure(failures, states.get(FAILED, 0), total)
        values |= {"state": str(JobState.FAILED if error else JobState.DONE), "error": plain(error), "ended_at": now}
    elif not states.get(RUNNING):
        values["state"] = QUEUED
    connection.execute(update(JobRow).where(JobRow.id == job_id, ACTIVE).values(**values))


def _failure(failures: Sequence[str], failed: int, total: int) -> str:
    if not failures:
        return ""
    return failures[0] if total == 1 else f"{failed} of {total} shapes failed, the first: {failures[0]}"


def _unknown(name: str) -> LookupError:
    return LookupError(f"expected the id of a job, found none with {name!r}: GET /jobs lists them")


@lru_cache(maxsize=CACHED_KEYS)
def parsed_key(body: str) -> ConvKey:
    """A job's key from its JSON, which is never changed."""
    return ConvKey.from_json(decode(body))


def _jobs(connection: Connection, where: ColumnElement[bool]) -> list[Job]:
    """In the order of submission."""
    rows = connection.execute(select(JobRow.__table__).where(where).order_by(JobRow.id)).all()
    keys: dict[int, list[tuple[ConvKey, JobState]]] = {row.id: [] for row in rows}
    query = select(JobKeyRow.job_id, JobKeyRow.body, JobKeyRow.state)
    query = query.order_by(JobKeyRow.job_id, JobKeyRow.position)
    for chunk in chunks(list(keys)):
        for job_id, body, state in connection.execute(query.where(JobKeyRow.job_id.in_(chunk))):
            keys[job_id].append((parsed_key(body), JobState(state)))
    return [job_of(row, keys[row.id]) for row in rows]


def job_of(
    row: Row[Any], keys: Sequence[tuple[ConvKey, JobState]], *, omitted: int = 0,
    waits_on: tuple[DeviceSpec, ...] | None = None,
) -> Job:  # fmt: skip
    """A row of `jobs` with those of its keys that were read."""
    return Job(
        id=row.name, keys=tuple(key for key, _ in keys), budget=Budget.from_json(decode(row.budget)),
        terms=Terms(priority=row.priority, deadline=row.deadline, idle=row.idle), state=JobState(row.state),
        states=tuple(state for _, state in keys), done_keys=row.done_keys, progress=decode(row.progress),
        error=row.error, created_at=row.created_at, started_at=row.started_at, ended_at=row.ended_at,
        retry_of=row.retry_of, omitted=omitted, waits_on=waits_on,
    )  # fmt: skip
