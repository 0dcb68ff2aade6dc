"""What the hook decides by: winners from a source, remembered, or one candidate for everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from autotune.snapshot import Snapshot
from autotune.sources import Source, SourceError
from autotune.winner import APPLICABLE_STATES, Winner, WinnerState
from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.locks import ForkLock

T = TypeVar("T")

POLL_S = 0.5
"""How often a source is asked whether anything changed."""
FIRST_BACKOFF_S, LAST_BACKOFF_S = 5.0, 300.0
"""A source that fails is left alone for this long, then twice as long: a dead server must not slow a program down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is known of a key: `candidate` is what to do, None if nothing is; `origin` says who said so, or why not;
    `failed`: it could not even be asked."""

    candidate: Candidate | None
    origin: str
    failed: bool = False


class Decisions(Protocol):
    """What a hook decides by."""

    def answers(self, keys: Sequence[ConvKey]) -> Sequence[Answer]:
        """One answer for each key of a graph."""

    def refresh(self) -> bool:
        """Called ahead of each schedule: whether the answers may be others than before."""

    def close(self) -> None:
        """Give back what is held."""


class Forced:
    """One candidate for everything that its strategy applies to, whatever is known."""

    def __init__(self, candidate: Candidate, applies: Callable[[ConvKey], bool]) -> None:
        self._applies = applies
        self._yes = Answer(candidate=candidate, origin="forced")
        self._no = Answer(candidate=None, origin=f"{candidate.strategy} does not apply to it")

    def answers(self, keys: Sequence[ConvKey]) -> Sequence[Answer]:
        return [self._yes if self._applies(key) else self._no for key in keys]

    def refresh(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing is held."""


class Winners:
    """Winners from a source, remembered; asked for in one request per graph, and again when the source has changed.

    A source that fails is left alone for a while, longer each time. Meanwhile, and in another process too, a
    `snapshot` answers with what the source said last, and `unasked` hears of what the source is not asked for.
    """

    def __init__(
        self,
        source: Source,
        *,
        guesses: bool,
        warn: Callable[[str, str], None],
        where: str = "the source",
        snapshot: Snapshot | None = None,
        unasked: Callable[[Sequence[ConvKey]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._where, self._snapshot, self._unasked = source, where, snapshot, unasked
        self._warn, self._clock = warn, clock
        self._states = {*APPLICABLE_STATES} | ({WinnerState.GUESS} if guesses else set())
        self._lock = ForkLock()
        self._known: dict[ConvKey, Answer] = {}
        self._version: object = None
        self._behind = False
        """Whether the source failed to answer, so that it is to be asked again though its version stays."""
        self._poll_at, self._retry_at, self._backoff_s = 0.0, 0.0, FIRST_BACKOFF_S

    def answers(self, keys: Sequence[ConvKey]) -> Sequence[Answer]:
        with self._lock:
            known = [self._known.get(key) for key in keys]
            if None not in known:
                return [answer for answer in known if answer is not None]
            unknown = list(dict.fromkeys(key for key, answer in zip(keys, known, strict=True) if answer is None))
            found = self._ask(unknown)
            # tinygrad keeps the schedule that is made without an answer, so `refresh` has to ask for these again
            self._behind = self._behind or found is None
            self._known |= self._instead(unknown) if found is None else found
            return [self._known[key] for key in keys]

    def refresh(self) -> bool:
        with self._lock:
            if self._clock() < max(self._poll_at, self._retry_at):
                return False
            self._poll_at = self._clock() + POLL_S
            version = self._guarded(self._source.version)
            if version is None or (version == self._version and not self._behind):
                return False
            self._version = version
            if not self._known:
                return False
            found = self._ask(list(self._known))
            self._behind = found is None
            if found is None:
                return False
            changed = any(found[key].candidate != answer.candidate for key, answer in self._known.items())
            self._known = found
            return changed

    def close(self) -> None:
        self._source.close()

    def _ask(self, keys: Sequence[ConvKey]) -> dict[ConvKey, Answer] | None:
        """The source's answers, None where it failed."""
        if self._clock() < self._retry_at:
            self._unasked(keys)
            return None
        winners = self._guarded(lambda: self._source.lookup(keys))
        if winners is None:
            return None
        self._backoff_s = FIRST_BACKOFF_S
        if self._snapshot is not None:
            self._snapshot.keep(keys, winners, self._warn)
        return {key: self._answer(key, winners.get(key.digest), self._where) for key in keys}

    def _instead(self, keys: Sequence[ConvKey]) -> dict[ConvKey, Answer]:
        """Answers while the source gives none."""
        kept = self._snapshot.lookup(keys, self._warn) if self._snapshot is not None else {}
        unread = Answer(candidate=None, origin=f"{self._where} cannot be read")
        return {
            key: self._answer(key, kept[key.digest], f"the snapshot of {self._where}") if key.digest in kept else unread
            for key in keys
        }

    def _answer(self, key: ConvKey, winner: Winner | None, where: str) -> Answer:
        if winner is None:
            return Answer(candidate=None, origin=f"no winner is known in {where}")
        if winner.key.device.simulated != key.device.simulated:  # whatever brought them together: its times are none
            return Answer(candidate=None, origin=f"its winner in {where} is of {winner.key.device.title}")
        if winner.state not in self._states:
            return Answer(candidate=None, origin=f"its winner in {where} is a {winner.state}: it takes guesses=True")
        return Answer(candidate=winner.candidate, origin=f"{winner.state} winner of {where}")

    def _guarded(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except SourceError as error:
            self._retry_at, self._backoff_s = self._clock() + self._backoff_s, min(2 * self._backoff_s, LAST_BACKOFF_S)
            self._warn("source", f"winners cannot be read, tinygrad goes on alone: {error}")
            return None
