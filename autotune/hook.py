"""The runtime hook: at every schedule, each convolution's key is looked up and its winner applied.

It never breaks the program it runs in: whatever fails leaves the graph as tinygrad made it, is counted as a fallback
and warned of once.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from autotune.sources import Source, SourceError
from autotune.winner import APPLICABLE_STATES, Winner, WinnerState
from strategies.candidate import Candidate
from strategies.graph.apply import lower
from strategies.graph.device import describe_device
from strategies.graph.frozen import FrozenWeights
from strategies.graph.seam import Attachment
from strategies.key import ConvKey, DeviceSpec, Policy

if TYPE_CHECKING:
    from tinygrad.uop.ops import UOp

    from strategies.graph.kron import Ranges
    from strategies.graph.match import Conv

T = TypeVar("T")

POLL_S = 0.5
"""How often a source is asked whether anything changed."""
FIRST_BACKOFF_S, LAST_BACKOFF_S = 5.0, 300.0
"""A source that fails is left alone for this long, then twice as long: a dead server must not slow a program down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What the hook did in this process. Every convolution met is a hit, a miss or a fallback.

    `hits` have a winner, of which `applied` were rewritten (the others' winner is tinygrad's own lowering); `misses`
    have none; `fallbacks` were left as tinygrad made them because something failed. `seconds` were spent in the hook.
    """

    convolutions: int = 0
    hits: int = 0
    applied: int = 0
    misses: int = 0
    fallbacks: int = 0
    seconds: float = 0.0


class Decisions(Protocol):
    """What a hook decides by."""

    def candidates(self, keys: Sequence[ConvKey]) -> Sequence[Candidate | None]:
        """One answer for each key of a graph; None: nothing is known."""

    def refresh(self) -> bool:
        """Called ahead of each schedule: whether the answers may be others than before."""

    def close(self) -> None:
        """Give back what is held."""


class Forced:
    """One candidate for everything that its strategy applies to, whatever is known."""

    def __init__(self, candidate: Candidate, applies: Callable[[ConvKey], bool]) -> None:
        self._candidate, self._applies = candidate, applies

    def candidates(self, keys: Sequence[ConvKey]) -> Sequence[Candidate | None]:
        return [self._candidate if self._applies(key) else None for key in keys]

    def refresh(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing is held."""


