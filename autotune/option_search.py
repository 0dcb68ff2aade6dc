"""Which options the kernels of a candidate should have: each by itself, step by step, as far as time allows.

A search begins at what the kernel has by default, tinygrad's heuristics or nothing, and at no options at all, from
where steps of one option more are BEAM's way. Other steps take an option away or change an amount.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from autotune.job import Budget
from strategies.candidate import Candidate, KernelOptions, Option
from strategies.key import ConvKey

if TYPE_CHECKING:
    from strategies.graph.compiling import Pool

Options = tuple[Option, ...]
Hints = Sequence[tuple[str, KernelOptions]]
"""By the kernel's role."""

BETTER = 0.97
"""A step is taken if it leaves at most this share of the time: less is noise."""
RUN_S = 0.01
"""How long one set of options is run, at least three times."""
HOPELESS = 1.5
"""Options whose first runs take this many times the best are not run again."""
NEGLIGIBLE = 0.02
"""A kernel with less than this share of a candidate's time is left as it is."""
FAILED = float("inf")


class Kernel(Protocol):
    """What is asked of a kernel: see strategies.graph.kernels.TunableKernel."""

    @property
    def default(self) -> Options: ...
    def more(self, options: Options) -> Sequence[Options]: ...
    def other(self, options: Options) -> Sequence[Options]: ...
    def prepare(self, several: Sequence[Options]) -> None: ...
    def runner(self, options: Options) -> Callable[[], float]: ...


@dataclass(slots=True)
class KernelSearch:
    """One search over one kernel's options. `clock` says how much of what is allowed is used.

    `begins` is called before each trial, which compiles and runs what may hang; `at_once` kernels are compiled side by
    side. `hints` are options that were good for kernels like it. From `times` of an earlier search it goes on.
    """

    kernel: Kernel
    clock: Callable[[], float]
    rng: random.Random
    at_once: int = 1
    begins: Callable[[], None] = lambda: None
    hints: Sequence[Options] = ()
    times: dict[Options, float] = field(default_factory=dict)
    """Median seconds of all that was tried; infinite for what does not compile or run."""
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = len(self.times)

    @property
    def tried(self) -> int:
        """How many options this search tried, the kernel's default not counted."""
        return len(self.times) - max(1, self.before)

    def time(self, options: Options, best_s: float = FAILED) -> float:
        """Median seconds, as known."""
        if options not in self.times:
            self.begins()
            self.times[options] = timed(self.kernel, options, best_s)
        return self.times[options]

    def run(self, until: float) -> Options:
        """The best options found; the default if none are better beside it. Nothing is begun from `until` on."""
        default = self.kernel.default
        for hint in self.hints:
            if self.clock() < until:
                self.time(hint, self.time(default))
        best = self._descend(min((default, *self.times), key=lambda o: self.times.get(o, FAILED)), until)
        if default and self.clock() < until:
            best = min(best, self._descend((), until), key=self.time)
        return self._confirmed(best, default)

    def _descend(self, at: Options, until: float) -> Options:
        """Step by step, the first step that is better, until none is."""
        while self.time(at) == FAILED or self.clock() < until:
            better = next((step for step in self._steps(at, until) if self._is_better(step, at)), None)
            if better is None:
                break
            at = better
        return at

    def _steps(self, at: Options, until: float) -> Iterator[Options]:
        """New steps, compiled some at a time. The first, which puts a kernel on threads, is tried first."""
        more = list(self.kernel.more(at))
        rest = more[1:] + list(self.kernel.other(at))
        self.rng.shuffle(rest)
        steps = (step for step in (*more[:1], *rest) if step not in self.times)
        while (batch := list(islice(steps, self.at_once))) and self.clock() < until:
            self.begins()
            self.kernel.prepare(batch)
            for number, step in enumerate(batch):
                if number and self.clock() >= until:
                    return
                yield step

    def _is_better(self, step: Options, at: Options) -> bool:
        return self.time(step, self.times[at]) < BETTER * self.times[at]

    def _confirmed(self, best: Options, default: Options) -> Options:
        """Of many that are timed once, some are lucky: the best must be so again."""
        if best == default or self.times[default] == FAILED:
            return best
        self.begins()
        seconds = [timed(self.kernel, options) for options in (best, default, best, default)]
        return best if min(seconds[::2]) < BETTER * min(seconds[1::2]) else default


