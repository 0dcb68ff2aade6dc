"""Searches on a recording, with no device: the search of `autotune tune` itself, and others beside it.

What a search spends is what the recorded candidates took: of each its kernels' compilation, one after the other, and
the rest of its measurement; what options took that it tried on a kernel. Times carry 2% of noise a round, as a search
would see. Whatever is compiled and timed for the first time counts as a measured candidate: the defaults, the presets,
and each set of options tried on one kernel.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from recording import Menu, Menus, Recording, Trial, subspace, with_chosen
from shapes import conv_shape

from autotune.job import Budget
from autotune.measurement import Measurement, Status
from autotune.neighbours import guess
from autotune.option_search import Options, one_step, searched, searches_of, tried
from autotune.runner import TRIED, Request
from autotune.search import Search
from autotune.space import Choose, Space
from autotune.tune import tune
from autotune.winner import Interval, Winner, WinnerState
from strategies.candidate import Candidate, KernelOptions, Value
from strategies.key import ConvKey, DeviceSpec

ROUNDS, NOISE = 7, 0.02
RUN_NOISE = 0.03
"""Of one run of a kernel alone."""
YARDSTICK_S = 1e-3
DIRECT = Candidate.of("direct")
WAYS = ("tune", "tune, neighbours known", "random", "tpe")
"""`tune` is the product's search from an empty store; `tpe` and `random` draw from all of the subspace, options and
structures alike, after tinygrad's own two."""


@dataclass(frozen=True)
class Measured(Space):
    """The structures that were recorded of a subspace: not all of them where the recording was short of time. What is
    chosen of the others becomes the recorded one that it shares most values with."""

    known: tuple[Candidate, ...] = ()
    good: tuple[Candidate, ...] | None = None
    """In place of what strategies declare as good."""

    @cached_property
    def among(self) -> frozenset[Candidate]:
        return frozenset(self.known)

    @cached_property
    def presets(self) -> tuple[Candidate, ...]:
        presets = super().presets if self.good is None else (*self.defaults, *self.good)
        return tuple(candidate for candidate in presets if candidate in self.among)

    def choose(self, choose: Choose) -> Candidate | None:
        chosen = super().choose(choose)
        if chosen is None or chosen in self.among:
            return chosen
        values = set(chosen.params)
        alike = (other for other in self.known if other.strategy == chosen.strategy)
        return max(alike, key=lambda other: len(values & set(other.params)), default=None)

    def neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        return (other for other in super().neighbours(candidate) if other in self.among)

    def sample(self, rng: random.Random) -> Candidate:
        return rng.choice(self.known)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.known)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One shape of a recording; `beam` as there. `wholes` of the trials were measured as a whole; `checked` are the
    times of those with options, each over what the sum of its kernels comes to."""

    key: ConvKey
    space: Space
    menus: dict[Candidate, Menus]
    trials: dict[Candidate, Trial]
    wholes: int
    checked: tuple[float, ...]
    machine: str
    beam: tuple[float, float] | None

    @property
    def best(self) -> float:
        return min(t.ratio for t in self.trials.values() if t.ok and t.ratio)

    @property
    def default(self) -> float:
        """The better of tinygrad's own, over direct."""
        return min([t.ratio for c in self.space.defaults if (t := self.trials.get(c)) and t.ratio], default=1.0)

    def here(self, candidate: Candidate) -> Candidate:
        """The candidate with options found on another shape: of each kernel those, if they were recorded here, else
        what it has by default."""
        structure = candidate.structure
        menus, wanted = self.menus.get(structure, {}), dict(candidate.kernel_options)
        chosen = [
            menu.options.index(wanted[role].options) if role in wanted and wanted[role].options in menu.options else 0
            for role, menu in menus.items()
        ]
        return with_chosen(structure, menus, chosen)

    def measured(self, candidate: Candidate, noise: np.ndarray, hopeless: float = math.inf) -> Measurement:
        """As the search would have seen it."""
        trial = self.trials.get(candidate)
        if trial is None or trial.ratio is None:
            status = Status(trial.status) if trial is not None else Status.INAPPLICABLE
            return Measurement(key=self.key, candidate=candidate, status=status)
        status = Status.PRUNED if trial.ratio > hopeless else Status(trial.status)
        return Measurement(
            key=self.key, candidate=candidate, status=status, fingerprint=trial.program,
            times_s=tuple(YARDSTICK_S * trial.ratio * noise), yardstick_times_s=(YARDSTICK_S,) * len(noise),
            compile_s=trial.compile_s,
        )  # fmt: skip


