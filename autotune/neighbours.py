"""What is known of similar convolutions: how far apart two keys are, what to learn and what to guess from near ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from autotune.measurement import Measurement, Status
from autotune.space import DEFAULTS, Space
from autotune.statistics import median_ratio
from autotune.store import Store
from autotune.surrogate import Point, Surrogate
from autotune.winner import APPLICABLE_STATES, Interval, Winner, WinnerState
from strategies.candidate import Candidate, KernelOptions, Option
from strategies.key import ConvKey
from strategies.shape import ConvShape

OTHER_DEVICE = 4.0
OTHER_OPTION = 8.0
FARTHEST = 6.0
"""Beyond it nothing is learned: another kind of convolution, or sizes 64 times apart."""
NEIGHBOURS = 4
KNOWN = 2000
FASTEST, OTHERS, WITH_OPTIONS = 25, 15, 4
"""Of a neighbour's measurements: from the fastest alone one would learn nothing of what is slow, and from those with
options for their kernels, of which there may be many alike, nothing of structures."""
HINTS = 2
"""Sets of options that are tried first on a kernel, at most."""
CAUTION = 1.0
"""A guess is what is best by its mean plus so many standard deviations: not the boldest candidate, the safest."""
CONFIDENT = 1.96
WORTH = 0.97
"""Options that left more of the time than this may have been lucky."""


def distance(key: ConvKey, other: ConvKey) -> float:
    """Powers of two between the sizes, and a fixed step for each thing that makes it another kind of convolution."""
    mine, theirs = canonical(key.shape), canonical(other.shape)
    sizes = _octaves((mine.batch, mine.cin, mine.cout), (theirs.batch, theirs.cin, theirs.cout))
    sizes += _octaves([math.prod(mine.spatial)], [math.prod(theirs.spatial)])
    options = ("kernel", "stride", "dilation", "groups", "dtype", "acc_dtype")
    others: float = sum(getattr(mine, name) != getattr(theirs, name) for name in options)
    others += 0.25 * (mine.padding != theirs.padding) + 0.5 * (key.policy != other.policy)
    device = OTHER_DEVICE * (key.device.device != other.device.device)
    device += 0.5 * (key.device.device == other.device.device and key.device.identity() != other.device.identity())
    return sizes + OTHER_OPTION * others + device


@lru_cache(maxsize=8192)
def canonical(shape: ConvShape) -> ConvShape:
    """`ConvShape.canonical`, remembered: thousands of known ones are compared with each question."""
    return shape.canonical()


def neighbours(store: Store, key: ConvKey, known: Sequence[Winner] | None = None) -> list[tuple[float, Winner]]:
    """The nearest keys that have a winner which nobody withdrew, with their distances; the key itself is none. `known`:
    the winners to look among, by default the KNOWN latest of the store, of which reading takes long."""
    among = [winner for _, winner in store.winners(limit=KNOWN)] if known is None else known
    others = [w for w in among if w.state in APPLICABLE_STATES and w.key.digest != key.digest]
    near = sorted(((distance(key, w.key), w) for w in others), key=lambda item: item[0])
    return [(apart, winner) for apart, winner in near[:NEIGHBOURS] if apart <= FARTHEST]


def prior(
    store: Store,
    key: ConvKey,
    near: Sequence[tuple[float, Winner]] | None = None,
    admitted: Callable[[Measurement, ConvKey], bool] = lambda _measured, _of: True,
) -> list[Point]:
    """What the neighbours' measurements say: of the defaults, the fastest candidates and some of the others, as far as
    they are `admitted`.

    Values are over the fastest structure of each neighbour, not over its `direct`: how slow `direct` is differs from
    shape to shape much more than how candidates compare.
    """
    points = []
    for apart, winner in neighbours(store, key) if near is None else near:
        best: dict[Candidate, float] = {}
        for m in store.measurements(winner.key):
            if _timed(m) and admitted(m, winner.key):
                best[m.candidate] = math.log(median_ratio(m.times_s, m.yardstick_times_s))
        ranked = sorted(best.items(), key=lambda item: item[1])
        plain = [item for item in ranked if not item[0].kernel_options]
        rest = plain[FASTEST:]
        chosen = dict(plain[:FASTEST] + rest[:: max(1, math.ceil(len(rest) / OTHERS))])
        chosen |= {c: v for c, v in plain if c.strategy in DEFAULTS}
        fastest: dict[Candidate, tuple[Candidate, float]] = {}  # of each structure
        for candidate, value in ranked:
            if candidate.kernel_options:
                fastest.setdefault(candidate.structure, (candidate, value))
        chosen |= dict(list(fastest.values())[:WITH_OPTIONS])
        level = plain[0][1] if plain else 0.0
        points += [Point(candidate=c, value=v - level, distance=apart) for c, v in chosen.items()]
    return points


def option_hints(points: Iterable[Point], candidate: Candidate) -> list[tuple[str, KernelOptions]]:
    """Options that the kernels of this candidate's strategy had in what neighbours measured: of the nearest and fastest
    first, those of the same structure before others."""
    known = sorted(
        (p for p in points if p.candidate.strategy == candidate.strategy and p.candidate.kernel_options),
        key=lambda p: (p.candidate.params != candidate.params, p.distance, p.value),
    )
    found: dict[str, dict[tuple[Option, ...], KernelOptions]] = {}
    for point in known:
        for role, made in point.candidate.kernel_options:
            found.setdefault(role, {}).setdefault(made.options, made)
    return [(role, made) for role, several in found.items() for made in list(several.values())[:HINTS]]


def guess(
    store: Store, key: ConvKey, space: Space | None = None, known: Sequence[Winner] | None = None
) -> Winner | None:
    """The best guess for a key that was never tuned; None if nothing near enough is `known` (see `neighbours`).

    What was measured before only tinygrad's version or its surroundings changed is `provisional`: the same candidate,
    with its times of then. Otherwise a `guess`: of the candidates that neighbours had in their finals the one that
    the model thinks safest, or the default if even that may be slower. Its `provenance` says from whom, and how
    confident the model is that it is faster than the default. Times are estimates: the nearest default's, by the work.
    Options for its kernels are those that made it faster where it was nearest; they are applied where they fit.
    """
    near = neighbours(store, key, known)
    if not near:
        return None
    for _, winner in near:
        if _only_aged(key, winner.key):
            return replace(winner, key=key, state=WinnerState.PROVISIONAL)
    known_points = prior(store, key, near, lambda m, of: _allowed(key, m, of))
    points = _achieved(known_points)
    space = space or Space.of(key)
    names = {item.name for item in space.strategies}
    others = [p for p in points if p.candidate.strategy in names and p.candidate not in space.defaults]
    defaults = {c: measured for c in space.defaults if (measured := [p for p in points if p.candidate == c])}
    if not defaults:
        return None
    default, default_value = min(((c, _weighted(measured)) for c, measured in defaults.items()), key=lambda d: d[1])
    chosen, difference, spread = default, 0.0, 0.0
    if others:
        candidates = list(dict.fromkeys(p.candidate for p in others))
        mean, deviation = Surrogate(others).predict(candidates)
        best = int(np.argmin(mean + CAUTION * deviation))
        if mean[best] + CAUTION * deviation[best] < default_value:
            values = [p.value for p in defaults[default]]
            chosen, difference = candidates[best], min(0.0, float(mean[best]) - default_value)
            spread = math.hypot(float(deviation[best]), float(np.std(values)))
    nearest = near[0][1]
    default_s = nearest.default_time_s.median * _work(key) / _work(nearest.key)
    return Winner(
        key=key, candidate=_with_options(chosen, known_points), state=WinnerState.GUESS, default=default,
        default_time_s=Interval(median=default_s, low=default_s / 2, high=default_s * 2),
        time_s=_times(default_s, _interval(difference, spread)), ratio=_interval(difference, spread),
        provenance={
            "guessed_from": [str(winner.key) for _, winner in near],
            "confidence": round(_below(-difference / spread) if spread else 1.0, 3),
        },
    )  # fmt: skip


def _achieved(points: Iterable[Point]) -> list[Point]:
    """Structures, each with what it came to where it was measured, with options for its kernels or without."""
    best: dict[tuple[Candidate, float], float] = {}
    for p in points:
        at = p.candidate.structure, p.distance
        best[at] = min(best.get(at, math.inf), p.value)
    return [Point(candidate=c, value=value, distance=apart) for (c, apart), value in best.items()]


def _with_options(candidate: Candidate, points: Iterable[Point]) -> Candidate:
    """With the options that it was fastest with at the nearest of the neighbours that found some for it."""
    same = [p for p in points if p.candidate.structure == candidate]
    plain = {p.distance: p.value for p in same if not p.candidate.kernel_options}
    better = [
        p for p in same if p.candidate.kernel_options and p.value < plain.get(p.distance, math.inf) + math.log(WORTH)
    ]
    if not better:
        return candidate
    best = min(better, key=lambda p: (p.distance, p.value)).candidate
    return replace(best, kernel_options=tuple((role, made.anywhere) for role, made in best.kernel_options))


def _weighted(points: Sequence[Point]) -> float:
    """Their mean value, the nearest counting most."""
    weights = [math.pow(2.0, -p.distance) for p in points]
    return sum(w * p.value for w, p in zip(weights, points, strict=True)) / sum(weights)


def aged(winner: Winner, asked: ConvKey) -> Winner:
    """`provisional` if it was measured under another driver, system or compiler than the asker has; else as it is."""
    if winner.state is WinnerState.VERIFIED and is_stale(winner, asked):
        return replace(winner, state=WinnerState.PROVISIONAL)
    return winner


def is_stale(winner: Winner, here: ConvKey) -> bool:
    """Whether driver, system, compiler or tinygrad are known on both sides and differ."""
    then, now = ((*key.device.surroundings, key.device.tinygrad) for key in (winner.key, here))
    pairs = zip(then, now, strict=True)
    return any(then and now and then != now for then, now in pairs)


def _only_aged(key: ConvKey, other: ConvKey) -> bool:
    changed = set(key.difference(other))
    return bool(changed) and changed <= {"device.tinygrad", "device.driver", "device.os", "device.compiler"}


def _allowed(key: ConvKey, measured: Measurement, of: ConvKey) -> bool:
    """Whether what was measured of a neighbour is within the policy, its workspace taken to grow as the tensors do."""
    error, workspace = key.policy.max_error, key.policy.max_workspace_bytes
    if error is not None and (measured.error is None or measured.error > error):
        return False
    return workspace is None or measured.workspace_bytes * max(1.0, _elements(key) / _elements(of)) <= workspace


def _elements(key: ConvKey) -> int:
    shape = key.shape
    return sum(map(math.prod, (shape.input_shape, shape.weight_shape, shape.output_shape)))


def _timed(measurement: Measurement) -> bool:
    correct = measurement.status in (Status.OK, Status.PRUNED)
    return correct and 0 < len(measurement.times_s) == len(measurement.yardstick_times_s)


def _octaves(mine: Sequence[int], theirs: Sequence[int]) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(mine, theirs, strict=True))


def _work(key: ConvKey) -> float:
    shape = key.shape
    return math.prod(shape.output_shape) * math.prod(shape.weight_shape[1:])


def _interval(difference: float, deviation: float) -> Interval:
    low, high = (math.exp(difference + side * CONFIDENT * deviation) for side in (-1, 1))
    return Interval(median=math.exp(difference), low=low, high=high)


def _times(default_s: float, ratio: Interval) -> Interval:
    return Interval(median=default_s * ratio.median, low=default_s * ratio.low / 2, high=default_s * ratio.high * 2)


def _below(deviations: float) -> float:
    """The probability that a normal value is below so many standard deviations."""
    return 0.5 * (1 + math.erf(deviations / math.sqrt(2)))
