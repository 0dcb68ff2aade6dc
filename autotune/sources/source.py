"""What a source is, and what every source checks before it hands out a winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autotune.bundle import BundleError, parse_winner
from autotune.winner import WITHDRAWN_STATES, Winner
from strategies.key import ConvKey


class SourceError(RuntimeError):
    """The source cannot be read, or what it says cannot be trusted. One line: expected, found, what to do."""


class Source(Protocol):
    """Knows winners. Every method may be called from several threads at once."""

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        """The winners of these keys by digest, whatever their state but revoked; unknown ones are absent.

        Raises SourceError.
        """

    def version(self) -> object:
        """A value that differs from the former one when winners may have changed; cheap, comparable, never raises."""

    def close(self) -> None:
        """Give back what it holds. Idempotent; the next use takes it again."""


def usable(winners: Mapping[str, Winner]) -> dict[str, Winner]:
    """Those that nobody withdrew."""
    return {digest: winner for digest, winner in winners.items() if winner.state not in WITHDRAWN_STATES}


def checked(found: Mapping[str, Any], where: object) -> dict[str, Winner]:
    """Winners from JSON by the digest they are filed under. Raises SourceError for one that belongs to another key."""
    result = {}
    for digest, data in found.items():
        try:
            winner = parse_winner(data)
        except BundleError as error:
            raise SourceError(f"{where}: {error}") from None
        if winner.key.digest != digest:
            raise SourceError(
                f"{where}: expected the winner of key {digest}, found that of {winner.key.digest} ({winner.key}): "
                f"do not trust this source"
            )
        result[digest] = winner
    return result
