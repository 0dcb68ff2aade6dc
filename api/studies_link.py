"""Where `autotune studies` of a database runs right now: said in a file beside it, true while that file is locked."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def announced(database: str, url: str) -> Iterator[None]:
    """`running_at` finds `url` until the block ends, however it ends. A database on a server has no such place."""
    path = _beside(database)
    if path is None:
        yield
        return
    with path.open("a+", encoding="utf-8") as file:
        with contextlib.suppress(BlockingIOError):  # two of them: the first is the one that is found
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(url)
            file.flush()
        yield


def running_at(database: str) -> str:
    """The address of Optuna's dashboard of this database, empty if it does not run."""
    path = _beside(database)
    try:
        file = path.open(encoding="utf-8") if path is not None else None
    except FileNotFoundError:
        return ""
    if file is None:
        return ""
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read()
        return ""


def _beside(database: str) -> Path | None:
    return None if "://" in database else Path(f"{os.path.realpath(database)}.studies")
