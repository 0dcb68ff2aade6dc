"""Winners from an exported bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotune.bundle import BundleError, read
from autotune.sources.source import SourceError, usable
from autotune.winner import Winner
from strategies.key import ConvKey
from strategies.locks import ForkLock


class JsonSource:
    """A bundle written by `autotune export`, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = ForkLock()
        self._read_at: object = None
        self._content: dict[str, Winner] | SourceError = {}

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        with self._lock:
            version = self.version()  # before reading: a change in between is seen next time
            if version is None or version != self._read_at:
                self._content, self._read_at = self._read(), version
            content = self._content
        if isinstance(content, SourceError):
            raise SourceError(str(content))  # a new one: one that is raised again and again collects tracebacks
        return usable({key.digest: content[key.digest] for key in keys if key.digest in content})

    def version(self) -> object:
        """The file's identity, size and time of change; None while there is none."""
        try:
            info = self._path.stat()
        except OSError:
            return None
        return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)

    def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> dict[str, Winner] | SourceError:
        try:
            return {winner.key.digest: winner for winner in read(self._path)}
        except BundleError as error:
            return SourceError(str(error))
