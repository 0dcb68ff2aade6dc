"""The file in which winners travel: versioned, checksummed JSON. Nothing in it is ever executed.

    {"format": "tinygrad-autotune-bundle", "version": 1, "winners": [...], "sha256": "..."}

`sha256` is over the canonical JSON (sorted, compact, ASCII) of the three other fields: it finds truncation and
damage, and edits by hand. It is no signature: that is the optional `hmac_sha256`, over the same, with a key that
whoever writes the bundle and whoever reads it share.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autotune.winner import Winner, WinnerState

FORMAT = "tinygrad-autotune-bundle"
VERSION = 1
MIN_KEY_BYTES = 32
MAX_DEPTH = 20
"""Of what a winner says of its provenance: ours has 3 levels, and whoever answers with it walks through all of them."""
MAX_TIME_S = 253402300799.0
"""The last second of the year 9999, beyond which there is no date to show."""
HELD = (WinnerState.PINNED, WinnerState.REVOKED)
SAID = (*HELD, WinnerState.BANNED)
"""What a person decided."""


class BundleError(ValueError):
    """Not a bundle that can be read: one line, what was expected, what was found and what to do."""


def dump(winners: Iterable[Winner], *, key: bytes | None = None) -> bytes:
    """The bundle as UTF-8, one winner per line so that two of them can be compared. `load` is the inverse.

    With a key it is signed.

    Winners of a simulated device stay here: their times are none.

    Raises BundleError for numbers that JSON cannot hold and for two winners of one key.
    """
    items = [winner for winner in winners if not winner.key.device.simulated]
    _distinct(items)
    try:
        rows = [_canonical(winner.to_json()) for winner in items]
    except ValueError as error:
        raise BundleError(f"expected winners whose numbers are finite, found one with another: {error}") from None
    sums = f'"sha256": "{_checksum(rows)}"'
    if key is not None:
        sums += f', "hmac_sha256": "{_signature(rows, key)}"'
    head = f'{{"format": "{FORMAT}", "version": {VERSION}, "winners": [\n'
    return b"".join((head.encode(), b",\n".join(rows), f"\n], {sums}}}\n".encode()))


def load(data: bytes, *, key: bytes | None = None) -> list[Winner]:
    """The winners of a bundle, in its order. Raises BundleError unless every one of them can be read.

    With a key, only a bundle that was signed with it is read.
    """
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
    try:
        rows = [_canonical(item) for item in items]
    except RecursionError:  # it was just within bounds when it was parsed
        raise BundleError(
            "expected winners, found JSON nested hundreds of levels deep: export the bundle again"
        ) from None
    if document.get("sha256") != _checksum(rows):
        raise BundleError(
            "expected the checksum of what the bundle contains, found another: it was damaged or edited; "
            "export it again"
        )
    if key is not None:
        _expect_signed(document.get("hmac_sha256"), rows, key)
    winners = [parse_winner(item) for item in items]
    for winner in winners:
        if winner.key.device.simulated:
            raise BundleError(
                f"expected winners measured on a device, found one timed on {winner.key.device.simulated}: leave it out"
            )
    _distinct(winners)
    return winners


def write(path: str | os.PathLike[str], winners: Iterable[Winner], *, key: bytes | None = None) -> None:
    """Write a bundle so that a reader sees the former file or the new one, never a part, whatever is killed when.

    Raises BundleError where it cannot be written, and for what is there and no file: a device, say, which the new file
    would take the place of for every program on the machine.
    """
    target = Path(path)
    if not target.name:
        raise BundleError(f"expected to write a file, found no name of one in {os.fspath(path)!r}: name a path")
    if target.exists() and not (target.is_file() or target.is_dir()):  # of a directory the system says so itself
        raise BundleError(f"expected to write a file at {target}, found a device or a pipe there: name another path")
    data = dump(winners, key=key)
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


def read(path: str | os.PathLike[str], *, key: bytes | None = None) -> list[Winner]:
    """The winners of a bundle file. Raises BundleError, which names the file."""
    try:
        return load(Path(path).read_bytes(), key=key)
    except OSError as error:
        raise BundleError(f"expected a bundle at {path}, found: {error.strerror}; name another path") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def read_key(path: str | os.PathLike[str]) -> bytes:
    """The key in a file, whitespace around it left out. Raises BundleError for none, or one that can be guessed."""
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise BundleError(f"expected a key at {path}, found: {error.strerror}; name another path") from error
    if len(key) < MIN_KEY_BYTES:
        raise BundleError(
            f"expected a key of at least {MIN_KEY_BYTES} characters in {path}, found {len(key)}: make one with "
            f"`openssl rand -hex 32`"
        )
    return key


def merge(existing: Winner | None, incoming: Winner) -> Winner | None:
    """What to decide for a key when a bundle brings `incoming`; None when what is there stays.

    1. Nothing there: the incoming one.
    2. Pinned or revoked here stays: a person said so. Of a banned one only its own candidate is kept out.
    3. A guess never replaces what was measured; what was measured replaces a guess.
    4. The newer `decided_at` wins. Of the same decision, one that somebody pinned, revoked or banned meanwhile wins.
    """
    if existing is None:
        return incoming
    if existing.state in HELD:
        return None
    guesses = (existing.state is WinnerState.GUESS, incoming.state is WinnerState.GUESS)
    if guesses[0] != guesses[1]:
        return incoming if guesses[0] else None
    if incoming.decided_at == existing.decided_at and incoming.candidate == existing.candidate:
        return incoming if incoming.state in SAID and existing.state not in SAID else None
    if existing.state is WinnerState.BANNED and incoming.candidate == existing.candidate:
        return None
    return incoming if incoming.decided_at > existing.decided_at else None


def parse_json(data: bytes) -> Any:
    """Strict JSON from a file or a server: UTF-8, no NaN, no infinity, no half characters. Raises BundleError."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_float=_float)
        if b"\\u" in data:  # an escape may be half a character, which no page and no answer could show
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
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
        if not (isinstance(values, list) and len(values) == 3 and all(_number(v) and v > 0 for v in values)):
            raise TypeError(f"{name} must be three numbers above 0: got {values!r}")
    for name in ("times_s", "provenance"):
        if not isinstance(data.get(name, {}), Mapping):
            raise TypeError(f"{name} must be an object: got {data[name]!r}")
    if not all(map(_number, data.get("times_s", {}).values())):
        raise TypeError(f"times_s must be numbers: got {data['times_s']!r}")
    if _depth(data.get("provenance", {})) > MAX_DEPTH:
        raise TypeError(f"provenance may be nested {MAX_DEPTH} levels deep: it is deeper")
    if not (data.get("error") is None or _number(data["error"])):
        raise TypeError(f"error must be a number or null: got {data['error']!r}")
    decided_at = data.get("decided_at", 0.0)
    if not (_number(decided_at) and 0 <= decided_at <= MAX_TIME_S):
        raise TypeError(f"decided_at must be seconds since 1970, and no later than 9999: got {decided_at!r}")
    workspace = data.get("workspace_bytes", 0)
    if isinstance(workspace, bool) or not isinstance(workspace, int) or workspace < 0:
        raise TypeError(f"workspace_bytes must be 0 or more: got {workspace!r}")


