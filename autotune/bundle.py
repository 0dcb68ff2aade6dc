"""The file in which winners travel: versioned, checksummed JSON. Nothing in it is ever executed.

    {"format": "tinygrad-autotune-bundle", "version": 1, "winners": [...], "sha256": "..."}

`sha256` is over the canonical JSON (sorted, compact, ASCII) of the three other fields: it finds truncation and
damage, and edits by hand. It is no signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from autotune.winner import Winner, WinnerState
from strategies.shape import JsonObject

FORMAT = "tinygrad-autotune-bundle"
VERSION = 1
HELD = (WinnerState.PINNED, WinnerState.REVOKED)


class BundleError(ValueError):
    """Not a bundle that can be read: one line, what was expected, what was found and what to do."""


def dump(winners: Iterable[Winner]) -> bytes:
    """The bundle as UTF-8, one winner per line so that two of them can be compared. `load` is the inverse.

    Winners of a simulated device stay here: their times are none.

    Raises BundleError for numbers that JSON cannot hold and for two winners of one key.
    """
    items = [winner for winner in winners if not winner.key.device.simulated]
    _distinct(items)
    try:
        rows = [_canonical(winner.to_json()) for winner in items]
    except ValueError as error:
        raise BundleError(f"expected winners whose numbers are finite, found one with another: {error}") from None
    checksum = _checksum([json.loads(row) for row in rows])
    body = ",\n".join(rows)
    text = f'{{"format": "{FORMAT}", "version": {VERSION}, "winners": [\n{body}\n], "sha256": "{checksum}"}}\n'
    return text.encode()


def load(data: bytes) -> list[Winner]:
    """The winners of a bundle, in its order. Raises BundleError unless every one of them can be read."""
    document = parse_json(data)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(
            f'expected a bundle ("format": "{FORMAT}"), found another JSON document: '
            f"give a file written by `autotune export`"
        )
    version = document.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BundleError(f"expected a bundle of version {VERSION}, found version {version!r}: export it again")
    if version > VERSION:
        raise BundleError(
            f"expected a bundle of version {VERSION} or older, found version {version}, written by a newer release: "
            f"upgrade tinygrad-autotune"
        )
    items = document.get("winners")
    if not isinstance(items, list):
        raise BundleError(f"expected a list of winners, found {type(items).__name__}: export the bundle again")
    if document.get("sha256") != _checksum(items):
        raise BundleError(
            "expected the checksum of what the bundle contains, found another: it was damaged or edited; "
            "export it again"
        )
    winners = [parse_winner(item) for item in items]
    for winner in winners:
        if winner.key.device.simulated:
            raise BundleError(
                f"expected winners measured on a device, found one timed on {winner.key.device.simulated}: leave it out"
            )
    _distinct(winners)
    return winners


def write(path: str | os.PathLike[str], winners: Iterable[Winner]) -> None:
    """Write a bundle so that a reader sees the former file or the new one, never a part, whatever is killed when."""
    target = Path(path)
    data = dump(winners)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise BundleError(f"expected to write {target}, found: {error.strerror}; name another path") from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be written it may not be removed either
            partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> list[Winner]:
    """The winners of a bundle file. Raises BundleError, which names the file."""
    try:
        return load(Path(path).read_bytes())
    except OSError as error:
        raise BundleError(f"expected a bundle at {path}, found: {error.strerror}; name another path") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def merge(existing: Winner | None, incoming: Winner) -> Winner | None:
    """What to decide for a key when a bundle brings `incoming`; None when what is there stays.

    1. Nothing there: the incoming one.
    2. Pinned or revoked here stays: a person said so.
    3. A guess never replaces what was measured; what was measured replaces a guess.
    4. The newer `decided_at` wins. Of the same decision, one that somebody pinned or revoked meanwhile wins.
    """
    if existing is None:
        return incoming
    if existing.state in HELD:
        return None
    guesses = (existing.state is WinnerState.GUESS, incoming.state is WinnerState.GUESS)
    if guesses[0] != guesses[1]:
        return incoming if guesses[0] else None
    if incoming.decided_at == existing.decided_at and incoming.candidate == existing.candidate:
        return incoming if incoming.state in HELD else None
    return incoming if incoming.decided_at > existing.decided_at else None


def parse_json(data: bytes) -> Any:
    """Strict JSON from a file or a server: UTF-8, no NaN, no infinity. Raises BundleError."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_float=_float)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"expected JSON, found something else or only a part of it ({_line(error)}): fetch it again"
        ) from None


def parse_winner(data: Any) -> Winner:
    """A winner from JSON that somebody else wrote: every field of the right type. Raises BundleError."""
    try:
        _check_types(data)
        return Winner.from_json(data)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"expected a winner, found one that cannot be read ({_line(error)}): export it again"
        ) from None


def _check_types(data: Any) -> None:
    """What `Winner.from_json` takes on trust."""
    if not isinstance(data, Mapping):
        raise TypeError(f"it is a {type(data).__name__}")
    for name in ("time_s", "default_time_s", "ratio"):
        values = data[name]
        if not (isinstance(values, list) and len(values) == 3 and all(_number(v) for v in values)):
            raise TypeError(f"{name} must be three numbers: got {values!r}")
    for name in ("times_s", "provenance"):
        if not isinstance(data.get(name, {}), Mapping):
            raise TypeError(f"{name} must be an object: got {data[name]!r}")
    if not (data.get("error") is None or _number(data["error"])):
        raise TypeError(f"error must be a number or null: got {data['error']!r}")
    if not _number(data.get("decided_at", 0.0)):
        raise TypeError(f"decided_at must be a number: got {data['decided_at']!r}")
    workspace = data.get("workspace_bytes", 0)
    if isinstance(workspace, bool) or not isinstance(workspace, int) or workspace < 0:
        raise TypeError(f"workspace_bytes must be 0 or more: got {workspace!r}")


def _number(value: Any) -> bool:
    # Python reads a whole number beyond a float's range as it is; no float can be made of it.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _distinct(winners: list[Winner]) -> None:
    seen: set[str] = set()
    for winner in winners:
        if winner.key.digest in seen:
            raise BundleError(f"expected one winner per key, found two for {winner.key}: keep one of them")
        seen.add(winner.key.digest)


def _checksum(winners: list[JsonObject]) -> str:
    content = {"format": FORMAT, "version": VERSION, "winners": winners}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
