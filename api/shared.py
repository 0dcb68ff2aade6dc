"""What many streams look at again and again: read once for all of them, however many there are. Of one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from autotune.job import Job

T = TypeVar("T")


class Shared(Generic[T]):
    """A value that is read in a thread at most once every `every_s` seconds, and not at all while nobody asks."""

    def __init__(self, read: Callable[[], T], every_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._every_s, self._clock = read, every_s, clock
        self._reading: asyncio.Task[T] | None = None
        self._began_s = float("-inf")

    async def get(self) -> T:
        """What was read last, by whomever; read anew if that is older than `every_s`. Raises what reading raises."""
        if self._reading is None or (self._reading.done() and self._clock() - self._began_s >= self._every_s):
            self._began_s = self._clock()
            self._reading = asyncio.create_task(run_in_threadpool(self._read))
            self._reading.add_done_callback(_seen)
        return await asyncio.shield(self._reading)  # one that leaves does not end it for the others


def _seen(task: asyncio.Task[T]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()


class Followed:
    """The jobs that streams follow, all of them read with one question to the database."""

    def __init__(
        self, read: Callable[[Collection[str]], Mapping[str, Job]], every_s: float,
        *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`read` gives of those names the jobs that there are."""
        self._read_jobs = read
        self._followers = Counter[str]()
        self._jobs = Shared(self._read, every_s, clock=clock)

    @contextmanager
    def follow(self, name: str) -> Iterator[None]:
        """Have the job read whenever others are."""
        self._followers[name] += 1
        try:
            yield
        finally:
            self._followers[name] -= 1
            if not self._followers[name]:
                del self._followers[name]

    async def look(self, job: Job) -> Job | None:
        """The job as it was read last, None if it is gone; itself while it was not read since it is followed. Raises
        what reading raises."""
        return (await self._jobs.get()).get(job.id, job)

    def _read(self) -> Mapping[str, Job | None]:
        names = list(self._followers)  # at once: the loop's thread changes it
        return dict.fromkeys(names) | dict(self._read_jobs(names))
