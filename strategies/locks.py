"""Locks for what lives in a user's program, which may fork at any moment, from any thread."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress


class ForkLock:
    """A lock that a forked child finds open: in the child there is no thread but the one that forked, and who held it
    never lets go. For what is consistent at every step. With `reentrant` a thread may take it again."""

    def __init__(self, *, reentrant: bool = False) -> None:
        self._reentrant = reentrant
        self._renew()
        _all.add(self)

    def _renew(self) -> None:
        self._lock = threading.RLock() if self._reentrant else threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # taken before this thread forked: the child has another one
            self._lock.release()


_all: weakref.WeakSet[ForkLock] = weakref.WeakSet()


def _forked() -> None:
    for lock in list(_all):
        lock._renew()  # noqa: SLF001 - its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
