"""What an observer asks for, again and again: every query is bounded by what is at work now, not by history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, QueuePool, case, func, select
from sqlalchemy.pool import Pool

from autotune.job import JobState
from db import jobs
from db.codec import decode
from db.models import ACTIVE, KEY_RUNNING, AttemptRow, Base, JobKeyRow, JobRow, TaskRow
from strategies.key import ConvKey

LATEST = 10_000
"""Of what has ended, so many are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The keys for one kind of device: how many wait and run, and since when (epoch seconds) the oldest one waits."""

    device: str
    target: str
    queued: int = 0
    running: int = 0
    since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """`rows` are the highest ids given, by table; `jobs` and `attempts` those at work and the LATEST others."""

    now: float
    rows: Mapping[str, int]
    jobs: Mapping[str, int]
    queues: Sequence[Queue]
    attempts: Mapping[str, int]
    pool: Mapping[str, int]
    revision: str


def rows(connection: Connection) -> dict[str, int]:
    """The highest id of each table that numbers its rows: how many there ever were, from the end of an index."""
    tables = {name: table for name, table in sorted(Base.metadata.tables.items()) if "id" in table.c}
    found = {name: connection.execute(select(func.max(table.c.id))).scalar() for name, table in tables.items()}
    return {name: count or 0 for name, count in found.items()}


def active_jobs(connection: Connection) -> dict[str, int]:
    """Those queued and running."""
    found = connection.execute(select(JobRow.state, func.count()).where(ACTIVE).group_by(JobRow.state))
    return {str(state): 0 for state in JobState if not state.ended} | {row[0]: row[1] for row in found}


def recent_jobs(connection: Connection) -> dict[str, int]:
    """By state: all that are active, and of the LATEST those that have ended."""
    latest = select(func.max(JobRow.id)).scalar_subquery() - LATEST
    ended = select(JobRow.state, func.count()).where(JobRow.id > latest).group_by(JobRow.state)
    found = {row[0]: row[1] for row in connection.execute(ended)}
    return {str(state): 0 for state in JobState} | found | active_jobs(connection)


def queues(connection: Connection) -> list[Queue]:
    """By kind of device, those for which something waits or runs."""
    found = {
        item.target: Queue(device=item.device.device, target=item.target, queued=item.keys, since=item.since)
        for item in jobs.waiting(connection)
    }
    running = select(JobKeyRow.target, func.count(), func.min(JobKeyRow.body)).where(KEY_RUNNING)
    for target, count, body in connection.execute(running.group_by(JobKeyRow.target)):
        queued = found.get(target) or Queue(device=ConvKey.from_json(decode(body)).device.device, target=target)
        found[target] = Queue(
            device=queued.device, target=target, queued=queued.queued, since=queued.since, running=count
        )
    return list(found.values())


def attempts(connection: Connection) -> dict[str, int]:
    """Of workers, at the LATEST tasks: `counted`, `failed` (counted, with an error), `late` (kept, but of no account),
    and `lost`, whose task was given to another worker."""
    latest = select(func.max(TaskRow.id)).scalar_subquery() - LATEST
    outcome = case((AttemptRow.counted.is_(False), "late"), (AttemptRow.error != "", "failed"), else_="counted")
    query = select(outcome, func.count()).where(AttemptRow.task_id > latest).group_by(outcome)
    lost = connection.execute(select(func.sum(TaskRow.attempt - 1)).where(TaskRow.id > latest)).scalar()
    found = {row[0]: row[1] for row in connection.execute(query)}
    return {"counted": 0, "failed": 0, "late": 0} | found | {"lost": int(lost or 0)}


def pool(connections: Pool) -> dict[str, int]:
    """Connections to the database: those in use, and those kept for the next one."""
    if not isinstance(connections, QueuePool):
        return {}
    return {"in_use": connections.checkedout(), "idle": connections.checkedin()}
