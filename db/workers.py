"""Workers: registered once, heard of every few seconds, kept after their end."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select, update

from autotune.fleet import Worker
from db.address import insert_new
from db.codec import decode, encode, plain
from db.errors import UnknownWorkerError
from db.models import WorkerRow
from strategies.key import DeviceSpec

SHOWN, SHOWN_OF_A_KIND = 1000, 20
"""How many workers are listed at the most; of those that are silent, how many for each device."""
RECENT_S = 60.0
"""Who was heard of within this time is listed in any case."""

log = logging.getLogger("autotune.db")


def register(connection: Connection, worker: Worker, now: float) -> None:
    """Say who it is. Names are never used twice."""
    insert_new(
        connection, WorkerRow, name=plain(worker.name), device=encode(worker.device.to_json()),
        about=encode(worker.about), in_use=worker.in_use, unfit=plain(worker.unfit), started_at=now, seen_at=now,
    )  # fmt: skip


def heard(connection: Connection, name: str, in_use: bool, now: float) -> None:
    """It lives. Raises UnknownWorkerError: a machine may have slept until its worker's row was removed."""
    known = update(WorkerRow).where(WorkerRow.name == plain(name))
    if connection.execute(known.values(seen_at=now, in_use=in_use)).rowcount == 0:
        raise UnknownWorkerError(f"expected a worker that is known, found none called {name!r}: register it")


def unfit(connection: Connection, name: str, reason: str) -> None:
    """It takes no more work."""
    connection.execute(update(WorkerRow).where(WorkerRow.name == plain(name)).values(unfit=plain(reason)))


def retire(connection: Connection, name: str, now: float) -> None:
    """It has ended in good order."""
    connection.execute(update(WorkerRow).where(WorkerRow.name == plain(name)).values(ended_at=now, seen_at=now))


def workers(connection: Connection, now: float) -> list[Worker]:
    """Who was heard of last comes first. Of each device the last ones are there, however long ago that was and however
    many others have come and gone since."""
    latest = WorkerRow.seen_at.desc(), WorkerRow.id.desc()
    rank = func.row_number().over(partition_by=WorkerRow.device, order_by=latest).label("rank")
    ranked = select(WorkerRow.__table__, rank).subquery()
    listed = or_(ranked.c.rank <= SHOWN_OF_A_KIND, ranked.c.seen_at > now - RECENT_S)
    query = select(ranked).where(listed).order_by(ranked.c.seen_at.desc(), ranked.c.id.desc()).limit(SHOWN)
    found = (_parsed(row, now) for row in connection.execute(query))
    return [worker for worker in found if worker is not None]


def _parsed(row: Row[Any], now: float) -> Worker | None:
    """None for a row that another release wrote, or nobody of ours: one worker that cannot be read hides no other."""
    try:
        return Worker(
            name=row.name, device=DeviceSpec.from_json(decode(row.device)), about=dict(decode(row.about)),
            in_use=row.in_use, unfit=row.unfit, ended=row.ended_at is not None, silent_s=max(0.0, now - row.seen_at),
            started_at=row.started_at, seen_at=row.seen_at,
        )  # fmt: skip
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        _say_once(row.name, f"{type(error).__name__}: {error}")
        return None


@lru_cache(maxsize=1000)
def _say_once(name: str, found: str) -> None:
    """Workers are read every second."""
    log.warning("the worker %r is left out, as its row cannot be read: %s", name, found)
