"""What goes when it is old: measurements, former winners, jobs, tasks, workers; and what stays whatever its age.

Tables are walked by their ids, a bounded number of rows per transaction: how long others wait to write does not depend
on how much there is, nor on how much of it stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, literal, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, aliased

from autotune.measurement import Status
from autotune.winner import WinnerState
from db import tasks
from db.keys import chunks
from db.models import ACTIVE, AttemptRow, JobKeyRow, JobRow, MeasurementRow, TaskRow, WinnerRow, WorkerRow
from db.tasks import ACTIVE as TASK_ACTIVE

ROWS_AT_ONCE = 1000
PAUSE_S = 0.002
"""Between transactions: threads that wait to write to a file get their turn."""
OK = str(Status.OK)
SAID = (str(WinnerState.PINNED), str(WinnerState.REVOKED), str(WinnerState.BANNED))
"""What a person said of a decision holds for ever."""
ABANDONED_S, AT_ONCE = 86400.0, 100
"""A task that nothing was heard of for so long is nobody's; so many of them end per transaction."""
WORKERS_KEPT, CROWD_S = 20, 86400.0
"""Of a device so many workers stay, and whoever was heard of within a day: one that its supervisor starts over and over
makes a row each time, and whoever opens lanes reads all of them every second."""


class When(NamedTuple):
    """What is old, and what it is now; seconds since the epoch."""

    before: float
    now: float


class Swept(NamedTuple):
    """What one transaction did: rows removed, and the id after which the next one goes on; None at the end."""

    removed: int
    last: int | None


Sweep: TypeAlias = Callable[[Connection, When, int], Swept]


def prune(
    writing: Callable[[], AbstractContextManager[Connection]], when: When, should_stop: Callable[[], bool]
) -> dict[str, int]:
    """Remove what is old, in transactions of `writing`; how much of what.

    `should_stop` is asked before each of them; what is left then is for the next time.
    """
    removed = dict.fromkeys(SWEEPS, 0)
    for what, sweep in SWEEPS.items():
        last: int | None = 0
        while last is not None and not should_stop():
            with writing() as connection:
                swept = sweep(connection, when, last)
            removed[what], last = removed[what] + swept.removed, swept.last
            time.sleep(PAUSE_S)
    return removed


def prunable(connection: Connection, when: When) -> dict[str, int]:
    """How much `prune` would remove. Reads all of it."""
    before = when.before
    old = {
        "measurements": (MeasurementRow, _old_measurement(before)),
        "winners": (WinnerRow, _old_winner(before)),
        "jobs": (JobRow, _old_job(before)),
        "tasks": (TaskRow, _old_task(before)),
        "workers": (WorkerRow, _old_worker(when)),
    }
    return {
        what: connection.execute(select(func.count()).select_from(row).where(where)).scalar_one()
        for what, (row, where) in old.items()
    }


def _old_measurement(before: float) -> ColumnElement[bool]:
    """The last one of a candidate of a key on a device stays: it is what a search needs to know of it. So does the last
    that went well, which a crash or a timeout since then does not make untrue, and what a current winner rests on."""
    later = aliased(MeasurementRow)
    follows = and_(
        later.key_id == MeasurementRow.key_id, later.device_id == MeasurementRow.device_id,
        later.candidate == MeasurementRow.candidate,
        tuple_(later.measured_at, later.id) > tuple_(MeasurementRow.measured_at, MeasurementRow.id),
        or_(MeasurementRow.status != OK, later.status == OK),
    )  # fmt: skip
    # Its provenance names attempts. What LIKE takes for a wildcard in one may keep a row too many.
    named = exists().where(
        WinnerRow.key_id == MeasurementRow.key_id, WinnerRow.is_current,
        WinnerRow.body.like(literal('%"').concat(MeasurementRow.attempt).concat('"%')),
    )  # fmt: skip
    return (MeasurementRow.measured_at < before) & exists().where(follows) & ~named


def _old_winner(before: float) -> ColumnElement[bool]:
    """A former decision whose successor is that old. So the last one of a key stays, whichever is current; and so does
    what a person pinned, revoked or banned: of a ban, no other row knows."""
    later = aliased(WinnerRow)
    followed = exists().where(
        later.key_id == WinnerRow.key_id, later.decided_at < before,
        tuple_(later.decided_at, later.id) > tuple_(WinnerRow.decided_at, WinnerRow.id),
    )  # fmt: skip
    return ~WinnerRow.is_current & WinnerRow.state.not_in(SAID) & followed


def _old_job(before: float) -> ColumnElement[bool]:
    """One that has ended. What it found is among measurements and winners, which do not refer to it."""
    return ~ACTIVE & (func.coalesce(JobRow.ended_at, JobRow.created_at) < before)


def _old_task(before: float) -> ColumnElement[bool]:
    """One that has ended. What counted of it is among the measurements."""
    return ~TASK_ACTIVE & (TaskRow.changed_at < before)


