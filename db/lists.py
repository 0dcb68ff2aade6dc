"""What pages, lists and streams ask for again and again: jobs and keys, each read bounded by what is shown of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Connection, func, select

from autotune.job import Job, JobState
from autotune.winner import Winner
from db.codec import MAX_ID, decode, plain
from db.jobs import job_of, parsed_key
from db.keys import chunks
from db.models import CURRENT, KEY_QUEUED, DeviceRow, JobKeyRow, JobRow, KeyRow, WinnerRow
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.shape import ConvShape

FIRST_KEYS = 12
"""So many keys of a job are read with it; the others are counted."""


def jobs(connection: Connection, limit: int, offset: int, state: JobState | None) -> list[Job]:
    """Latest first, each with its first keys."""
    page = select(JobRow.id).order_by(JobRow.id.desc()).limit(min(max(limit, 0), MAX_ID))
    if state is not None:
        page = page.where(JobRow.state == str(state))
    ids = connection.execute(page.offset(min(max(offset, 0), MAX_ID))).scalars().all()
    return [job for chunk in chunks(ids) for job in _jobs(connection, JobRow.id.in_(chunk))]


def job(connection: Connection, name: str) -> Job | None:
    """One, with its first keys."""
    found = _jobs(connection, JobRow.name == plain(name))
    return found[0] if found else None


def named(connection: Connection, names: Collection[str]) -> list[Job]:
    """Those of the names that there are, each with its first keys."""
    wanted = sorted({plain(name) for name in names})
    return [job for chunk in chunks(wanted) for job in _jobs(connection, JobRow.name.in_(chunk))]


def key(connection: Connection, digest: str) -> ConvKey | None:
    """As it was first seen."""
    query = select(KeyRow.shape, KeyRow.policy, DeviceRow.spec).join(DeviceRow, DeviceRow.id == KeyRow.device_id)
    row = connection.execute(query.where(KeyRow.digest == plain(digest))).first()
    if row is None:
        return None
    return ConvKey(
        shape=ConvShape.from_json(decode(row.shape)), policy=Policy.from_json(decode(row.policy)),
        device=DeviceSpec.from_json(decode(row.spec)),
    )  # fmt: skip


def current_winner(connection: Connection, digest: str) -> tuple[int, Winner] | None:
    """The current winner of a key with its id, whatever its state."""
    query = select(WinnerRow.id, WinnerRow.body).join(KeyRow, KeyRow.id == WinnerRow.key_id)
    row = connection.execute(query.where(KeyRow.digest == plain(digest), CURRENT)).first()
    return None if row is None else (row.id, Winner.from_json(decode(row.body)))


def _jobs(connection: Connection, where: ColumnElement[bool]) -> list[Job]:
    """Positions count from 0, so the last one tells how many there are: at the end of an index, whatever it is."""
    last = select(func.max(JobKeyRow.position)).where(JobKeyRow.job_id == JobRow.id).scalar_subquery()
    rows = connection.execute(
        select(JobRow.__table__, last.label("last")).where(where).order_by(JobRow.id.desc())
    ).all()
    keys: dict[int, list[tuple[ConvKey, JobState]]] = {row.id: [] for row in rows}
    first = select(JobKeyRow.job_id, JobKeyRow.body, JobKeyRow.state).where(
        JobKeyRow.job_id.in_(list(keys)), JobKeyRow.position < FIRST_KEYS
    )
    for job_id, body, state in connection.execute(first.order_by(JobKeyRow.job_id, JobKeyRow.position)):
        keys[job_id].append((parsed_key(body), JobState(state)))
    waiting = _waiting(connection, [row.id for row in rows if row.state == str(JobState.QUEUED)])
    return [
        job_of(
            row, keys[row.id], omitted=row.last + 1 - len(keys[row.id]), waits_on=tuple(waiting.get(row.id, ())),
        )
        for row in rows
    ]  # fmt: skip


def _waiting(connection: Connection, job_ids: Sequence[int]) -> dict[int, list[DeviceSpec]]:
    """By job, a device of each kind that keys of it wait for."""
    found: dict[int, list[DeviceSpec]] = {}
    query = select(JobKeyRow.job_id, func.min(JobKeyRow.body)).where(KEY_QUEUED, JobKeyRow.job_id.in_(job_ids))
    if job_ids:
        for job_id, body in connection.execute(query.group_by(JobKeyRow.job_id, JobKeyRow.target)):
            found.setdefault(job_id, []).append(parsed_key(body).device)
    return found
