"""A device in memory: times are a function of the candidate plus noise, and a clock that measuring moves on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from autotune.measurement import Measurement, Status
from autotune.runner import TRIED, Request
from autotune.space import Space
from strategies.candidate import Candidate, KernelOptions, Value
from strategies.key import ConvKey, DeviceSpec
from strategies.parameter import param
from strategies.registry import Strategy
from strategies.shape import ConvShape

KEY = ConvKey(
    shape=ConvShape.of((1, 64, 56, 56), (64, 64, 3, 3), padding=1), device=DeviceSpec(device="CPU", os="then")
)


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class Staged:
    tile: int = param(2, (2, 4, 6))
    layout: str = param("planes", ("planes", "panels", "nested"))
    blocked: bool = param(False, (False, True))
    cout_block: int = param(4, (1, 2, 4, 8, 16), when=lambda chosen: bool(chosen["blocked"]))
    tile_block: int = param(4, (1, 2, 4, 8, 16), when=lambda chosen: bool(chosen["blocked"]))


@dataclass(frozen=True)
class Fused:
    tile: int = param(2, (2, 4, 6))
    unroll: int = param(1, (1, 2, 4))


def made(name: str, params: type, applies: bool = True) -> Strategy:
    return Strategy(name=name, params=params, lower=None, applies=lambda key: applies, about="")


OPTIONS = KernelOptions(axes="L64", options=(("UPCAST", 0, 4),))

SPACE = Space((
    made("direct", Nothing), made("fused", Fused), made("staged", Staged), made("tensor_winograd", Nothing),
))  # fmt: skip


def time_of(candidate: Candidate) -> float:
    """Seconds: direct 7 ms, tensor_winograd 2 ms, the best staged one 1 ms. 243 candidates."""
    p: Mapping[str, Value] = dict(candidate.params)
    if candidate.strategy == "direct":
        return 7e-3
    if candidate.strategy == "tensor_winograd":
        return 2e-3
    if candidate.strategy == "fused":
        return 20e-3 / int(p["unroll"]) * {2: 1.0, 4: 1.5, 6: 2.0}[int(p["tile"])]
    time_s = 1e-3 * {2: 1.5, 4: 1.0, 6: 1.3}[int(p["tile"])]
    time_s *= {"planes": 1.7, "panels": 1.0, "nested": 1.3}[str(p["layout"])]
    if not p["blocked"]:
        return 4 * time_s
    distance = abs(np.log2(int(p["cout_block"])) - 3) + abs(np.log2(int(p["tile_block"])) - 4)
    return float(time_s * (1 + 0.25 * distance))


def rugged_time_of(candidate: Candidate) -> float:
    """As `time_of`, with up to 30% more by an accident of the candidate: no parameter alone explains it."""
    accident = int(candidate.digest[:6], 16) / 2**24 if candidate.strategy == "staged" else 0.0
    return time_of(candidate) * (1 + 0.3 * accident)


def best_time_s(space: Space = SPACE, time_of: Callable[[Candidate], float] = time_of) -> float:
    return min(map(time_of, [*space, *space.presets]))


@dataclass
class SimulatedRunner:
    """A Runner. `noise` is relative, per round; `broken` maps candidates to how they fail; `program` gives
    fingerprints; measuring a candidate moves the clock by `cost_s`, and searching for options of its kernels by the
    time allowed: with them it takes `gain` of the time, if that is less."""

    time_of: Callable[[Candidate], float] = time_of
    noise: float = 0.02
    seed: int = 0
    cost_s: float = 1.0
    gain: float = 1.0
    at_once: int = 1
    broken: Mapping[str, Status] = field(default_factory=dict)
    program: Callable[[Candidate], str] = lambda candidate: ""
    now: float = 1000.0
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    @property
    def measured(self) -> list[Candidate]:
        """Candidates of the search (each in a request of its own), in order."""
        return [r.candidates[0] for r in self.requests if len(r.candidates) == 1 and r.options is None]

    def measure(self, request: Request, **_: Any) -> list[Measurement]:
        self.requests.append(request)
        drift = np.exp(0.05 * np.cumsum(self._rng.normal(0, 0.2, request.rounds)))
        yardstick = self._times(Candidate.of("direct"), drift)
        return [self._one(request, candidate, drift, yardstick) for candidate in request.candidates]

    def close(self) -> None:
        pass

    def _one(self, request: Request, candidate: Candidate, drift: np.ndarray, yardstick: np.ndarray) -> Measurement:
        cost_s = self.cost_s + ((request.options.seconds or 0.0) if request.options is not None else 0.0)
        tried = {TRIED: request.options.trials} if request.options is not None and request.options.trials else {}
        self.now += cost_s
        if request.options is not None and self.gain < 1:
            candidate = replace(candidate, kernel_options=(("product", OPTIONS),))
        measurement = Measurement(
            key=request.key, candidate=candidate, status=self.broken.get(candidate.strategy, Status.OK),
            fingerprint=self.program(candidate), attempt=uuid.uuid4().hex, measured_at=self.now,
            conditions={"cost_s": cost_s, "host": "simulated", **tried},
        )  # fmt: skip
        if not measurement.ok:
            return replace(measurement, reason="as told")
        mine = yardstick if candidate == Candidate.of("direct") else self._times(candidate, drift)
        return replace(measurement, times_s=tuple(mine.tolist()), yardstick_times_s=tuple(yardstick.tolist()))

    def _times(self, candidate: Candidate, drift: np.ndarray) -> np.ndarray:
        spikes = np.where(self._rng.random(drift.size) < 0.05, 2.0, 1.0)
        gain = self.gain if candidate.kernel_options else 1.0
        return gain * self.time_of(candidate) * drift * spikes * self._rng.lognormal(0, self.noise, drift.size)
