"""How values become text columns, and back.

JSON is kept as text, not as a JSON type: it reads the same through every driver and through the runtime hook's
`sqlite3`, and PostgreSQL's own type would refuse the NaN that a wrong candidate's error may be.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

MAX_ID = 2**31 - 1
"""The largest number that both databases take as a row's id."""


def encode(value: Any, *, allow_nan: bool = True) -> str:
    """The one spelling of a JSON value: sorted, compact, ASCII. ValueError for NaN or infinity where not allowed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=allow_nan)


def decode(text: str) -> Any:
    """The inverse of `encode`."""
    return json.loads(text)


def digest(value: Any) -> str:
    """32 hex digits of SHA-256 over the JSON value."""
    return hashlib.sha256(encode(value).encode()).hexdigest()[:32]


def plain(text: str) -> str:
    """Text that every database takes: PostgreSQL has no NUL, neither has lone surrogates. Others stay as they are."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
