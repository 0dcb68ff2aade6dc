"""Interleaved timing: every contestant in every round, so that drift and noise fall on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP_RUNS = 2
HOPELESS = 2.0
"""A candidate whose fastest round so far is this many times the yardstick's slowest cannot win: it is stopped."""
ROUNDS_BEFORE_PRUNING = 2
MAX_RUNS_PER_ROUND = 200
MIN_TURNS, MAX_TURNS = 3, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds per round of one contestant; `pruned` if it was stopped early."""

    times_s: tuple[float, ...]
    pruned: bool = False


def interleaved(
    contestants: Mapping[str, Callable[[], float]], *, yardstick: str, rounds: int, round_s: float,
    prune: bool = True, started: Callable[[str], None] = lambda _: None, warm_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Times]:  # fmt: skip
    """Run every contestant once per round, in turns that rotate; each returns its seconds on the device.

    A round's time is the median over as many runs as fill `round_s`, at least one. Caches are warm: a contestant's
    runs follow each other, as in a program that calls the convolution in a loop. `started` hears who runs next.
    Before the first round the yardstick runs for `warm_s`: a GPU that idled while candidates compiled lowers its clock.
    """
    if warm_s > 0:
        started(yardstick)
        _spin(contestants[yardstick], clock() + warm_s, clock)
    runs = {}
    for name, run in contestants.items():
        started(name)
        runs[name] = _runs_per_round(run, round_s)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    stopped: set[str] = set()
    names = list(contestants)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in [*names[shift:], *names[:shift]]:
            if name not in stopped:
                started(name)
                times[name].append(median(contestants[name]() for _ in range(runs[name])))
        if prune and turn + 1 >= ROUNDS_BEFORE_PRUNING:
            stopped |= _hopeless(times, yardstick)
        if set(names) - stopped <= {yardstick} and len(names) > 1:
            break
    return {name: Times(times_s=tuple(times[name]), pruned=name in stopped) for name in names}


def medians_in_turn(run: Callable[[], Sequence[float]], *, seconds: float) -> list[float]:
    """`run` gives seconds of several things that follow each other: the median of each over as many runs as fill
    `seconds`, at least MIN_TURNS and at most MAX_TURNS. The first run warms up and does not count."""
    once = sum(run())
    turns = min(MAX_TURNS, max(MIN_TURNS, math.ceil(seconds / once))) if once > 0 else MAX_TURNS
    return [median(times) for times in zip(*(run() for _ in range(turns)), strict=True)]


def _spin(run: Callable[[], float], until: float, clock: Callable[[], float]) -> None:
    while clock() < until:
        run()


def _runs_per_round(run: Callable[[], float], round_s: float) -> int:
    once = min(run() for _ in range(WARM_UP_RUNS))
    return min(MAX_RUNS_PER_ROUND, max(1, math.ceil(round_s / once))) if once > 0 else MAX_RUNS_PER_ROUND


def _hopeless(times: Mapping[str, Sequence[float]], yardstick: str) -> set[str]:
    limit = HOPELESS * max(times[yardstick])
    return {name for name, seconds in times.items() if name != yardstick and min(seconds) > limit}
