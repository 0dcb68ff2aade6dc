"""Answers to lookups, remembered by the question as it was sent, right after every change of winners."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from autotune.neighbours import KNOWN
from autotune.store import Store
from autotune.winner import WITHDRAWN_STATES, Winner

MAX_ANSWERS = 10_000
MAX_QUESTION_BYTES = 500
MAX_KNOWN = 5000
HOLDS_S = 30.0
"""A device may be described otherwise by now: its compiler was upgraded. (Winners are looked after exactly.)"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer and its status: 200, whether its winner is only a guess or not, or 404."""

    body: bytes
    guess: bool = False
    status: int = 200


class Answers:
    """The least recently used go first. Safe to use from several threads."""

    def __init__(self, *, max_answers: int = MAX_ANSWERS, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_answers, self._clock = max_answers, clock
        self._lock = threading.Lock()
        self._changes = -1
        self._answers: OrderedDict[bytes, tuple[float, Answer]] = OrderedDict()

    def get(self, question: bytes, changes: int) -> Answer | None:
        """The answer, if it was given at the same count of changes and not long ago."""
        with self._lock:
            if self._changes != changes:
                self._answers.clear()
                self._changes = changes
            holds_until, answer = self._answers.get(question, (0.0, None))
            if answer is None or self._clock() >= holds_until:
                return None
            self._answers.move_to_end(question)
            return answer

    def keep(self, question: bytes, changes: int, answer: Answer) -> None:
        """Remember an answer that was found after `changes` was read."""
        if len(question) > MAX_QUESTION_BYTES:
            return
        with self._lock:
            if self._changes == changes:
                self._answers[question] = (self._clock() + HOLDS_S, answer)
                self._answers.move_to_end(question)
                if len(self._answers) > self._max_answers:
                    self._answers.popitem(last=False)


class Known:
    """Winners as values, read again only when winners have changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes, self._winners = -1, list[tuple[int, Winner]]()
        self._shown_at, self._shown = -1, list[tuple[int, Winner]]()

    def latest(self, store: Store) -> list[tuple[int, Winner]]:
        """Up to KNOWN of them, withdrawn ones left out: what the nearest ones are looked for among."""
        with self._lock:  # reading thousands takes a while: one does, others wait for it
            changes = store.changes()
            if self._changes != changes:
                found = store.winners(limit=KNOWN)
                self._winners = [item for item in found if item[1].state not in WITHDRAWN_STATES]
                self._changes = changes
            return self._winners

    def shown(self, store: Store) -> list[tuple[int, Winner]]:
        """The MAX_KNOWN latest, withdrawn ones too: what the dashboard shows, however many there are."""
        with self._lock:
            changes = store.changes()
            if self._shown_at != changes:
                self._shown = store.winners(limit=MAX_KNOWN)
                self._shown_at = changes
            return self._shown
