"""The tasks that the lanes of a service wait for, read with one question for all of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from autotune.fleet import Task
from db import DatabaseError

EVERY_S = 0.1


class TaskBoard:
    """One for all lanes: a fleet of a hundred workers asks the database ten times a second, as one worker does.

    Threads that look at once wait for one read and share what it found, or why it failed.
    """

    def __init__(
        self, read: Callable[[Collection[str]], Mapping[str, Task]], *, every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`read` gives of those ids the tasks that there are; it may raise DatabaseError."""
        self._read, self._every_s, self._clock = read, every_s, clock
        self._reading, self._lock = threading.Lock(), threading.Lock()
        self._followed = Counter[str]()
        self._found: dict[str, Task | None] = {}
        self._failed: DatabaseError | None = None
        self._at = float("-inf")

    @contextmanager
    def follow(self, task_id: str) -> Iterator[None]:
        """Have the task read whenever others are."""
        with self._lock:
            self._followed[task_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._followed[task_id] -= 1
                if not self._followed[task_id]:
                    del self._followed[task_id]

    def look(self, task_id: str) -> Task | None:
        """A task that is followed, as it was at most EVERY_S ago; None if it is gone. Raises DatabaseError."""
        with self._reading:
            fresh = self._clock() - self._at < self._every_s
            if not fresh or (self._failed is None and task_id not in self._found):
                self._look()
            if self._failed is not None:
                raise DatabaseError(str(self._failed)) from self._failed
            return self._found[task_id]

    def _look(self) -> None:
        with self._lock:
            names = list(self._followed)
        try:
            self._found, self._failed = dict.fromkeys(names) | dict(self._read(names)), None
        except DatabaseError as error:
            self._failed = error
        self._at = self._clock()
