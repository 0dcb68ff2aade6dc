"""Requests to workers, attempt by attempt. Who changes a task locks its row first: so one attempt counts, once."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import Boolean, Connection, Row, and_, insert, literal_column, select, update

from autotune.fleet import Task, TaskState
from autotune.measurement import Measurement
from autotune.runner import Request
from db import measurements, queue
from db.address import insert_new
from db.codec import decode, digest, encode, plain
from db.models import AttemptRow, TaskRow

QUEUED, RUNNING = str(TaskState.QUEUED), str(TaskState.RUNNING)
ACTIVE = literal_column("tasks.state IN ('queued', 'running')", Boolean())


def post(connection: Connection, queue_name: str, request: Request, now: float) -> str:
    """Ask for a measurement; the name of the task. The same request, still open, is that task."""
    body = encode(request.to_json())
    same = digest([queue_name, body])
    while True:
        name = uuid.uuid4().hex
        if insert_new(
            connection, TaskRow, name=name, queue=queue_name, digest=same, request=body, state=QUEUED, attempt=1,
            worker="", created_at=now, changed_at=now,
        ):  # fmt: skip
            queue.defer(connection, queue_name, name, 1)
            return name
        found = connection.execute(select(TaskRow.name).where(TaskRow.digest == same, ACTIVE)).scalar()
        if found is not None:
            return found


def task(connection: Connection, name: str) -> Task | None:
    """As it stands, with the result of the attempt that counted."""
    query = (
        select(TaskRow.name, TaskRow.state, TaskRow.attempt, TaskRow.worker, TaskRow.changed_at)
        .add_columns(AttemptRow.result, AttemptRow.error)
        .outerjoin(AttemptRow, and_(AttemptRow.task_id == TaskRow.id, AttemptRow.counted))
        .where(TaskRow.name == plain(name))
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return Task(
        id=row.name, state=TaskState(row.state), attempt=row.attempt, worker=row.worker, error=row.error or "",
        beat=row.changed_at,
        measurements=tuple(Measurement.from_json(m) for m in decode(row.result or "[]")),
    )  # fmt: skip


def begin(connection: Connection, name: str, attempt: int, worker: str, now: float) -> Request | None:
    """Take the task, if that attempt at it is the current one and nobody has begun it."""
    row = _lock(connection, name)
    if row is None or (row.state, row.attempt) != (QUEUED, attempt):
        return None
    taken = update(TaskRow).where(TaskRow.id == row.id)
    connection.execute(taken.values(state=RUNNING, worker=plain(worker), changed_at=now))
    return Request.from_json(decode(row.request))


def deliver(
    connection: Connection, at: tuple[str, int], worker: str, measured: Sequence[Measurement], error: str, now: float
) -> bool:
    """Keep what a worker made of its attempt; whether it counts. Counted measurements are the truth from here on.

    Delivered again, after an answer that was lost, it changes nothing.
    """
    name, attempt = at
    row = _lock(connection, name)
    if row is None:
        return False
    key = (AttemptRow.task_id == row.id, AttemptRow.attempt == attempt)
    known = connection.execute(select(AttemptRow.counted, AttemptRow.worker).where(*key)).first()
    if known is not None:
        return bool(known.counted and known.worker == worker)
    counted = bool((row.state, row.attempt, row.worker) == (RUNNING, attempt, worker))
    result = encode([measurement.to_json() for measurement in measured])
    connection.execute(
        insert(AttemptRow).values(
            task_id=row.id, attempt=attempt, worker=plain(worker), counted=counted, result=result, error=plain(error),
            ended_at=now,
        )
    )  # fmt: skip
    if counted:
        for measurement in measured:
            measurements.record(connection, measurement)
        done = update(TaskRow).where(TaskRow.id == row.id)
        connection.execute(done.values(state=str(TaskState.DONE), changed_at=now))
    return counted


def reassign(connection: Connection, name: str, attempt: int, now: float) -> bool:
    """Give a running attempt's work to another worker; False if it is not the current one any more."""
    row = _lock(connection, name)
    if row is None or (row.state, row.attempt) != (RUNNING, attempt):
        return False
    again = update(TaskRow).where(TaskRow.id == row.id)
    connection.execute(again.values(state=QUEUED, attempt=attempt + 1, worker="", changed_at=now))
    queue.defer(connection, row.queue, name, attempt + 1)
    return True


def remind(connection: Connection, name: str) -> None:
    """Queue the task once more if it still waits: whoever fetched it may have died before it began."""
    row = _lock(connection, name)
    if row is not None and row.state == QUEUED:
        queue.defer(connection, row.queue, name, row.attempt)


def withdraw(connection: Connection, name: str, now: float) -> None:
    """Nobody waits for it any more; what a worker makes of it is evidence."""
    active = update(TaskRow).where(TaskRow.name == plain(name), ACTIVE)
    connection.execute(active.values(state=str(TaskState.CANCELLED), changed_at=now))


def beat(connection: Connection, at: tuple[str, int], worker: str, now: float) -> bool:
    """A worker is at that attempt; whether it is still the one that will count."""
    name, attempt = at
    mine = update(TaskRow).where(
        TaskRow.name == plain(name), TaskRow.attempt == attempt, TaskRow.worker == plain(worker),
        TaskRow.state == RUNNING,
    )  # fmt: skip
    return connection.execute(mine.values(changed_at=now)).rowcount == 1


def _lock(connection: Connection, name: str) -> Row[tuple[TaskRow]] | None:
    return connection.execute(select(TaskRow.__table__).where(TaskRow.name == plain(name)).with_for_update()).first()