def _number(value: Any) -> bool:
    # Python reads a whole number beyond a float's range as it is; no float can be made of it.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _depth(value: Any) -> int:
    """How many lists and objects lie within each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | Mapping)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, Mapping) else item)]
    return depth


def _distinct(winners: list[Winner]) -> None:
    seen: set[str] = set()
    for winner in winners:
        if winner.key.digest in seen:
            raise BundleError(f"expected one winner per key, found two for {winner.key}: keep one of them")
        seen.add(winner.key.digest)


def _content(rows: Sequence[bytes]) -> Iterator[bytes]:
    """The canonical JSON of all but the sums, of winners in canonical JSON, piece by piece: there may be a hundred
    thousand of them, and it takes as much memory as the bundle itself."""
    yield f'{{"format":"{FORMAT}","version":{VERSION},"winners":['.encode()
    for index, row in enumerate(rows):
        yield b"," + row if index else row
    yield b"]}"


def _checksum(rows: Sequence[bytes]) -> str:
    found = hashlib.sha256()
    for piece in _content(rows):
        found.update(piece)
    return found.hexdigest()


def _signature(rows: Sequence[bytes], key: bytes) -> str:
    found = hmac.new(key, digestmod=hashlib.sha256)
    for piece in _content(rows):
        found.update(piece)
    return found.hexdigest()


def _expect_signed(found: object, rows: Sequence[bytes], key: bytes) -> None:
    if not isinstance(found, str):
        raise BundleError("expected a signed bundle, found none: export it with --key")
    if not hmac.compare_digest(found.encode("utf-8", "replace"), _signature(rows, key).encode()):
        raise BundleError("expected a bundle signed with this key, found another signature: do not trust it")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
