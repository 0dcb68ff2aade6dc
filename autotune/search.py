"""Which candidate to measure next: presets first, then whatever a model of the measurements expects most of."""

from __future__ import annotations

import math
import random
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autotune.measurement import Measurement, Status
from autotune.space import Choose, Space
from autotune.statistics import median_ratio
from autotune.surrogate import Point, Surrogate
from strategies.candidate import Candidate, Value

if TYPE_CHECKING:
    import optuna

FAILED = math.log(100.0)
"""What a failure counts as: 100 times as slow as `direct`. Failures that tell the sampler nothing would be proposed
again and again."""

IMPROVEMENT = 0.01
"""By how much (1%) the best must fall to count as progress for a caller's patience."""

SAMPLERS = ("model", "tpe", "steps", "random")
"""`model`: the expected improvement of a Gaussian process (autotune/surrogate.py). `tpe`: Optuna's TPE. `steps`: TPE
in turn with a neighbour of the best, one parameter changed. `random`: evenly. bench/search.py compares them."""

LOCAL_FROM = 10
"""From so many measured candidates on, `steps` takes steps."""

POOL = 500
"""Candidates that the model is asked about, at most: neighbours of the best few, and others by chance."""
NEIGHBOURS_OF = 4
WORTH = 0.03
"""What the model is to expect at least, as a share of the best's time: less is noise, and a space full of equals would
keep it busy."""
LEARN_EVERY = 1.25
"""What matters to the model is learned anew when it has so many times the points that it last had."""

_REPEATS = 8  # proposals of something known before we look for something new ourselves
_SCAN = 20_000  # candidates looked at, at most, before the space counts as exhausted