def timed(kernel: Kernel, options: Options, best_s: float = FAILED) -> float:
    """Median seconds over runs that fill RUN_S; infinite for what does not compile or run."""
    try:
        run = kernel.runner(options)
        run()
        times = [run()]
        while (len(times) < 3 or (sum(times) < RUN_S and len(times) < 100)) and min(times) < HOPELESS * best_s:
            times.append(run())
    except Exception:  # noqa: BLE001 - tinygrad and its compilers raise anything; these are no options, then
        return FAILED
    return statistics.median(times)


def with_options(
    key: ConvKey, candidate: Candidate, *, budget: Budget, seed: int, pool: Pool, at_once: int,
    begins: Callable[[], None], hints: Hints = (), clock: Callable[[], float] = time.monotonic,
    memory: dict[object, dict[Options, float]] | None = None,
) -> tuple[Candidate, int]:  # fmt: skip
    """The candidate with the options found for its kernels within the budget, as it is where none are better; and how
    many options were tried, those that its kernels have by default not counted. `memory` holds, by kernel, what earlier
    searches came to, and gets what this one does: of the same candidate, or of another with the same kernel.

    On the device itself: see `autotune.child`.
    """
    from strategies.graph.kernels import tunable_kernels

    begun = clock()
    begins()
    kernels = {
        kernel.role: kernel for kernel in tunable_kernels(key.shape, candidate, key.device.device, pool=pool)
        if not (kernel.role == "GHAT" and key.policy.frozen_weights)
    }  # fmt: skip
    known = (
        {role: memory.setdefault(kernel.kernel, {}) for role, kernel in kernels.items()} if memory is not None else {}
    )
    searches = searches_of(
        kernels, budget=budget, seed=seed, hints=hints, begun=begun, clock=clock, at_once=at_once, begins=begins,
        known=known,
    )  # fmt: skip
    chosen = {role: kernels[role].chosen(options) for role, options in searched(searches).items()}
    return replace(candidate, kernel_options=tuple(sorted(chosen.items()))), tried(searches)


def searches_of(
    kernels: Mapping[str, Kernel], *, budget: Budget, seed: int, begun: float, clock: Callable[[], float],
    hints: Hints = (), at_once: int = 1, begins: Callable[[], None] = lambda: None,
    known: Mapping[str, dict[Options, float]] | None = None,
) -> dict[str, KernelSearch]:  # fmt: skip
    """A search for each kernel, by role, all within one budget, whose seconds began at `begun`. They go on from the
    times that are `known`, and add theirs."""
    searches: dict[str, KernelSearch] = {}

    def used() -> float:
        of_seconds = (clock() - begun) / budget.seconds if budget.seconds is not None else 0.0
        return max(of_seconds, tried(searches) / budget.trials if budget.trials is not None else 0.0)

    rng = random.Random(seed)
    for role, kernel in kernels.items():
        mine = list(dict.fromkeys(made.options for named, made in hints if named == role))
        times = known[role] if known and role in known else {}
        searches[role] = KernelSearch(kernel, used, rng, at_once, begins, hints=mine, times=times)
    return searches


def tried(searches: Mapping[str, KernelSearch]) -> int:
    """How many options were tried on all kernels together, beside those that they have by default."""
    return sum(max(0, search.tried) for search in searches.values())


def searched(searches: Mapping[str, KernelSearch]) -> dict[str, Options]:
    """The better options of those kernels that have some, by role. Nothing is begun once the budget is used.

    Kernels get of it as they take of the time, the slowest first.
    """
    spent = {role: search.time(search.kernel.default) for role, search in searches.items()}
    known = {role: s for role, s in spent.items() if s < FAILED}
    worth = [role for role in sorted(known, key=known.__getitem__, reverse=True)
             if known[role] >= NEGLIGIBLE * sum(known.values())]  # fmt: skip
    chosen = {}
    for index, role in enumerate(worth):
        search = searches[role]
        share = known[role] / sum(known[later] for later in worth[index:])
        now = search.clock()
        best = search.run(now + share * max(0.0, 1.0 - now))
        if best != search.kernel.default:
            chosen[role] = best
    return chosen


def one_step(at: Options, to: Options) -> bool:
    """Whether `to` is `at` with one option more or less, or with another amount for one."""
    if len(to) > len(at):
        return to[:-1] == at
    if len(to) < len(at):
        return any(at[:i] + at[i + 1 :] == to for i in range(len(at))) and len(to) == len(at) - 1
    different = [(old, new) for old, new in zip(at, to, strict=True) if old != new]
    return len(different) == 1 and different[0][0][:2] == different[0][1][:2]
