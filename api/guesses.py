"""Guesses for what is about to be tuned: until then it has the best that is known of its neighbours."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from api.problem import ProblemError
from autotune.neighbours import guess
from autotune.store import Store
from autotune.winner import Winner
from strategies.key import ConvKey

MOST = 50
"""Of one request: each takes a model of its neighbours' measurements, a fraction of a second."""
MAX_WAITING, MAX_KEEPING = 8, 2
"""Lookups that found nothing, and jobs, for which guesses are made at once: each holds one of the service's 40 threads
while it waits for its turn."""

_one_at_a_time = threading.Lock()
_waiting, _keeping = threading.BoundedSemaphore(MAX_WAITING), threading.BoundedSemaphore(MAX_KEEPING)


@contextmanager
def place() -> Iterator[None]:
    """For a lookup that found nothing, while it is worked out what is near. Raises ProblemError if too many are."""
    if not _waiting.acquire(blocking=False):
        raise ProblemError(
            429, f"expected at most {MAX_WAITING} lookups at once of what nobody tuned, found more: try again",
            retry_after_s=1,
        )  # fmt: skip
    try:
        yield
    finally:
        _waiting.release()


def guessed(store: Store, keys: Sequence[ConvKey], known: Sequence[Winner] | None = None) -> Winner | None:
    """A guess for one key that nothing is known of, not kept; None for a withdrawn winner's key, for several keys, and
    where no neighbour was measured. One is made at a time, others wait: a model is made in each. `known`: the winners
    to look for neighbours among."""
    if len(keys) != 1 or store.winner(keys[0]) is not None:
        return None
    with _one_at_a_time:
        return guess(store, keys[0], known=known)


def keep_guesses(store: Store, keys: Sequence[ConvKey], known: Sequence[Winner] | None = None) -> int:
    """Keep a guess for each key that has no winner and whose neighbours are known; how many there were. None are made
    while MAX_KEEPING others make some: a lookup of one shape makes its own.

    A guess never replaces what was measured, and is replaced by it. Hooks ignore it unless they ask for guesses.
    """
    if not _keeping.acquire(blocking=False):
        return 0
    try:
        made = [found for key in keys[:MOST] if (found := guessed(store, [key], known)) is not None]
    finally:
        _keeping.release()
    return store.merge(made) if made else 0
