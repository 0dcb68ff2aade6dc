"""Guesses for what is about to be tuned: until then it has the best that is known of its neighbours."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from autotune.neighbours import guess
from autotune.store import Store
from autotune.winner import Winner
from strategies.key import ConvKey

MOST = 50
"""Of one request: each takes a model of its neighbours' measurements, a fraction of a second."""


_one_at_a_time = threading.Lock()


def guessed(store: Store, keys: Sequence[ConvKey]) -> Winner | None:
    """A guess for one key that nothing is known of, not kept; None for a withdrawn winner's key, for several keys, and
    where no neighbour was measured. One is made at a time, others wait: a model is made in each."""
    if len(keys) != 1 or store.winner(keys[0]) is not None:
        return None
    with _one_at_a_time:
        return guess(store, keys[0])


def keep_guesses(store: Store, keys: Sequence[ConvKey]) -> int:
    """Keep a guess for each key that has no winner and whose neighbours are known; how many there were.

    A guess never replaces what was measured, and is replaced by it. Hooks ignore it unless they ask for guesses.
    """
    unknown = [key for key in keys[:MOST] if store.winner(key) is None]
    made = [found for key in unknown if (found := guess(store, key)) is not None]
    return store.merge(made) if made else 0
