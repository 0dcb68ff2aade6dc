"""Requests to workers, attempt by attempt. Who changes a task locks its row first: so one attempt counts, once."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnClause, Connection, Row, and_, insert, literal_column, select, update

from autotune.fleet import Refusal, Task, TaskState
from autotune.measurement import Measurement
from autotune.runner import Request
from db import measurements, queue
from db.address import insert_new
from db.codec import decode, digest, encode, plain
from db.keys import chunks, keep_keys
from db.models import AttemptRow, TaskRow, WorkerRow

QUEUED, RUNNING = str(TaskState.QUEUED), str(TaskState.RUNNING)
ACTIVE: ColumnClause[bool] = literal_column("tasks.state IN ('queued', 'running')")
UNREADABLE = (TypeError, ValueError, LookupError, AttributeError)
"""What parsing raises of what another release wrote, or nobody of ours."""
SKEW_S = 2.0
"""By how much a worker's clock may be wrong before the times of its measurements are corrected."""


def post(connection: Connection, queue_name: str, request: Request, *, release: str, idle: bool, now: float) -> str:
    """Ask for a measurement; the name of the task. The same request, still open, is that task. `idle`: only a worker
    whose device no program uses may begin it."""
    body = encode(request.to_json())
    same = digest([queue_name, body])
    keep_keys(connection, [request.key])  # which a worker may not have the right to
    while True:
        name = uuid.uuid4().hex
        if insert_new(
            connection, TaskRow, name=name, queue=queue_name, digest=same, request=body, state=QUEUED, attempt=1,
            worker="", created_at=now, changed_at=now, key_digest=request.key.digest, idle=idle, release=plain(release),
        ):  # fmt: skip
            queue.defer(connection, queue_name, name, 1)
            return name
        found = connection.execute(select(TaskRow.name).where(TaskRow.digest == same, ACTIVE)).scalar()
        if found is not None:
            return found


def tasks(connection: Connection, names: Collection[str]) -> list[Task]:
    """Those of the names that there are, each as it stands, with the result of the attempt that counted."""
    query = (
        select(TaskRow.name, TaskRow.state, TaskRow.attempt, TaskRow.worker, TaskRow.changed_at)
        .add_columns(TaskRow.waiting, TaskRow.lost)
        .add_columns(AttemptRow.result, AttemptRow.error)
        .outerjoin(AttemptRow, and_(AttemptRow.task_id == TaskRow.id, AttemptRow.counted))
    )
    wanted = sorted({plain(name) for name in names})
    return [
        _parsed(row) for chunk in chunks(wanted) for row in connection.execute(query.where(TaskRow.name.in_(chunk)))
    ]


def _parsed(row: Row[Any]) -> Task:
    """What a worker wrote that nobody can read is that task's error: others are read with it."""
    try:
        return Task(
            id=row.name, state=TaskState(row.state), attempt=row.attempt, worker=row.worker, error=row.error or "",
            beat=row.changed_at, waiting=row.waiting, lost=tuple(worker for worker, _ in decode(row.lost)),
            measurements=tuple(Measurement.from_json(m) for m in decode(row.result or "[]")),
        )  # fmt: skip
    except UNREADABLE as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        said = f"expected a task and measurements of this release from worker {row.worker}, found {found}"
        return Task(id=row.name, state=TaskState.DONE, attempt=row.attempt, worker=row.worker, error=said)


def begin(
    connection: Connection, name: str, attempt: int, worker: str, *, release: str, in_use: bool, now: float
) -> Request | Refusal | None:
    """Take the task, if that attempt at it is the current one and nobody has begun it. What cannot be taken stays where
    it is, with the reason beside it, and is offered to nobody until it is asked for again."""
    row = _lock(connection, name)
    if row is None or (row.state, row.attempt) != (QUEUED, attempt):
        return None
    task = update(TaskRow).where(TaskRow.id == row.id)
    found = _readable(row, worker, release, in_use)
    if isinstance(found, Refusal):
        connection.execute(task.values(waiting=plain(found.reason), changed_at=now))
    else:
        connection.execute(task.values(state=RUNNING, worker=plain(worker), changed_at=now, waiting=""))
    return found