class Winners:
    """Winners from a source, remembered; asked for in one request per graph, and again when the source has changed."""

    def __init__(
        self,
        source: Source,
        *,
        guesses: bool,
        warn: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._warn, self._clock = source, warn, clock
        self._states = {*APPLICABLE_STATES} | ({WinnerState.GUESS} if guesses else set())
        self._lock = threading.Lock()
        self._known: dict[str, tuple[ConvKey, Candidate | None]] = {}
        self._version: object = None
        self._behind = False
        """Whether the source failed to answer, so that it is to be asked again though its version stays."""
        self._poll_at, self._retry_at, self._backoff_s = 0.0, 0.0, FIRST_BACKOFF_S

    def candidates(self, keys: Sequence[ConvKey]) -> Sequence[Candidate | None]:
        with self._lock:
            unknown = {key.digest: key for key in keys if key.digest not in self._known}
            if unknown:
                found = self._ask(list(unknown.values()))
                # tinygrad keeps the schedule that is made without an answer, so `refresh` has to ask for these again
                self._behind = self._behind or found is None
                self._known |= found or {digest: (key, None) for digest, key in unknown.items()}
            return [self._known[key.digest][1] for key in keys]

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
            found = self._ask([key for key, _ in self._known.values()])
            self._behind = found is None
            if found is None or found == self._known:
                return False
            self._known = found
            return True

    def close(self) -> None:
        self._source.close()

    def _ask(self, keys: Sequence[ConvKey]) -> dict[str, tuple[ConvKey, Candidate | None]] | None:
        """The source's answers by digest, None where it failed."""
        if self._clock() < self._retry_at:
            return None
        winners = self._guarded(lambda: self._source.lookup(keys))
        if winners is None:
            return None
        return {key.digest: (key, self._applicable(winners.get(key.digest))) for key in keys}

    def _applicable(self, winner: Winner | None) -> Candidate | None:
        return winner.candidate if winner is not None and winner.state in self._states else None

    def _guarded(self, ask: Callable[[], T]) -> T | None:
        try:
            answer = ask()
        except SourceError as error:
            self._retry_at, self._backoff_s = self._clock() + self._backoff_s, min(2 * self._backoff_s, LAST_BACKOFF_S)
            self._warn("source", f"winners cannot be read, tinygrad goes on alone: {error}")
            return None
        self._backoff_s = FIRST_BACKOFF_S
        return answer


class Hook:
    """The rewriter that is attached to tinygrad: it counts, it warns, it never raises."""

    def __init__(self, decisions: Decisions, policy: Policy, count: Callable[[Stats], None]) -> None:
        self._decisions, self._count = decisions, count
        self._thread = threading.local()
        # a winner that was tuned without the promise holds with it as well, and saves its filter transform
        self._policies = (policy, replace(policy, frozen_weights=False)) if policy.frozen_weights else (policy,)
        self.attachment = Attachment(
            rewriter=self, before=self._before, finished=self._finished,
            frozen=FrozenWeights(self._not_kept) if policy.frozen_weights else None,
        )  # fmt: skip

    def __call__(self, convs: Sequence[Conv], ranges: Ranges) -> list[UOp | None]:
        """What replaces each convolution. Counted once it is clear that tinygrad took it: see `_finished`."""
        started = time.perf_counter()
        result: list[UOp | None] = [None] * len(convs)
        stats = Stats(convolutions=len(convs))
        try:
            candidates = self._candidates(convs)
        except Exception as error:  # noqa: BLE001 - the program goes on whatever happens here
            warn_once("hook", f"the hook failed, tinygrad goes on alone: {_line(error)}")
            self._count(replace(stats, fallbacks=len(convs), seconds=time.perf_counter() - started))
            return result
        for index, (conv, candidate) in enumerate(zip(convs, candidates, strict=True)):
            if candidate is None:
                stats = replace(stats, misses=stats.misses + 1)
                continue
            try:
                new = lower(conv, candidate, ranges)
            except Exception as error:  # noqa: BLE001 - a winner of another release, or a fault of ours
                warn_once("winner", f"{candidate} cannot be applied, tinygrad lowers this one: {_line(error)}")
                stats = replace(stats, fallbacks=stats.fallbacks + 1)
                continue
            result[index] = new
            stats = replace(stats, hits=stats.hits + 1, applied=stats.applied + (new is not None))
        stats = replace(stats, seconds=time.perf_counter() - started)
        if stats.applied:
            self._thread.pending = stats
        else:
            self._count(stats)
        return result

    def _before(self) -> None:
        started = time.perf_counter()
        try:
            if self._decisions.refresh():
                self.attachment.changed()
        except Exception as error:  # noqa: BLE001 - the program goes on whatever happens here
            warn_once("hook", f"the hook failed, tinygrad goes on alone: {_line(error)}")
        self._count(Stats(seconds=time.perf_counter() - started))

    def _finished(self, error: Exception | None) -> None:
        stats: Stats = getattr(self._thread, "pending", Stats())
        self._thread.pending = Stats()
        if error is not None:
            stats = replace(stats, hits=0, applied=0, fallbacks=stats.fallbacks + max(1, stats.hits))
            warn_once("graph", f"a rewritten graph failed, tinygrad schedules it alone: {_line(error)}")
        self._count(stats)

    def _not_kept(self, error: Exception) -> None:
        warn_once("frozen", f"a filter is transformed at every run, its transform could not be kept: {_line(error)}")

    def _candidates(self, convs: Sequence[Conv]) -> list[Candidate | None]:
        """One answer per convolution, from one question for all that a key describes."""
        devices = {conv.device: describe_device(conv.device, surroundings=False) for conv in convs}
        keys = [self._keys(conv, devices[conv.device]) for conv in convs]
        answers = iter(self._decisions.candidates([key for each in keys for key in each]))
        return [_first([next(answers) for _ in each]) for each in keys]

    def _keys(self, conv: Conv, device: DeviceSpec) -> list[ConvKey]:
        """What to look up for a convolution, best first; nothing if no key describes it."""
        shape = conv.shape
        if shape is None:
            return []
        return [ConvKey(shape=shape, device=device, policy=policy) for policy in self._policies]


_warned: set[str] = set()


def warn_once(kind: str, message: str) -> None:
    """A RuntimeWarning, the first time that something of this kind is said in this process.

    Where the program turns warnings into errors it stays one line on stderr: the hook never breaks a program.
    """
    if kind in _warned:
        return
    _warned.add(kind)
    try:
        warnings.warn(f"autotune: {message}", RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        sys.stderr.write(f"autotune: {message}\n")


def _first(answers: Sequence[Candidate | None]) -> Candidate | None:
    return next((answer for answer in answers if answer is not None), None)


def _line(error: Exception) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:300]
