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
FAR_TOO_SLOW = 10.0
"""One whose first run takes this many times the limit is not even run a second time, unless that is soon done."""
SOON_S = 0.5
"""On a busy machine a first run may take so long by bad luck: a thread that waits for its processor."""
RACE_FROM = 6
"""Rounds from which the field is held against its leader. Were two contestants equally fast, one would lose six
rounds of six with probability 2 ** -6 each way, and by the margin below far more rarely."""
RACE_MARGIN = 1.02
MAX_RUNS_PER_ROUND = 200
MIN_TURNS, MAX_TURNS = 3, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds per round of one contestant; `pruned` if it was stopped early."""

    times_s: tuple[float, ...]
    pruned: bool = False


def interleaved(
    contestants: Mapping[str, Callable[[], float]], *, yardstick: str, rounds: int, round_s: float,
    prune: bool = True, hopeless: float = HOPELESS, race: bool = False, keep: Sequence[str] = (),
    started: Callable[[str], None] = lambda _: None, warm_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Times]:  # fmt: skip
    """Run every contestant once per round, in turns that rotate; each returns its seconds on the device.

    A round's time is the median over as many runs as fill `round_s`, at least one. Caches are warm for everybody: a
    contestant's runs follow each other, as in a program that calls the convolution in a loop. `prune` stops those
    that are `hopeless` times as slow as the yardstick, `race` those that lose to the fastest round after round;
    neither stops the yardstick or who is in `keep`. `started` hears who runs next.
    Before the first round the yardstick runs for `warm_s`: a device that idled while candidates compiled lowers its
    clock.
    """
    if warm_s > 0:
        started(yardstick)
        _spin(contestants[yardstick], clock() + warm_s, clock)
    names, spared = list(contestants), {yardstick, *keep}
    times: dict[str, list[float]] = {name: [] for name in names}
    stopped: set[str] = set()
    runs: dict[str, int] = {}
    limit_s = math.inf
    for name in (yardstick, *(n for n in names if n != yardstick)):
        started(name)
        once_s = contestants[name]()
        if limit_s < once_s < SOON_S:
            once_s = min(once_s, contestants[name]())
        if once_s > limit_s and name not in spared:
            times[name].append(once_s)
            stopped.add(name)
            continue
        once_s = min(once_s, *(contestants[name]() for _ in range(WARM_UP_RUNS - 1)))
        runs[name] = _runs_per_round(once_s, round_s)
        if name == yardstick and prune and once_s > 0:
            limit_s = FAR_TOO_SLOW * hopeless * once_s
    for turn in range(rounds):
        shift = turn % len(names)
        for name in [*names[shift:], *names[:shift]]:
            if name not in stopped:
                started(name)
                times[name].append(median(contestants[name]() for _ in range(runs[name])))
        if prune and turn + 1 >= ROUNDS_BEFORE_PRUNING:
            stopped |= _hopeless(times, yardstick, hopeless) - spared
        if race and turn + 1 >= RACE_FROM:
            stopped |= _beaten(times, stopped) - spared
        if set(names) - stopped <= {yardstick} and len(names) > 1:
            break
    return {name: Times(times_s=tuple(times[name]), pruned=name in stopped) for name in names}


def medians_in_turn(run: Callable[[], Sequence[float]], *, seconds: float) -> list[float]:
    """`run` gives seconds of several things that follow each other: the median of each over as many runs as fill
    `seconds`, at least MIN_TURNS and at most MAX_TURNS. The first run warms up and does not count."""
    once = sum(run())
    turns = min(MAX_TURNS, max(MIN_TURNS, math.ceil(seconds / once))) if once > 0 else MAX_TURNS
    return [median(times) for times in zip(*(run() for _ in range(turns)), strict=True)]


def drift(times_s: Sequence[float]) -> float:
    """The last third's median over the first third's: above 1, the device slowed down meanwhile."""
    third = max(1, len(times_s) // 3)
    return median(times_s[-third:]) / median(times_s[:third]) if times_s and min(times_s) > 0 else 1.0


def _spin(run: Callable[[], float], until: float, clock: Callable[[], float]) -> None:
    while clock() < until:
        run()


def _runs_per_round(once_s: float, round_s: float) -> int:
    return min(MAX_RUNS_PER_ROUND, max(1, math.ceil(round_s / once_s))) if once_s > 0 else MAX_RUNS_PER_ROUND


def _hopeless(times: Mapping[str, Sequence[float]], yardstick: str, hopeless: float) -> set[str]:
    limit_s = hopeless * max(times[yardstick])
    return {name for name, seconds in times.items() if name != yardstick and min(seconds) > limit_s}


def _beaten(times: Mapping[str, Sequence[float]], stopped: set[str]) -> set[str]:
    """Those still running that were slower than the leader, by a margin, in each of the last rounds."""
    running = {name: seconds for name, seconds in times.items() if name not in stopped}
    leader = min(running.values(), key=median)
    return {
        name for name, seconds in running.items()
        if all(mine > RACE_MARGIN * best for mine, best in zip(seconds[-RACE_FROM:], leader[-RACE_FROM:], strict=True))
    }  # fmt: skip
