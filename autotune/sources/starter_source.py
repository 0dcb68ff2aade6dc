"""Winners that come with the package: measured for the built-in networks on devices that we had, one bundle each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotune.bundle import BundleError, read
from autotune.sources.source import SourceError, usable
from autotune.winner import Winner
from strategies.key import ConvKey
from strategies.locks import ForkLock

NAME = "starter"
STARTERS = Path(__file__).resolve().parent.parent / "starters"


class StarterSource:
    """Every bundle in `directory`, read at the first lookup. What is in them never changes while a program runs.

    A winner is found by its key's digest alone, so only where shape, policy, device, renderer, cores, tinygrad's
    version and code generation flags are those that it was measured with.
    """

    def __init__(self, directory: Path = STARTERS) -> None:
        self._directory = directory
        self._lock = ForkLock()
        self._winners: dict[str, Winner] | None = None

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        with self._lock:
            if self._winners is None:
                self._winners = self._read()
            return {key.digest: self._winners[key.digest] for key in keys if key.digest in self._winners}

    def version(self) -> object:
        return NAME

    def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> dict[str, Winner]:
        found: dict[str, Winner] = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                found |= {winner.key.digest: winner for winner in read(path)}
            except BundleError as error:
                raise SourceError(str(error)) from None
        return usable(found)
