"""Measurements: added, never changed; old ones may be removed."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select, tuple_
from sqlalchemy.orm import aliased

from autotune.measurement import Measurement
from db.address import insert_new
from db.codec import decode, digest, encode, plain
from db.keys import keep_keys
from db.models import KeyRow, MeasurementRow
from strategies.key import ConvKey


def record(connection: Connection, measurement: Measurement) -> bool:
    """Add it unless its attempt is known. One without an attempt is known by its content."""
    body = measurement.to_json()
    attempt = plain(measurement.attempt) or f"content:{digest(body)}"
    ids = keep_keys(connection, [measurement.key])[0]
    return insert_new(
        connection, MeasurementRow, attempt=attempt, key_id=ids.key, device_id=ids.device,
        status=str(measurement.status), candidate=measurement.candidate.digest, measured_at=measurement.measured_at,
        body=encode(body),
    )  # fmt: skip


def prune(connection: Connection, before: float, limit: int) -> int:
    """Remove up to `limit` that are older than `before`; the last one of each candidate of a key stays, whatever its
    age."""
    if limit <= 0:
        return 0
    old = (
        select(MeasurementRow.id)
        .where(MeasurementRow.measured_at < before, ~_in_force())
        .order_by(MeasurementRow.id)
        .limit(limit)
    )
    return connection.execute(delete(MeasurementRow).where(MeasurementRow.id.in_(old))).rowcount


def prunable(connection: Connection, before: float) -> int:
    """How many `prune` would remove, without a limit."""
    query = select(func.count()).select_from(MeasurementRow)
    return connection.execute(query.where(MeasurementRow.measured_at < before, ~_in_force())).scalar_one()


def _in_force() -> ColumnElement[bool]:
    """The last one of a candidate of a key: what the search needs to know of it."""
    later = aliased(MeasurementRow)
    return ~exists().where(
        later.key_id == MeasurementRow.key_id, later.candidate == MeasurementRow.candidate,
        tuple_(later.measured_at, later.id) > tuple_(MeasurementRow.measured_at, MeasurementRow.id),
    )  # fmt: skip


def measurements(connection: Connection, key: ConvKey) -> list[Measurement]:
    """All of a key, oldest first; those of one instant in the order of recording."""
    rows = connection.execute(
        select(MeasurementRow.body)
        .join(KeyRow, KeyRow.id == MeasurementRow.key_id)
        .where(KeyRow.digest == key.digest)
        .order_by(MeasurementRow.measured_at, MeasurementRow.id)
    ).scalars()
    return [Measurement.from_json(decode(body)) for body in rows]
