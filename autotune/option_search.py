"""Which options a kernel should have: from several beginnings, step by step to the fastest, as far as time allows.

Beginnings are what the kernel has by default, tinygrad's heuristics or nothing, and no options at all, from where
steps of one option more are BEAM's way. Steps also take an option away or change its amount.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from strategies.candidate import Option

Options = tuple[Option, ...]

BETTER = 0.97
"""A step is taken if it leaves at most this share of the time: less is noise."""
RUN_S = 0.01
"""How long one set of options is run, at least three times."""
HOPELESS = 1.5
"""Options whose first run takes this many times the best are not run again."""


class Kernel(Protocol):
    """What is asked of a kernel: see strategies.graph.kernels.TunableKernel."""

    @property
    def default(self) -> Options: ...
    def more(self, options: Options) -> Sequence[Options]: ...
    def other(self, options: Options) -> Sequence[Options]: ...
    def runner(self, options: Options) -> Callable[[], float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best options for a kernel, their seconds and the default's, and how many were tried."""

    options: Options
    time_s: float
    default_s: float
    tried: int


@dataclass(slots=True)
class KernelSearch:
    """One search over one kernel's options. `clock` gives seconds; nothing is begun from `until` on.

    `begins` is called before each trial, which compiles and runs what may hang.
    """

    kernel: Kernel
    until: float
    clock: Callable[[], float]
    rng: random.Random
    begins: Callable[[], None] = lambda: None
    _times: dict[Options, float] = field(default_factory=dict)

    def run(self) -> Found | None:
        """None if not even the default could be compiled and timed."""
        default = self.kernel.default
        default_s = self._time(default)
        if default_s == float("inf"):
            return None
        best = self._descend(default)
        if default:
            best = min(best, self._descend(()), key=self._times.__getitem__)
        best = self._confirmed(best, default)
        return Found(options=best, time_s=self._times[best], default_s=self._times[default], tried=len(self._times))

    @property
    def _over(self) -> bool:
        return self.clock() >= self.until

    def _descend(self, at: Options) -> Options:
        """Step by step, the first step that is better, until none is."""
        self._time(at)
        while not self._over:
            more, other = list(self.kernel.more(at)), list(self.kernel.other(at))
            first = more[:1]
            rest = more[1:] + other
            self.rng.shuffle(rest)
            better = next((step for step in (*first, *rest) if self._is_better(step, at)), None)
            if better is None:
                break
            at = better
        return at

    def _is_better(self, step: Options, at: Options) -> bool:
        if self._over or step in self._times:
            return False
        return self._time(step, best_s=self._times[at]) < BETTER * self._times[at]

    def _time(self, options: Options, best_s: float = float("inf")) -> float:
        """Median seconds; infinite for what does not compile or run."""
        if options not in self._times:
            self.begins()
            self._times[options] = timed(self.kernel, options, best_s)
        return self._times[options]

    def _confirmed(self, best: Options, default: Options) -> Options:
        """The best, unless beside the default it is none: of many that are timed once, some are lucky."""
        if best == default:
            return default
        self.begins()
        for options in (best, default):
            self._times[options] = timed(self.kernel, options)
        return best if self._times[best] < BETTER * self._times[default] else default


def timed(kernel: Kernel, options: Options, best_s: float = float("inf")) -> float:
    """Median seconds over runs that fill RUN_S; infinite for what does not compile or run."""
    try:
        run = kernel.runner(options)
        run()
        times = [run()]
        while len(times) < 3 or (sum(times) < RUN_S and len(times) < 100):
            if times[0] > HOPELESS * best_s:
                break
            times.append(run())
    except Exception:  # noqa: BLE001 - tinygrad and its compilers raise anything; it is not an option, then
        return float("inf")
    return statistics.median(times)
