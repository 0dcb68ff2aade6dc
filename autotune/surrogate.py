"""What measured candidates say of others: a Gaussian process over their choices.

Two candidates are the more alike the fewer choices they differ in; how much each choice matters is learned from the
measurements, by their marginal likelihood (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 5.4.1).
Measurements of other shapes count too, as if further away: what is known of neighbours is the prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.candidate import Candidate, Value

Floats = NDArray[np.float64]

NOISE = 0.03
"""Of a measurement, relative: candidates are told apart by more."""
WEIGHTS = (0.02, 0.1, 0.4, 1.2)
"""How much a choice may matter: by how much it multiplies the exponent of likeness."""
STRATEGY_WEIGHT = 1.5
DISTANCE = "distance"
DISTANCE_WEIGHTS = (0.005, 0.02, 0.06, 0.2, 0.6)
"""How much the distance between shapes may matter, per power of two between their sizes."""
USUAL = {"": STRATEGY_WEIGHT, DISTANCE: 0.06}
SWEEPS = 2
MAX_POINTS = 240
"""Of more measurements the most telling are kept: the fastest, and the latest of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured candidate: the logarithm of its time over that of the fastest structure known of its shape, and how
    far this is from the shape asked."""

    candidate: Candidate
    value: float
    distance: float = 0.0


class Surrogate:
    """A model of the points' values, made of at least one. Immutable once made.

    How much each choice matters is learned, or taken from `weights` of an earlier model where that is given.
    """

    def __init__(self, points: Sequence[Point], weights: Mapping[str, float] | None = None) -> None:
        if not points:
            raise ValueError("a model needs at least one measured candidate")
        self._points = _telling(points)
        self._columns = _columns(p.candidate for p in self._points)
        self._rows = self._encoded([p.candidate for p in self._points])
        self._apart = np.array([p.distance for p in self._points])
        values = np.array([p.value for p in self._points])
        self._mean = float(np.median(values))
        self._scale = max(float(np.std(values)), 0.1)
        self._targets = (values - self._mean) / self._scale
        given = {**USUAL, **(weights or {})}
        self._weights = np.array([given.get(name, 0.4) for name in (*self._columns, DISTANCE)])
        self._within = self._differences(self._rows, self._rows, self._apart, self._apart)
        if weights is None:
            self._learn()
        self._inverse = np.linalg.inv(self._covariance())
        self._alpha = self._inverse @ self._targets

    @property
    def weights(self) -> dict[str, float]:
        """How much each choice matters, by its name; the strategy's is the empty one. And the distance of shapes."""
        return dict(zip((*self._columns, DISTANCE), self._weights.tolist(), strict=True))

    def predict(self, candidates: Sequence[Candidate]) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the value, for each candidate on the shape asked."""
        rows = self._encoded(candidates)
        here = np.zeros(len(candidates))
        cross = np.exp(-self._differences(rows, self._rows, here, self._apart) @ self._weights)
        mean = self._mean + self._scale * (cross @ self._alpha)
        explained = np.einsum("ij,jk,ik->i", cross, self._inverse, cross)
        return mean, self._scale * np.sqrt(np.maximum(1.0 - explained, 1e-9))

    def expected_improvement(self, candidates: Sequence[Candidate], best: float) -> Floats:
        """Of each candidate over `best`, in units of the logarithm (Jones et al., "Efficient Global Optimization")."""
        mean, deviation = self.predict(candidates)
        gain = (best - mean) / deviation
        density = np.exp(-0.5 * gain**2) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + np.vectorize(math.erf)(gain / math.sqrt(2)))
        improvement: Floats = deviation * np.maximum(gain * below + density, 0.0)  # rounding may leave it just below
        return improvement

    def _learn(self) -> None:
        best = self._likelihood()
        for _ in range(SWEEPS):
            for column in range(1, len(self._weights)):
                kept, last = self._weights[column], column == len(self._columns)
                if last and not self._apart.any():
                    continue
                for weight in DISTANCE_WEIGHTS if last else WEIGHTS:
                    former, self._weights[column] = self._weights[column], weight
                    likelihood = self._likelihood()
                    if likelihood > best + 1e-9:
                        best, kept = likelihood, weight
                    else:
                        self._weights[column] = former
                self._weights[column] = kept

    def _covariance(self) -> Floats:
        noise = (NOISE / self._scale) ** 2 + 1e-6
        covariance: Floats = np.exp(-self._within @ self._weights) + noise * np.eye(len(self._points))
        return covariance

    def _likelihood(self) -> float:
        lower = np.linalg.cholesky(self._covariance())
        whitened = np.linalg.solve(lower, self._targets)
        return float(-0.5 * whitened @ whitened - np.log(np.diag(lower)).sum())

    def _encoded(self, candidates: Sequence[Candidate]) -> Floats:
        """A number for each choice: its rank among the values seen; where it is not made the middle one of numbers, or
        a value of its own."""
        blank = [(len(ranks) - 1) / 2 if ordered else -2.0 for _, ranks, ordered in self._columns.values()]
        rows = np.tile(np.array(blank), (len(candidates), 1))
        for row, candidate in zip(rows, candidates, strict=True):
            for name, value in _choices(candidate):
                if name in self._columns:
                    at, ranks, _ = self._columns[name]
                    row[at] = ranks.get(value, -1.0)
        return rows

    def _differences(self, a: Floats, b: Floats, a_apart: Floats, b_apart: Floats) -> Floats:
        """By choice: 1 where it differs, for numbers how many steps apart. The last is the distance of the shapes."""
        result = np.abs(a[:, None, :] - b[None, :, :])
        named = [at for at, _, ordered in self._columns.values() if not ordered]
        result[:, :, named] = np.sign(result[:, :, named])
        shapes = np.abs(a_apart[:, None] - b_apart[None, :])
        return np.concatenate([result, shapes[:, :, None]], axis=2)


def _telling(points: Sequence[Point]) -> list[Point]:
    if len(points) <= MAX_POINTS:
        return list(points)
    near = sorted(points, key=lambda p: (p.distance, p.value))
    fastest = near[: MAX_POINTS // 2]
    chosen = set(map(id, fastest))
    return fastest + [p for p in reversed(points) if id(p) not in chosen][: MAX_POINTS - len(fastest)]


def _choices(candidate: Candidate) -> list[tuple[str, Value]]:
    strategy = candidate.strategy
    own = [(f"{strategy}.{name}", value) for name, value in candidate.params]
    return [("", strategy), *own, *((f"{strategy}:{stage}", str(made)) for stage, made in candidate.kernel_options)]


def _columns(candidates: Iterable[Candidate]) -> dict[str, tuple[int, dict[Value, float], bool]]:
    """Of each choice: its column, the rank of each value, and whether they have an order. The strategy first."""
    values: dict[str, set[Value]] = {"": set()}
    for candidate in candidates:
        for name, value in _choices(candidate):
            values.setdefault(name, set()).add(value)
    result = {}
    for at, (name, seen) in enumerate(values.items()):
        ordered = all(isinstance(v, int) and not isinstance(v, bool) for v in seen)
        ranks = {v: float(rank) for rank, v in enumerate(sorted(seen, key=lambda v: v if ordered else str(v)))}
        result[name] = (at, ranks, ordered)
    return result
