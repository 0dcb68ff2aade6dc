"""Measuring within a budget: every result recorded, learned from and reported as soon as it exists."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from autotune.job import Budget
from autotune.measurement import Measurement, Status
from autotune.option_search import Hints
from autotune.progress import Phase, Progress
from autotune.runner import TIMED, TRIED, DeviceUnavailableError, Limits, Request, Runner, RunStoppedError
from autotune.search import Search
from autotune.store import Store
from autotune.timing import HOPELESS
from strategies.candidate import Candidate
from strategies.key import ConvKey

STILL_IN = 1.5
"""A candidate this many times as slow as the best so far is stopped early: below it, noise could be to blame, and
whoever learns from measurements wants to know by how much."""

OVERHEAD_S, LEAST_S = 2.0, 4.0
"""What it takes to measure a candidate beside the search for its options, and the shortest search worth it."""
LEAST_TRIALS = 4
"""The same of a budget in trials, in which a candidate counts as one: the fewest options worth it."""
LOOKS_SHARE = 0.75
"""Of what is kept back for options: for a first look at several candidates. The rest is for the best of them."""

TOGETHER_BYTES, MOST_BUFFERS, ITEM_BYTES = 2 << 30, 8, 4
"""What the buffers of all candidates of one request may take: a candidate's, with the tiles that it transforms, are
up to so many times as large as what it reads and writes, in float32."""

FINAL_SHARE = 0.4
"""At most this share of a budget in seconds is kept back for the final."""


class TuneCancelledError(Exception):
    """The caller asked to stop. What was measured is recorded; nothing was decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a search measures. A round of the search and of the final is described at Request.

    `finalists` verified candidates meet the defaults in the final, and up to `close_finalists` if they are within CLOSE
    of the best. `patience`: the search ends early when that many
    sampled candidates in a row have not made the best 1% faster; None: never. `options_share` of a budget is kept back
    for the options of the best candidates' kernels.
    """

    rounds: int = 7
    final_rounds: int = 21
    finalists: int = 3
    close_finalists: int = 6
    patience: int | None = 40
    options_share: float = 0.7
    limits: Limits = field(default_factory=Limits)


class Session:
    """One search for one key: counts what it uses, `history` of the same job included.

    `clock` gives seconds. A candidate that has begun is finished, so seconds may be exceeded by one candidate's
    limits; a candidate that is not likely to fit is not begun.
    """

    def __init__(
        self,
        key: ConvKey,
        search: Search,
        *,
        store: Store,
        runner: Runner,
        budget: Budget,
        settings: Settings,
        history: Iterable[Measurement],
        banned: Collection[Candidate] = (),
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.key, self.search, self.budget, self.settings = key, search, budget, settings
        self._store, self._runner = store, runner
        self.banned = frozenset(banned)
        self._on_progress, self._should_stop, self._clock = on_progress, should_stop, clock
        self._tried: dict[str, Measurement] = {}
        self._cost_s: dict[str, float] = {}
        self._options_tried = 0
        self._shared_from, self._shared_from_s = 0, 0.0
        self._share_for_options = settings.options_share
        self._apart = False
        self._begun, self._before_s, self._waited_s = clock(), 0.0, 0.0
        for measurement in history:
            cost_s = _cost_s(measurement)
            self._before_s += cost_s
            self._count(measurement, cost_s)

    @property
    def trials(self) -> int:
        """Candidates measured by this job, and options tried on a kernel."""
        return len(self._tried) + self._options_tried

    @property
    def tried(self) -> list[Measurement]:
        """The latest measurement of each of these."""
        return list(self._tried.values())

    @property
    def used_s(self) -> float:
        """Seconds used by this job, without times when it was not running or waited for the device."""
        return self._before_s + self._clock() - self._begun - self._waited_s

    def measure(
        self, candidates: Sequence[Candidate], *, rounds: int, seed: int, keep: int = 0, race: bool = False,
        options: Budget | None = None, hints: Hints = (),
    ) -> list[Measurement]:  # fmt: skip
        """Measure candidates together; `keep`, `race`, `options` and `hints` as in a Request. Raises TuneCancelledError
        instead if the caller wants to stop, and DeviceUnavailableError with everything that was final recorded."""
        if self._should_stop():
            raise TuneCancelledError(f"stopped after {self.trials} candidates")
        request = Request(
            key=self.key, candidates=tuple(candidates), rounds=rounds, seed=seed, limits=self.settings.limits,
            hopeless=self._hopeless(), keep=keep, race=race, options=options, hints=tuple(hints),
        )  # fmt: skip
        begun = self._clock()
        try:
            measured = list(self._runner.measure(request, should_stop=self._should_stop))
        except RunStoppedError:
            raise TuneCancelledError(f"stopped after {self.trials} candidates") from None
        except DeviceUnavailableError as error:
            for measurement in error.measured:
                self._store.record(measurement)
            raise
        elapsed_s = self._clock() - begun
        costs_s = [_cost_s(measurement, elapsed_s / len(candidates)) for measurement in measured]
        self._waited_s += max(0.0, elapsed_s - sum(costs_s))
        broken = any(m.status is Status.CRASHED for m in measured) or sum(costs_s) > self.settings.limits.run_s
        self._apart = self._apart or (broken and len(measured) > 1 and not race)
        for measurement, cost_s in zip(measured, costs_s, strict=True):
            if options is not None and not measurement.ok and not measurement.candidate.kernel_options:
                continue  # the search for options broke, which says nothing of the candidate without
            self._store.record(measurement)
            self.search.tell(measurement)
            self._count(measurement, self._usual_s(measurement.candidate, cost_s) if options is not None else cost_s)
        return measured

    def _usual_s(self, candidate: Candidate, cost_s: float) -> float:
        """What measuring a candidate costs without the search for its options, which its measurement came with."""
        return self._cost_s.get(candidate.structure.digest, cost_s)

    def affords(self, finalists: Sequence[Candidate], most: int = 1) -> int:
        """How many more candidates, `most` at most, the budget allows before a final among `finalists`."""
        if self.budget.trials is not None:
            most = min(most, self.budget.trials - self._trials_for_options() - self.trials)
        return max(0, min(most, self.has_time_for(finalists)))

    def at_once(self) -> int:
        """How many candidates to measure together: as many as the runner compiles side by side, as far as their buffers
        fit. One, once some that were measured together cost their process: it costs the others their work, too."""
        if self._apart:
            return 1
        shape = self.key.shape
        elements = sum(map(math.prod, (shape.input_shape, shape.weight_shape, shape.output_shape)))
        bytes_each = MOST_BUFFERS * elements * ITEM_BYTES
        return max(1, min(self._runner.at_once, TOGETHER_BYTES // bytes_each))

    def has_time_for(self, finalists: Sequence[Candidate]) -> int:
        """The same for repetitions, which count as no trials, and without an end where the budget is not in seconds."""
        if self.budget.seconds is None:
            return sys.maxsize
        options_s = self._share_for_options * (self.budget.seconds - self._shared_from_s)
        if options_s < OVERHEAD_S + LEAST_S or self.search.has_presets:  # options of what is not even the best so far
            options_s = 0.0
        left_s = self.budget.seconds - self.used_s - self.final_s(finalists) - options_s
        if left_s < 0:
            return 0
        return int(left_s / typical_s) if (typical_s := self._typical_s()) > 0 else sys.maxsize

    def _typical_s(self) -> float:
        """What one more candidate takes. `direct`, the first, also pays for the reference that all are held against."""
        direct = self.search.space.defaults[0].digest
        costs_s = [cost_s for digest, cost_s in self._cost_s.items() if digest != direct] or [*self._cost_s.values()]
        return statistics.median(costs_s) if costs_s else 0.0

    def for_options(self, finalists: Sequence[Candidate]) -> Budget | None:
        """For a search for options of one candidate: what is left of the budget before a final among `finalists`. None
        where that is too little."""
        return self._for_one_of(1, *self._left(finalists))

    def for_looks(self, finalists: Sequence[Candidate], most: int) -> list[Budget]:
        """For a first look at the options of so many candidates at most: an even share each. Empty where there is not
        enough for two and what comes after them."""
        left_s, left = self._left(finalists)
        left_s, left = left_s * LOOKS_SHARE, left * LOOKS_SHARE
        for looks in range(most, 1, -1):
            if (budget := self._for_one_of(looks, left_s, left)) is not None:
                return [budget] * looks
        return []

    def _left(self, finalists: Sequence[Candidate]) -> tuple[float, float]:
        """Seconds and trials for options; infinite where the budget is not in these."""
        seconds, trials = self.budget.seconds, self.budget.trials
        if self._share_for_options == 0:
            return 0.0, 0.0
        left_s = seconds - self.used_s - self.final_s(finalists) if seconds is not None else math.inf
        return left_s, trials - self.trials if trials is not None else math.inf

    def _for_one_of(self, several: int, left_s: float, left: float) -> Budget | None:
        seconds, trials = left_s / several - OVERHEAD_S, left / several - 1  # the candidate with them is one
        if seconds < LEAST_S or trials < LEAST_TRIALS:
            return None
        return Budget(
            seconds=seconds if seconds < math.inf else None, trials=int(trials) if trials < math.inf else None
        )

    def next_stage(self) -> bool:
        """Share what is left of the budget anew between candidates and options. False where their share of it would be
        too little to look at any, or where there is no end of it."""
        self._shared_from, self._shared_from_s = self.trials, self.used_s
        seconds, trials = self.budget.seconds, self.budget.trials
        if seconds is not None and self._share_for_options * (seconds - self.used_s) < OVERHEAD_S + LEAST_S:
            return False
        if trials is not None and int(self._share_for_options * (trials - self.trials)) <= LEAST_TRIALS:
            return False
        return seconds is not None or trials is not None

    def end_options(self) -> None:
        """Options are searched for: what is left of the budget is for candidates."""
        self._share_for_options = 0.0

    def _trials_for_options(self) -> int:
        """Kept back, of a budget in trials."""
        left = self.budget.trials - self._shared_from if self.budget.trials is not None else 0
        share = int(self._share_for_options * left)
        return share if share > LEAST_TRIALS and not self.search.has_presets else 0

    def final_s(self, finalists: Sequence[Candidate]) -> float:
        """What a final among these is kept back, of a budget in seconds."""
        final_s = sum(self._final_s(candidate) for candidate in finalists)
        return min(final_s, FINAL_SHARE * self.budget.seconds) if self.budget.seconds is not None else final_s

    def report(self, phase: Phase) -> None:
        """Tell the caller how it stands."""
        best = self.search.best
        progress = Progress(
            phase=phase, trials=self.trials, failed=sum(not m.ok for m in self._tried.values()),
            used_s=self.used_s, budget=self.budget, best=best.candidate if best else None,
            ratio=self.search.ratio(best) if best else None,
            time_s=statistics.median(best.times_s) if best else None,
        )  # fmt: skip
        self._on_progress(progress)

    def _hopeless(self) -> float:
        best = self.search.best
        return min(HOPELESS, STILL_IN * self.search.ratio(best)) if best is not None else HOPELESS

    def _final_s(self, candidate: Candidate) -> float:
        """What a candidate will take in the final: compiled already, timed in more rounds. On 2 CPU cores a final
        of five took 0.8 s each where the search took 0.5 to 0.7 s to verify and time one, direct apart (1.8 s)."""
        measurement = self._tried.get(candidate.digest)
        if measurement is None:
            return 0.0
        otherwise_s = max(self._cost_s[candidate.digest] - measurement.compile_s, 0.0)
        told_s = measurement.conditions.get(TIMED)
        return 1.5 * (float(told_s) if isinstance(told_s, int | float) and told_s >= 0 else otherwise_s)

    def _count(self, measurement: Measurement, cost_s: float) -> None:
        self._tried[measurement.candidate.digest] = measurement
        self._options_tried += int(measurement.conditions.get(TRIED, 0))
        self._cost_s[measurement.candidate.digest] = cost_s


def _cost_s(measurement: Measurement, otherwise_s: float | None = None) -> float:
    """What a measurement took, waiting for the device apart, if the runner said so; else what the caller saw, at
    least compiling and timing."""
    cost = measurement.conditions.get("cost_s")
    if isinstance(cost, int | float) and cost >= 0:
        return float(cost)
    return measurement.compile_s + sum(measurement.times_s) if otherwise_s is None else otherwise_s