def _readable(row: Row[tuple[TaskRow]], worker: str, release: str, in_use: bool) -> Request | Refusal:
    if row.idle and in_use:
        return Refusal(
            reason=f"until the device of worker {worker} is idle: a program that asked for tuning runs on it"
        )
    try:
        return Request.from_json(decode(row.request))
    except UNREADABLE as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Refusal(
            reason=f"needs worker release {row.release or 'another'}: worker {worker} of release {release} cannot read "
            f"it ({found}); upgrade that worker",
            unreadable=True,
        )


def deliver(
    connection: Connection, at: tuple[str, int], worker: str, measured: Sequence[Measurement], error: str,
    *, now: float, skew_s: float = 0.0,
) -> bool:  # fmt: skip
    """Keep what a worker made of its attempt; whether it counts. Counted measurements are the truth from here on.

    Delivered again, after an answer that was lost, it changes nothing. `skew_s`: by how much the worker's clock is
    behind ours; what a job has used of its budget is found by time.
    """
    if abs(skew_s) > SKEW_S:
        measured = [_corrected(measurement, skew_s) for measurement in measured]
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


def reassign(
    connection: Connection, name: str, attempt: int, *, now: float, most_lost: int | None = None, waiting: str = ""
) -> bool:
    """Give a running attempt's work to another worker; False if it is not the current one any more.

    With `most_lost`, its worker is taken for lost, and a task that has lost so many is given to nobody any more.
    With `waiting`, why its worker could not do it, it is offered to nobody until it is asked for again.
    """
    row = _lock(connection, name)
    if row is None or (row.state, row.attempt) != (RUNNING, attempt):
        return False
    lost = decode(row.lost) if most_lost is None else [*_gone(connection, decode(row.lost)), [row.worker, now]]
    task = update(TaskRow).where(TaskRow.id == row.id)
    if most_lost is not None and len(lost) >= most_lost:
        connection.execute(task.values(state=str(TaskState.LOST), changed_at=now, lost=encode(lost)))
        return True
    task = task.values(state=QUEUED, attempt=attempt + 1, worker="", changed_at=now, lost=encode(lost))
    connection.execute(task.values(waiting=plain(waiting)))
    if not waiting:
        queue.defer(connection, row.queue, name, attempt + 1)
    return True


def _gone(connection: Connection, lost: list[list[object]]) -> list[list[object]]:
    """Those that were not heard of again: who was cut off for a while, or was told to end, was not ended by a task."""
    known = select(WorkerRow.name, WorkerRow.seen_at, WorkerRow.ended_at, WorkerRow.unfit)
    rows = {row.name: row for row in connection.execute(known.where(WorkerRow.name.in_([name for name, _ in lost])))}

    def came_back(name: object, taken_at: object) -> bool:
        row = rows.get(str(name))
        return row is not None and not row.unfit and (row.ended_at is not None or row.seen_at > taken_at)

    return [[name, taken_at] for name, taken_at in lost if not came_back(name, taken_at)]


def remind(connection: Connection, name: str) -> None:
    """Queue the task once more if it still waits: whoever fetched it may have died before it began."""
    row = _lock(connection, name)
    if row is not None and row.state == QUEUED and not row.waiting:
        queue.defer(connection, row.queue, name, row.attempt)


def withdraw(connection: Connection, name: str, now: float) -> None:
    """Nobody waits for it any more; what a worker makes of it is evidence."""
    active = update(TaskRow).where(TaskRow.name == plain(name), ACTIVE).returning(TaskRow.attempt)
    attempt = connection.execute(active.values(state=str(TaskState.CANCELLED), changed_at=now)).scalar()
    if attempt is not None:
        queue.forget(connection, name, attempt)


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


def _corrected(measurement: Measurement, skew_s: float) -> Measurement:
    """At the server's time, with a note of it."""
    conditions = {**measurement.conditions, "clock_skew_s": round(skew_s, 3)}
    return replace(measurement, measured_at=measurement.measured_at + skew_s, conditions=conditions)
