"""Measurements: added, never changed; old ones may be removed (retention.py)."""

from __future__ import annotations

from sqlalchemy import Connection, select

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


def measurements(connection: Connection, key: ConvKey) -> list[Measurement]:
    """All of a key, oldest first; those of one instant in the order of recording."""
    rows = connection.execute(
        select(MeasurementRow.body)
        .join(KeyRow, KeyRow.id == MeasurementRow.key_id)
        .where(KeyRow.digest == key.digest)
        .order_by(MeasurementRow.measured_at, MeasurementRow.id)
    ).scalars()
    return [Measurement.from_json(decode(body)) for body in rows]
