"""Workers: registered once, heard of every few seconds, kept after their end."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from autotune.fleet import Worker
from db.address import insert_new
from db.codec import decode, encode, plain
from db.models import WorkerRow
from strategies.key import DeviceSpec

SHOWN = 200
"""How many of the workers that were heard of last are listed."""


def register(connection: Connection, worker: Worker, now: float) -> None:
    """Say who it is. Names are never used twice."""
    insert_new(
        connection, WorkerRow, name=plain(worker.name), device=encode(worker.device.to_json()),
        about=encode(worker.about), in_use=worker.in_use, started_at=now, seen_at=now,
    )  # fmt: skip


def heard(connection: Connection, name: str, in_use: bool, now: float) -> None:
    """It lives."""
    known = update(WorkerRow).where(WorkerRow.name == plain(name))
    connection.execute(known.values(seen_at=now, in_use=in_use))


def retire(connection: Connection, name: str, now: float) -> None:
    """It has ended in good order."""
    connection.execute(update(WorkerRow).where(WorkerRow.name == plain(name)).values(ended_at=now, seen_at=now))


def workers(connection: Connection, now: float) -> list[Worker]:
    """Who was heard of last comes first."""
    query = select(WorkerRow.__table__).order_by(WorkerRow.seen_at.desc(), WorkerRow.id.desc()).limit(SHOWN)
    return [
        Worker(
            name=row.name, device=DeviceSpec.from_json(decode(row.device)), about=decode(row.about), in_use=row.in_use,
            ended=row.ended_at is not None, silent_s=max(0.0, now - row.seen_at), started_at=row.started_at,
            seen_at=row.seen_at,
        )
        for row in connection.execute(query)
    ]  # fmt: skip
