"""A local copy of what a source said, for when it cannot be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autotune import bundle
from autotune.bundle import BundleError
from autotune.winner import WITHDRAWN_STATES, Winner
from strategies.key import ConvKey

Warn = Callable[[str, str], None]


class Snapshot:
    """A bundle, as `autotune export` writes, that follows what a source says of the keys that it is asked for.

    A file that cannot be read counts as empty and is written anew; one that cannot be written is left. Both are warned
    of, neither raises.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lookup(self, keys: Sequence[ConvKey], warn: Warn) -> dict[str, Winner]:
        """The winners of these keys by digest."""
        kept = self._read(warn)
        found = {key.digest: kept[key.digest] for key in keys if key.digest in kept}
        return {digest: winner for digest, winner in found.items() if winner.state not in WITHDRAWN_STATES}

    def keep(self, keys: Sequence[ConvKey], winners: Mapping[str, Winner], warn: Warn) -> None:
        """Remember that the source, asked for `keys`, answered `winners`; what it does not know any more is dropped."""
        before = self._read(warn)
        asked = {key.digest for key in keys}
        after = {digest: winner for digest, winner in before.items() if digest not in asked} | dict(winners)
        if after == before and self.path.exists():
            return
        try:
            bundle.write(self.path, after.values())
        except BundleError as error:
            warn("snapshot", f"the snapshot of winners is not written: {error}")

    def _read(self, warn: Warn) -> dict[str, Winner]:
        if not self.path.exists():
            return {}
        try:
            return {winner.key.digest: winner for winner in bundle.read(self.path)}
        except BundleError as error:
            warn("snapshot", f"the snapshot of winners cannot be read: {error}")
            return {}
