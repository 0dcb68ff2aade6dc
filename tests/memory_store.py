"""A store of measurements and winners that forgets: for tests of the search, which knows no jobs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

from autotune.bundle import merge
from autotune.measurement import Measurement
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey


class MemoryStore:
    """The part of autotune.store.Store that a search uses, in memory, values passed through JSON as a real one does."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._measured: dict[str, Measurement] = {}
        self._winners: list[Winner] = []
        self._current: dict[str, int] = {}
        self._changes = 0

    def record(self, measurement: Measurement) -> bool:
        with self._lock:
            if measurement.attempt in self._measured:
                return False
            self._measured[measurement.attempt] = Measurement.from_json(measurement.to_json())
            return True

    def measurements(self, key: ConvKey) -> list[Measurement]:
        with self._lock:
            return [m for m in self._measured.values() if m.key.digest == key.digest]

    def decide(self, winner: Winner) -> int:
        with self._lock:
            self._changes += 1
            self._winners.append(Winner.from_json(winner.to_json()))
            former = self.winner(winner.key)
            if former is None or former.state not in (WinnerState.PINNED, WinnerState.REVOKED):
                self._current[winner.key.digest] = len(self._winners)
            return len(self._winners)

    def merge(self, incoming: Iterable[Winner]) -> int:
        with self._lock:
            kept = [winner for winner in incoming if merge(self.winner(winner.key), winner) is not None]
            for winner in kept:
                self.decide(winner)
            return len(kept)

    def winner(self, key: ConvKey) -> Winner | None:
        with self._lock:
            at = self._current.get(key.digest)
            return self._winners[at - 1] if at else None

    def history(self, key: ConvKey) -> list[tuple[int, Winner]]:
        with self._lock:
            rows = [(i, winner) for i, winner in enumerate(self._winners, 1) if winner.key.digest == key.digest]
            return sorted(rows, key=lambda row: (-row[1].decided_at, -row[0]))

    def lookup(self, digests: Sequence[str]) -> dict[str, Winner]:
        with self._lock:
            found = {digest: self._winners[self._current[digest] - 1] for digest in digests if digest in self._current}
            return {digest: winner for digest, winner in found.items() if winner.state is not WinnerState.REVOKED}

    def lookup_json(self, digests: Sequence[str]) -> dict[str, str]:
        return {digest: json.dumps(winner.to_json()) for digest, winner in self.lookup(digests).items()}

    def changes(self) -> int:
        with self._lock:
            return self._changes

    @property
    def reads_at_once(self) -> bool:
        return True

    def winners(self, *, device: str | None = None, limit: int = 1000, offset: int = 0) -> list[tuple[int, Winner]]:
        with self._lock:
            rows = [(i, self._winners[i - 1]) for i in self._current.values()]
            rows = [row for row in rows if device in (None, row[1].key.device.device)]
            rows.sort(key=lambda row: -row[1].decided_at)
            return rows[offset : offset + limit]

    def set_state(self, winner_id: int, state: WinnerState) -> Winner:
        with self._lock:
            if not 1 <= winner_id <= len(self._winners):
                raise LookupError(f"no winner {winner_id}")
            self._changes += 1
            self._winners[winner_id - 1] = replace(self._winners[winner_id - 1], state=state)
            return self._winners[winner_id - 1]