def _old_worker(when: When) -> ColumnElement[bool]:
    """The last one of each device stays: who asks what a job waits for is told of it."""
    rank = func.row_number().over(
        partition_by=WorkerRow.device, order_by=(WorkerRow.seen_at.desc(), WorkerRow.id.desc())
    )
    ranked = select(WorkerRow.id, rank.label("rank")).subquery()
    crowd = select(ranked.c.id).where(ranked.c.rank > WORKERS_KEPT)
    others = select(ranked.c.id).where(ranked.c.rank > 1)
    gone = (WorkerRow.seen_at < when.now - CROWD_S) & WorkerRow.id.in_(crowd)
    return gone | (WorkerRow.seen_at < when.before) & WorkerRow.id.in_(others)


def _measurements(connection: Connection, when: When, after: int) -> Swept:
    return _walk(connection, MeasurementRow, MeasurementRow.id, _old_measurement(when.before), after)


def _winners(connection: Connection, when: When, after: int) -> Swept:
    return _walk(connection, WinnerRow, WinnerRow.id, _old_winner(when.before), after)


def _workers(connection: Connection, when: When, after: int) -> Swept:
    """The first ones until none is left: who is the last of a device is found among all."""
    old = select(WorkerRow.id).where(_old_worker(when)).limit(ROWS_AT_ONCE)
    ids = connection.execute(old).scalars().all()
    for chunk in chunks(ids):
        connection.execute(delete(WorkerRow).where(WorkerRow.id.in_(chunk)))
    return Swept(len(ids), after if len(ids) == ROWS_AT_ONCE else None)


def _jobs(connection: Connection, when: When, after: int) -> Swept:
    """Whole jobs with their keys: as many as have ROWS_AT_ONCE keys together, but one at least."""
    keys = select(func.count()).where(JobKeyRow.job_id == JobRow.id).scalar_subquery()
    page = select(JobRow.id, _old_job(when.before).label("old"), keys.label("keys")).where(JobRow.id > after)
    rows = connection.execute(page.order_by(JobRow.id).limit(ROWS_AT_ONCE)).all()
    old: list[int] = []
    last, left = None, ROWS_AT_ONCE
    for row in rows:
        if row.old and old and row.keys > left:
            break
        last = row.id
        if row.old:
            old.append(row.id)
            left -= row.keys
    for chunk in chunks(old):
        connection.execute(select(JobRow.id).where(JobRow.id.in_(chunk)).order_by(JobRow.id).with_for_update())
        connection.execute(delete(JobKeyRow).where(JobKeyRow.job_id.in_(chunk)))
        connection.execute(delete(JobRow).where(JobRow.id.in_(chunk)))
    return Swept(len(old), last)


def _tasks(connection: Connection, when: When, after: int) -> Swept:
    """By the index of their times: the first ones until none is left. With their attempts."""
    if _abandoned(connection, when.now) == AT_ONCE:
        return Swept(0, after)
    old = select(TaskRow.id).where(_old_task(when.before)).order_by(TaskRow.changed_at).limit(ROWS_AT_ONCE)
    ids = connection.execute(old).scalars().all()
    for chunk in chunks(ids):
        connection.execute(delete(AttemptRow).where(AttemptRow.task_id.in_(chunk)))
        connection.execute(delete(TaskRow).where(TaskRow.id.in_(chunk), ~TASK_ACTIVE))
    return Swept(len(ids), after if len(ids) == ROWS_AT_ONCE else None)


def _abandoned(connection: Connection, now: float) -> int:
    """End tasks of a service that was killed and has no successor: how many. One that waits for such a task all the
    same asks for it anew."""
    left = select(TaskRow.name).where(TASK_ACTIVE, TaskRow.changed_at < now - ABANDONED_S).order_by(TaskRow.changed_at)
    names = connection.execute(left.limit(AT_ONCE).with_for_update(skip_locked=True)).scalars().all()
    for name in names:
        tasks.withdraw(connection, name, now)
    return len(names)


def _walk(
    connection: Connection, row: type, row_id: InstrumentedAttribute[int], old: ColumnElement[bool], after: int
) -> Swept:
    """Look at the next ROWS_AT_ONCE rows and remove those that are old. Where none is, nothing is written: a statement
    that removes nothing is one that triggers count, and whoever remembers winners would forget them."""
    page = select(row_id).where(row_id > after).order_by(row_id).limit(ROWS_AT_ONCE).subquery()
    last = connection.execute(select(func.max(page.c.id))).scalar()
    if last is None:
        return Swept(0, None)
    found = select(row_id).where(row_id > after, row_id <= last, old)
    removed = 0
    for chunk in chunks(connection.execute(found).scalars().all()):
        removed += connection.execute(delete(row).where(row_id.in_(chunk), old)).rowcount
    return Swept(removed, last)


SWEEPS: dict[str, Sweep] = {
    "measurements": _measurements, "winners": _winners, "jobs": _jobs, "tasks": _tasks, "workers": _workers,
}  # fmt: skip
