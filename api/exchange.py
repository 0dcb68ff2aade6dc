"""Winners into and out of the store as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from autotune.store import Store
from autotune.winner import Winner

EVERYTHING = 2**31 - 1
"""More winners than a store has: one query, so that what changes meanwhile is neither missed nor seen twice."""


def all_winners(store: Store, *, device: str | None = None) -> list[tuple[int, Winner]]:
    """Every current winner, of one device or of all, latest first."""
    return store.winners(device=device, limit=EVERYTHING)


def nothing_known(device: str, known: Iterable[tuple[int, Winner]]) -> str:
    """Why there are no winners of `device`, next to what is known of others."""
    counts = Counter(winner.key.device.device for _, winner in known)
    others = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return f"no winners on {device}: " + (f"there are some on {others}" if others else "none are known at all yet")


def import_winners(store: Store, winners: Sequence[Winner]) -> dict[str, int]:
    """Keep each winner that says more than what is there; see `autotune.bundle.merge`. Counts of both."""
    imported = store.merge(winners)
    return {"imported": imported, "kept": len(winners) - imported}
