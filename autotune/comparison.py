"""A whole network run several ways: captured by TinyJit, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from tinygrad import Tensor, TinyJit

from autotune.reference import Array
from autotune.statistics import median, paired_ratio
from autotune.winner import Interval

CAPTURE_CALLS = 3
"""TinyJit captures in the second call and runs what it captured from then on."""
Run = Callable[[], tuple[float, Array]]
"""One run: its seconds, and the output."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds per round and the last output of each way; the first way is what the others are compared with."""

    times_s: dict[str, list[float]] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        return next(iter(self.times_s))

    def median_s(self, way: str) -> float:
        return median(self.times_s[way])

    def ratio(self, way: str, over: str | None = None) -> Interval:
        """Below 1 is faster, paired over the rounds."""
        return paired_ratio(self.times_s[way], self.times_s[over or self.baseline]).ratio

    def difference(self, way: str) -> float:
        """Largest difference of the outputs, relative to the baseline's largest element."""
        expected = self.outputs[self.baseline]
        scale = float(np.abs(expected).max()) or 1.0
        return float(np.abs(self.outputs[way] - expected).max()) / scale


def captured(build: Callable[[], Tensor], way: AbstractContextManager[object]) -> Run:
    """`build`, scheduled and captured inside `way`."""
    jit = TinyJit(lambda: build().realize())
    with way:
        for _ in range(CAPTURE_CALLS):
            jit().numpy()

    def run() -> tuple[float, Array]:
        started = time.perf_counter()
        output = jit().numpy()
        return time.perf_counter() - started, output

    return run


def compare(runs: Mapping[str, Run], rounds: int) -> Comparison:
    """Every way once per round, in turns that rotate."""
    result = Comparison({name: [] for name in runs})
    names = list(runs)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in [*names[shift:], *names[:shift]]:
            seconds, result.outputs[name] = runs[name]()
            result.times_s[name].append(seconds)
    return result