def recorded(path: Path, least: int) -> list[Recorded]:
    """The shapes of which at least so many candidates were recorded. Times over the anchor's become times over
    direct's, which was recorded like any other."""
    recording = Recording.read(path)
    spec = DeviceSpec.from_json(recording.machine["device"])
    machine = f"{spec.arch}, {spec.cores} cores a slot, {recording.machine['slots']} slots at once"
    result = []
    for number, (size, measured) in enumerate(zip(recording.shapes, recording.trials, strict=True)):
        direct, trials = measured.get(DIRECT), measured | recording.composed(number)
        if direct is not None and direct.ratio and len(trials) >= least:
            known = {c: over(trial, direct.ratio) for c, trial in trials.items()}
            beam = recording.beam.get(number)
            beam = (beam[0] / direct.ratio, beam[1]) if beam is not None else None
            key = ConvKey(shape=conv_shape(*size), device=spec)
            menus = {recording.structures[at]: made for at, made in recording.menus[number].items()}
            space = Measured(subspace(key).strategies, key, tuple(c for c in known if not c.kernel_options))
            over_sums = checked(recording, number)
            result.append(Recorded(key, space, menus, known, len(measured), over_sums, machine, beam))
    return result


def checked(recording: Recording, shape: int) -> tuple[float, ...]:
    """What was measured as a whole and with options, over the sum of its kernels."""
    measured = {c: t.ratio for c, t in recording.trials[shape].items() if c.kernel_options and t.ok and t.ratio}
    summed = {c: made.ratio for c in measured if (made := recording.compose(shape, c)) is not None}
    return tuple(measured[c] / ratio for c, ratio in summed.items() if ratio)


def over(trial: Trial, direct: float) -> Trial:
    return replace(trial, ratio=trial.ratio / direct if trial.ratio is not None else None)


@dataclass(frozen=True, slots=True)
class Seen:
    """A candidate measured as a whole for the first time: how many had been measured with it, options tried on single
    kernels counted, after how many seconds, and its time over direct's."""

    count: int
    seconds: float
    ratio: float


