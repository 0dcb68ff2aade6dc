"""Devices and keys: found by digest, added when they are new, never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection, select

from db.address import insert_new
from db.codec import digest, encode, plain
from db.models import DeviceRow, KeyRow
from strategies.key import ConvKey, DeviceSpec

T = TypeVar("T")
CHUNK = 500
"""Values per `IN`: SQLite before 3.32 takes 999 parameters."""


class Ids(NamedTuple):
    """The rows of a key and of the exact device it names."""

    key: int
    device: int


def keep_keys(connection: Connection, keys: Sequence[ConvKey]) -> list[Ids]:
    """The rows of the keys, in order; those that are new are added."""
    devices = _keep_devices(connection, {digest(key.device.to_json()): key.device for key in keys})
    wanted = {key.digest: key for key in keys}
    known = key_ids(connection, wanted)
    missing = sorted(wanted.keys() - known.keys())  # in one order everywhere: two writers never wait in a circle
    for key_digest in missing:
        key = wanted[key_digest]
        insert_new(
            connection, KeyRow, digest=key_digest, device_id=devices[digest(key.device.to_json())],
            shape=encode(key.shape.to_json()), policy=encode(key.policy.to_json()), dtype=key.shape.dtype,
            batch=key.shape.batch, cin=key.shape.cin, cout=key.shape.cout, groups=key.shape.groups,
            spatial=_dims(key.shape.spatial), kernel=_dims(key.shape.kernel),
        )  # fmt: skip
    known |= key_ids(connection, missing)
    return [Ids(known[key.digest], devices[digest(key.device.to_json())]) for key in keys]


def key_ids(connection: Connection, digests: Iterable[str]) -> dict[str, int]:
    """The rows of those digests that are known."""
    result: dict[str, int] = {}
    for chunk in chunks(sorted(plain(text) for text in digests)):
        query = select(KeyRow.digest, KeyRow.id).where(KeyRow.digest.in_(chunk))
        result.update(dict(connection.execute(query).all()))
    return result


def chunks(values: Sequence[T]) -> Iterable[Sequence[T]]:
    """The values in pieces that fit into one statement."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def _keep_devices(connection: Connection, wanted: dict[str, DeviceSpec]) -> dict[str, int]:
    known = _device_ids(connection, wanted)
    missing = sorted(wanted.keys() - known.keys())
    for device_digest in missing:
        spec = wanted[device_digest]
        insert_new(
            connection, DeviceRow, digest=device_digest, identity=digest(spec.identity()), name=plain(spec.device),
            spec=encode(spec.to_json()),
        )  # fmt: skip
    return known | _device_ids(connection, missing)


def _device_ids(connection: Connection, digests: Iterable[str]) -> dict[str, int]:
    result: dict[str, int] = {}
    for chunk in chunks(sorted(digests)):
        query = select(DeviceRow.digest, DeviceRow.id).where(DeviceRow.digest.in_(chunk))
        result.update(dict(connection.execute(query).all()))
    return result


def _dims(values: Sequence[int]) -> str:
    return "x".join(str(value) for value in values)