class Search:
    """Proposes candidates and learns from measurements, those of earlier processes included.

    The objective is the logarithm of the median ratio to `direct` over the rounds of one request, so that what
    another hour did to the clock does not matter. `prior` holds what is known of other shapes. The model lives in
    memory; measurements are what is durable. No candidate is proposed twice. Candidates that came out as the same
    program (`fingerprint`) count as one result. Deterministic for a seed and a sequence of measurements. For one
    thread.
    """

    def __init__(
        self, space: Space, *, seed: int = 0, history: Iterable[Measurement] = (), prior: Sequence[Point] = (),
        sampler: str = "model",
    ) -> None:  # fmt: skip
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}: got {sampler!r}")
        self.space, self._sampler, self._prior = space, sampler, tuple(prior)
        self._known: dict[str, Measurement] = {}
        self._values: dict[str, float] = {}
        self._by_program: dict[str, float] = {}
        self._pending: dict[str, optuna.Trial] = {}
        self._yet_to_beat, self._since_better = math.inf, 0
        self._planned = frozenset(space.presets)
        past = list(history)
        self._rng = random.Random(seed + len(past))  # a resumed search must not draw what it drew before
        self._study = _study(seed + len(past)) if sampler in ("tpe", "steps") else None
        for measurement in past:
            self.tell(measurement)
        self._learned_from, self._weights = 0, dict[str, float]()
        self._presets = deque(self._by_promise(space.presets))

    @property
    def best(self) -> Measurement | None:
        """The verified measurement that is fastest over its yardstick."""
        return next(iter(self.ranked()), None)

    def ratio(self, measurement: Measurement) -> float:
        """Its candidate's time over `direct`'s, as far as the search knows."""
        return math.exp(self._values[measurement.candidate.digest])

    @property
    def has_presets(self) -> bool:
        """Whether some presets have not been asked for yet."""
        return bool(self._presets)

    @property
    def since_better(self) -> int:
        """Candidates other than presets measured since the best last improved."""
        return self._since_better

    def known(self, candidate: Candidate) -> Measurement | None:
        """The latest measurement of a candidate."""
        return self._known.get(candidate.digest)

    def ask(self) -> Candidate | None:
        """The next candidate to measure; None when everything there is has been."""
        return next(iter(self.ask_for(1)), None)

    def ask_for(self, several: int) -> list[Candidate]:
        """The next candidates to measure, so many at most: presets, as long as there are, then what the model expects
        most of. A sampler without a model proposes one. None when everything there is has been, or none are asked."""
        chosen: list[Candidate] = []
        while self._presets and len(chosen) < several:
            candidate = self._presets.popleft()
            if candidate.digest not in self._known:
                chosen.append(candidate)
        if chosen or several < 1:
            return chosen
        if self._sampler == "model" and (expected := self._expected(several)):
            return expected
        proposed = self._proposed()
        return [] if proposed is None else [proposed]

    def _proposed(self) -> Candidate | None:
        """One, without the model."""
        if self._sampler in ("random", "model"):
            return self._anywhere()
        if self._sampler == "steps" and len(self._known) >= LOCAL_FROM and len(self._known) % 2 == 0:
            return self._near() or self._sampled() or self._anywhere()
        return self._sampled() or self._near() or self._anywhere()

    def tell(self, measurement: Measurement) -> None:
        """Learn from a measurement, whether asked for or not."""
        candidate, value = measurement.candidate, self._value(measurement)
        again, trial = candidate.digest in self._known, self._pending.pop(candidate.digest, None)
        self._known[candidate.digest], self._values[candidate.digest] = measurement, value
        self._since_better += not again and candidate not in self._planned
        if measurement.ok and value < self._yet_to_beat - IMPROVEMENT:
            self._yet_to_beat, self._since_better = value, 0
        if self._study is None:
            return
        if trial is not None:
            self._study.tell(trial, value)
        elif not again:
            self._add_trial(candidate, value)

    def ranked(self) -> list[Measurement]:
        """Verified measurements, fastest over `direct` first, one for each program."""
        ok = [m for m in self._known.values() if m.ok and _timed(m)]
        ranked: dict[str, Measurement] = {}
        for measurement in sorted(ok, key=lambda m: self._values[m.candidate.digest]):
            ranked.setdefault(program(measurement), measurement)
        return list(ranked.values())

    def _value(self, measurement: Measurement) -> float:
        again = measurement.candidate.digest in self._known
        if measurement.fingerprint in self._by_program and not again:
            return self._by_program[measurement.fingerprint]
        if not _timed(measurement):
            return FAILED
        value = math.log(median_ratio(measurement.times_s, measurement.yardstick_times_s))
        if measurement.fingerprint:
            self._by_program[measurement.fingerprint] = value
        return value

    def _add_trial(self, candidate: Candidate, value: float) -> None:
        """Into the study, as if it had been asked for."""
        from optuna.distributions import BaseDistribution, CategoricalDistribution
        from optuna.trial import create_trial

        choices = self.space.choices(candidate)
        if choices is None or self._study is None:
            return
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, (_, values) in choices.items()
        }
        params = {name: chosen for name, (chosen, _) in choices.items()}
        self._study.add_trial(create_trial(params=params, distributions=distributions, value=value))

    def _points(self) -> list[Point]:
        """What was measured here over the fastest, failures a little slower than the slowest that worked, then the
        prior."""
        fine = [v for v in self._values.values() if v < FAILED]
        worst, best = max(fine, default=0.0) + math.log(2), min(fine, default=0.0)
        mine = [
            Point(candidate=m.candidate, value=min(self._values[digest], worst) - best)
            for digest, m in self._known.items()
        ]
        return [*self._prior, *mine]  # in the order in which they came: see autotune.surrogate.MAX_POINTS

    def _expected(self, several: int) -> list[Candidate]:
        """The candidates of which the model expects most, each as if those before it had come out as expected: else
        they would all be neighbours."""
        pool = self._pool()
        points = self._points()
        if not pool or not points:
            return []
        learn = len(points) >= LEARN_EVERY * self._learned_from
        model = Surrogate(points, None if learn else self._weights)
        if learn:
            self._learned_from, self._weights = len(points), model.weights
        chosen: list[Candidate] = []
        while pool and len(chosen) < several:
            if chosen:
                [mean], _ = model.predict(chosen[-1:])
                points.append(Point(candidate=chosen[-1], value=float(mean)))
                model = Surrogate(points, self._weights)
            expected = model.expected_improvement(pool, -WORTH)
            chosen.append(pool.pop(int(expected.argmax())))
        return chosen

    def _pool(self) -> list[Candidate]:
        leaders = [m.candidate for m in self.ranked()[:NEIGHBOURS_OF]]
        near = [c for leader in leaders for c in self.space.neighbours(leader)]
        drawn = (self.space.sample(self._rng) for _ in range(max(0, POOL - len(near))))
        return [c for c in dict.fromkeys([*near, *drawn]) if c is not None and self._new(c)]

    def _by_promise(self, presets: Sequence[Candidate]) -> list[Candidate]:
        """The defaults, then presets as neighbouring shapes would have them: the slow there come last here."""
        if not self._prior:
            return list(presets)
        mean, _ = Surrogate(self._prior).predict(presets)
        order = {c: (c not in self.space.defaults, m) for c, m in zip(presets, mean.tolist(), strict=True)}
        return sorted(presets, key=order.__getitem__)

    def _sampled(self) -> Candidate | None:
        if self._study is None:
            return None
        import optuna

        for _ in range(_REPEATS):
            trial = self._study.ask()
            candidate = self.space.choose(_suggested_by(trial))
            if candidate is None or candidate.digest in self._known or candidate.digest in self._pending:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)  # leaves the sampler's picture as it is
                if candidate is None:
                    return None
                continue
            self._pending[candidate.digest] = trial
            return candidate
        return None

    def _near(self) -> Candidate | None:
        """A neighbour of the best that is new."""
        best = self.best
        near = [c for c in self.space.neighbours(best.candidate) if self._new(c)] if best else []
        return self._rng.choice(near) if near else None

    def _anywhere(self) -> Candidate | None:
        """Anything new: where the sampler has converged and all round the best is known."""
        for _ in range(100):
            candidate = self.space.sample(self._rng)
            if candidate is not None and self._new(candidate):
                return candidate
        scanned = zip(range(_SCAN), self.space, strict=False)
        return next((candidate for _, candidate in scanned if self._new(candidate)), None)

    def _new(self, candidate: Candidate) -> bool:
        return candidate.digest not in self._known and candidate.digest not in self._pending


def _study(seed: int) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed)
    return optuna.create_study(sampler=sampler)


def _suggested_by(trial: optuna.Trial) -> Choose:
    def choose(name: str, values: Sequence[Value]) -> Value:
        chosen: Any = trial.suggest_categorical(name, values)
        return values[values.index(chosen)]

    return choose


def program(measurement: Measurement) -> str:
    """What a candidate came out as: equal for candidates that are the same program."""
    return measurement.fingerprint or measurement.candidate.digest


def _timed(measurement: Measurement) -> bool:
    """Correct, and with one time of the yardstick for each of its own (an import may lack them). What was stopped
    early because it could not win has a ratio all the same, and it tells the sampler more than a failure would."""
    correct = measurement.status in (Status.OK, Status.PRUNED)
    return correct and 0 < len(measurement.times_s) == len(measurement.yardstick_times_s)