@dataclass(slots=True)
class Replay:
    """What a search has seen so far, and what it is charged. A Runner (autotune.runner.Runner) on a recorded shape."""

    item: Recorded
    seed: int
    at_once: int = 1
    seen: list[Seen] = field(default_factory=list)
    count: int = 0
    now: float = 0.0
    _known: set[Candidate] = field(default_factory=set)
    _tried: set[object] = field(default_factory=set)
    _options: dict[object, dict[Options, float]] = field(default_factory=dict)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    def noise(self, rounds: int) -> np.ndarray:
        return np.exp(self._rng.normal(0, NOISE, rounds))

    def measure(self, request: Request, **_: Any) -> list[Measurement]:
        return [self._measure(request, index, candidate) for index, candidate in enumerate(request.candidates)]

    def close(self) -> None:
        pass

    def _measure(self, request: Request, index: int, candidate: Candidate) -> Measurement:
        begun, tries = self.now, 0
        if request.options is not None:
            candidate, tries = self._with_options(candidate, request, request.options)
        self.charge(candidate, compiled=tries > 0)
        hopeless = request.hopeless if index >= request.keep else math.inf
        measured = self.item.measured(candidate, self.noise(request.rounds), hopeless)
        conditions = {"cost_s": self.now - begun} | ({TRIED: tries} if tries else {})
        return replace(measured, conditions=conditions, attempt=f"{self.seed} {self.now} {index}", measured_at=self.now)

    def charge(self, candidate: Candidate, *, compiled: bool = False) -> None:
        """Count a candidate that is measured as a whole, and what it takes: nothing if it was not recorded."""
        trial = self.item.trials.get(candidate)
        if trial is None:
            return
        new = candidate not in self._known
        self.now += trial.other_s + (trial.compile_s if new and not compiled else 0.0)
        if new:
            self._known.add(candidate)
            self.count += 1
            if trial.ok and trial.ratio:
                self.seen.append(Seen(self.count, self.now, trial.ratio))

    def tried(self, kernel: object, options: Options, try_s: float) -> None:
        """Count options tried on a kernel, the first time."""
        if (kernel, options) not in self._tried:
            self._tried.add((kernel, options))
            self.count, self.now = self.count + 1, self.now + try_s

    def _with_options(self, candidate: Candidate, request: Request, budget: Budget) -> tuple[Candidate, int]:
        """What strategies.graph.kernels and autotune.option_search.with_options make of it, on recorded kernels."""
        menus = self.item.menus.get(candidate, {})
        kernels = {role: RecordedKernel((candidate, role), menu, self) for role, menu in menus.items()}
        known = {role: self._options.setdefault((candidate, role), {}) for role in menus}
        searches = searches_of(
            kernels,
            budget=budget,
            seed=request.seed,
            hints=request.hints,
            begun=self.now,
            clock=self.clock,
            known=known,
        )
        chosen = searched(searches) if searches else {}
        options = {role: KernelOptions(axes=menus[role].axes, options=found) for role, found in chosen.items()}
        return replace(candidate, kernel_options=tuple(sorted(options.items()))), tried(searches)


@dataclass(frozen=True, slots=True)
class RecordedKernel:
    """A kernel as autotune.option_search wants one, whose options are a recorded menu."""

    name: tuple[Candidate, str]
    menu: Menu
    replay: Replay

    @property
    def default(self) -> Options:
        return self.menu.options[0]

    def more(self, options: Options) -> list[Options]:
        return [o for o in self.menu.options if len(o) > len(options) and one_step(options, o)]

    def other(self, options: Options) -> list[Options]:
        return [o for o in self.menu.options if len(o) <= len(options) and one_step(options, o)]

    def prepare(self, several: Sequence[Options]) -> None:
        """Each is charged when it is run."""

    def runner(self, options: Options) -> Callable[[], float]:
        """Raises ValueError for what was not recorded."""
        if options != self.default:
            self.replay.tried(self.name, options, self.menu.try_s)
        seconds = self.menu.seconds[self.menu.options.index(options)]
        return lambda: seconds * math.exp(self.replay._rng.normal(0, RUN_NOISE))  # noqa: SLF001 - one module


@dataclass(frozen=True, slots=True)
class Flat:
    """All that was recorded of a shape as one space, options of kernels being choices like any other: what a search
    that knows nothing of the problem draws from. As much of autotune.space.Space as a Search needs."""

    item: Recorded

    @property
    def presets(self) -> tuple[Candidate, ...]:
        return self.item.space.defaults

    defaults = presets

    def choose(self, choose: Choose) -> Candidate | None:
        structure = self.item.space.choose(choose)
        if structure is None:
            return None
        menus = self.item.menus.get(structure, {})

        def chosen(role: str, menu: Menu) -> int:
            numbers: tuple[Value, ...] = tuple(range(len(menu.options)))
            return int(choose(f"{structure.digest}.{role}", numbers))

        return with_chosen(structure, menus, [chosen(role, menu) for role, menu in menus.items()])

    def choices(self, candidate: Candidate) -> dict[str, tuple[Value, tuple[Value, ...]]] | None:
        return self.item.space.choices(candidate)

    def neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        return self.item.space.neighbours(candidate)

    def sample(self, rng: random.Random) -> Candidate:
        """A structure, then options of each kernel, evenly."""
        structure = self.item.space.sample(rng)
        assert structure is not None
        menus = self.item.menus.get(structure, {})
        return with_chosen(structure, menus, [rng.randrange(len(menu.options)) for menu in menus.values()])

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.item.trials)


