"""Guesses for what is about to be tuned: until then it has the best that is known of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.neighbours import guess
from autotune.store import Store
from strategies.key import ConvKey

MOST = 50
"""Of one request: each takes a model of its neighbours' measurements, a fraction of a second."""


def keep_guesses(store: Store, keys: Sequence[ConvKey]) -> int:
    """Keep a guess for each key that has no winner and whose neighbours are known; how many there were.

    A guess never replaces what was measured, and is replaced by it. Hooks ignore it unless they ask for guesses.
    """
    unknown = [key for key in keys[:MOST] if store.winner(key) is None]
    made = [found for key in unknown if (found := guess(store, key)) is not None]
    return store.merge(made) if made else 0
