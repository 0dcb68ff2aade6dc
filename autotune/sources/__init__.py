"""Where the runtime hook reads winners: a service, a SQLite file, an exported JSON file.

On the standard library alone, each part of it imported by the source that needs it: a program that calls
`import autotune` pays for none of them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from autotune.sources.http_source import HTTP_TIMEOUT_S, HttpSource
from autotune.sources.json_source import JsonSource
from autotune.sources.source import Source, SourceError
from autotune.sources.sqlite_source import SqliteSource
from autotune.sources.starter_source import NAME as STARTER
from autotune.sources.starter_source import StarterSource

SQLITE_MAGIC = b"SQLite format 3\x00"


def open_source(spec: str | os.PathLike[str], *, token: str | None = None, timeout_s: float = HTTP_TIMEOUT_S) -> Source:
    """The source at a URL (`http://`, `https://`) or in a file: a service's SQLite database or an exported bundle;
    `starter` is what comes with the package.

    Nothing is read yet but the file's first bytes; a file that is missing may come later. `token` is AUTOTUNE_TOKEN
    unless given. Raises SourceError for an address of a kind that is not read here.
    """
    text = os.fspath(spec)
    if text == STARTER:
        return StarterSource()
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _open_file(Path(text))
    if scheme in ("http", "https"):
        token = os.environ.get("AUTOTUNE_TOKEN", "") if token is None else token
        return HttpSource(text, token=token, timeout_s=timeout_s)
    if scheme == "file":
        return _open_file(Path(unquote(urlsplit(text).path)))
    if scheme == "sqlite" and rest.startswith("/"):
        return SqliteSource(Path(rest[1:]))  # as SQLAlchemy has it: a third slash, then the path
    raise SourceError(
        f"expected http://, https://, a SQLite file or an exported JSON file, found {scheme}://: "
        f"start `autotune serve` on it and give the service's address"
    )


def _open_file(path: Path) -> Source:
    head, mode = b"", 0
    try:
        path = path.expanduser()
        with contextlib.suppress(OSError):  # what is missing, or cannot be looked at, may be there later
            mode = path.stat().st_mode
    except (RuntimeError, ValueError) as error:  # a home that nobody has, what no path can have in it
        raise SourceError(f"expected a file's path, found {str(path)!r}: {error}") from None
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for who writes into it
        raise SourceError(f"expected a SQLite file or an exported JSON file, found a device or pipe at {path}")
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(len(SQLITE_MAGIC))
    is_json = head.lstrip()[:1] == b"{" if head else path.suffix == ".json"
    return JsonSource(path) if is_json else SqliteSource(path)


__all__ = ["HttpSource", "JsonSource", "Source", "SourceError", "SqliteSource", "StarterSource", "open_source"]
