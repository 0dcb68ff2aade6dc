"""Devices and keys: found by digest, added when they are new, never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection, select

from db.address import insert_all_new
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
    devices = _keep_devices(connection, {_device_digest(key): key.device for key in keys})
    wanted = {key.digest: key for key in keys}
    known = key_ids(connection, wanted)
    missing = sorted(wanted.keys() - known.keys())  # in one order everywhere: two writers never wait in a circle
    insert_all_new(connection, KeyRow, [_key_row(wanted[d], devices[_device_digest(wanted[d])]) for d in missing])
    known |= key_ids(connection, missing)
    return [Ids(known[key.digest], devices[_device_digest(key)]) for key in keys]


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
    rows = [
        {"digest": name, "identity": digest(wanted[name].identity()), "name": plain(wanted[name].device),
         "spec": encode(wanted[name].to_json())}
        for name in missing
    ]  # fmt: skip
    insert_all_new(connection, DeviceRow, rows)
    return known | _device_ids(connection, missing)


def _device_ids(connection: Connection, digests: Iterable[str]) -> dict[str, int]:
    result: dict[str, int] = {}
    for chunk in chunks(sorted(digests)):
        query = select(DeviceRow.digest, DeviceRow.id).where(DeviceRow.digest.in_(chunk))
        result.update(dict(connection.execute(query).all()))
    return result


def _key_row(key: ConvKey, device_id: int) -> dict[str, object]:
    shape = key.shape
    return {
        "digest": key.digest, "device_id": device_id, "shape": encode(shape.to_json()),
        "policy": encode(key.policy.to_json()), "dtype": shape.dtype, "batch": shape.batch, "cin": shape.cin,
        "cout": shape.cout, "groups": shape.groups, "spatial": _dims(shape.spatial), "kernel": _dims(shape.kernel),
    }  # fmt: skip


def _device_digest(key: ConvKey) -> str:
    return _digest_of(key.device)


@lru_cache(maxsize=1024)
def _digest_of(spec: DeviceSpec) -> str:
    return digest(spec.to_json())


def _dims(values: Sequence[int]) -> str:
    return "x".join(str(value) for value in values)