def ended(
    item: Recorded, way: str, seed: int, budget: Budget, others: Sequence[Recorded] = ()
) -> tuple[Replay, Candidate]:  # fmt: skip
    """What the search of `autotune tune` saw within a budget, and what it ended with."""
    replay = Replay(item, seed)
    store: Any = RecordedStore(others if "neighbours" in way else (), item)
    winner = tune(
        item.key, store=store, runner=replay, budget=budget, clock=replay.clock, now=replay.clock, seed=seed,
        space=item.space,
    )  # fmt: skip
    return replay, winner.candidate


def replayed(item: Recorded, others: Sequence[Recorded], way: str, seed: int, budget: Budget) -> tuple[Replay, float]:
    """What one search saw within a budget, and the time over direct's of what it ended with."""
    if way.startswith("tune"):
        replay, candidate = ended(item, way, seed, budget, others)
        return replay, item.trials[candidate].ratio or math.inf
    replay = Replay(item, seed)
    flat: Any = Flat(item)
    search = Search(flat, seed=seed, sampler=way)
    while not _used(budget, replay) and (candidate := search.ask()) is not None:
        search.tell(item.measured(candidate, replay.noise(ROUNDS)))
        replay.charge(candidate)
    return replay, min((seen.ratio for seen in replay.seen), default=math.inf)


def _used(budget: Budget, replay: Replay) -> bool:
    in_trials = budget.trials is not None and replay.count >= budget.trials
    return in_trials or (budget.seconds is not None and replay.now >= budget.seconds)


class RecordedStore:
    """What a search and autotune.neighbours ask of a store: recorded shapes as if tuned before, and for the key itself
    the guess from these; what is measured now is forgotten."""

    def __init__(self, spaces: Sequence[Recorded], item: Recorded | None = None) -> None:
        self._spaces = {space.key.digest: space for space in spaces}
        self._item = item

    def winners(self, **_: Any) -> list[tuple[int, Winner]]:
        return [(number, winner_of(space)) for number, space in enumerate(self._spaces.values(), 1)]

    def measurements(self, key: ConvKey) -> list[Measurement]:
        space = self._spaces.get(key.digest)
        return [space.measured(candidate, np.ones(1)) for candidate in space.trials] if space is not None else []

    def winner(self, key: ConvKey) -> Winner | None:
        store: Any = self
        return guess(store, key, self._item.space) if self._item is not None and self._spaces else None

    def history(self, _key: ConvKey) -> list[tuple[int, Winner]]:
        return []

    def record(self, _measurement: Measurement) -> bool:
        return True

    def decide(self, _winner: Winner) -> int:
        return 1


def winner_of(space: Recorded) -> Winner:
    best = min((t.ratio, str(c), c.digest, c) for c, t in space.trials.items() if t.ok and t.ratio)
    ratio = best[0] / space.default
    times = (Interval(median=t, low=t, high=t) for t in (YARDSTICK_S * best[0], YARDSTICK_S * space.default, ratio))
    time_s, default_s, over = times
    return Winner(
        key=space.key, candidate=best[3], state=WinnerState.VERIFIED, time_s=time_s, default=DIRECT,
        default_time_s=default_s, ratio=over,
    )  # fmt: skip


def first(seen: Sequence[Seen], ratio: float, of: Callable[[Seen], float]) -> float:
    """`of` the first that is at least as fast as `ratio`; infinite without one."""
    return next((of(s) for s in seen if s.ratio <= ratio), math.inf)


def by_way(names: Sequence[str]) -> Mapping[str, list[float]]:
    return {name: [] for name in names}
