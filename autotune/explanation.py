"""Why a winner won: its kernels against the roofline, beside the default's, and who came second by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.inspection import Inspection, ProgramCost, inspect
from autotune.measurement import Measurement
from autotune.peak_cache import PeakCache
from autotune.roofline import Floor, Peak, convolution_floor
from autotune.statistics import paired_ratio
from autotune.store import Store
from autotune.winner import Interval, Winner
from strategies.shape import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """The second of the final. `ratio` is its time over the winner's, above 1: slower; the interval is None where
    only the medians of the final are known."""

    name: str
    time_s: float
    ratio: float
    interval: Interval | None

    def to_json(self) -> JsonObject:
        return {
            "name": self.name, "time_s": self.time_s, "ratio": self.ratio,
            "interval": self.interval.to_json() if self.interval is not None else None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A decision, looked into anew: `winner` and `default` compiled and timed side by side just now (`default` is
    None where it is the winner), `floor` the least time for the convolution, however it is lowered, at `peak`."""

    decision: Winner
    winner: ProgramCost
    default: ProgramCost | None
    floor: Floor
    peak: Peak
    runner_up: RunnerUp | None

    @property
    def share(self) -> float:
        """The convolution's floor over the winner's time; 1 is as fast as the device allows."""
        return self.floor.seconds / self.winner.time_s.median

    def to_json(self) -> JsonObject:
        return {
            "digest": self.decision.key.digest, "name": str(self.decision.key), "winner": self.winner.to_json(),
            "default": self.default.to_json() if self.default is not None else None, "floor": self.floor.to_json(),
            "share": self.share, "peak": self.peak.to_json(),
            "runner_up": self.runner_up.to_json() if self.runner_up is not None else None,
            "decided": {"time_s": self.decision.time_s.to_json(), "ratio": self.decision.ratio.to_json()},
        }  # fmt: skip


def explain(
    store: Store,
    decision: Winner,
    *,
    peaks: PeakCache,
    source: bool = False,
    calibrate: bool = False,
    on_wait: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    look: Callable[..., Inspection] = inspect,
) -> Explanation:
    """Compile and time the winner and its default on the winner's device, some ten seconds.

    `source` adds the kernels' sources, `calibrate` measures the device's peak again. Raises TaskError,
    DeviceUnavailableError, DeviceBusyError, RunStoppedError.
    """
    key = decision.key
    known = None if calibrate else peaks.get(key.device)
    candidates = list(dict.fromkeys((decision.candidate, decision.default)))
    seen = look(key, candidates, peak=known, source=source, on_wait=on_wait, should_stop=should_stop)
    peak = peaks.keep(key.device, seen.peak) if known is None else known
    return Explanation(
        decision=decision, winner=seen.programs[0], default=seen.programs[1] if len(candidates) > 1 else None,
        floor=convolution_floor(key.shape, peak), peak=peak, runner_up=runner_up(store, decision),
    )  # fmt: skip


def runner_up(store: Store, decision: Winner) -> RunnerUp | None:
    """From the final that made the decision: with an interval while its measurements are in the store."""
    final = _final(store, decision)
    best = next((m for m in final.values() if m.candidate == decision.candidate), None)
    ratios = {
        name: _over(m, best) for name, m in final.items()
        if best is not None and m.candidate != decision.candidate
    }  # fmt: skip
    if ratios:
        name = min(ratios, key=lambda name: ratios[name].median)
        interval = ratios[name]
        return RunnerUp(
            name=name, time_s=decision.time_s.median * interval.median, ratio=interval.median, interval=interval
        )
    mine = {str(decision.candidate)} | (
        {decision.default.strategy} if decision.candidate == decision.default else set()
    )
    medians = {name: float(seconds) for name, seconds in decision.times_s.items() if name not in mine}
    if not medians:
        return None
    name = min(medians, key=lambda name: medians[name])
    return RunnerUp(name=name, time_s=medians[name], ratio=medians[name] / decision.time_s.median, interval=None)


def _final(store: Store, decision: Winner) -> dict[str, Measurement]:
    """The measurements that made the decision, by the contestant's name, as far as the store has them."""
    attempts = decision.provenance.get("attempts")
    if not isinstance(attempts, dict):
        return {}
    by_attempt = {m.attempt: m for m in store.measurements(decision.key)}
    found = {name: by_attempt.get(str(attempt)) for name, attempt in attempts.items()}
    return {name: m for name, m in found.items() if m is not None and m.times_s}


def _over(measurement: Measurement, best: Measurement) -> Interval:
    """Paired over the rounds, each relative to the yardstick: the two may come from different requests."""
    mine, theirs = (
        [t / yard for t, yard in zip(m.times_s, m.yardstick_times_s, strict=True)] for m in (measurement, best)
    )
    rounds = min(len(mine), len(theirs))
    return paired_ratio(mine[:rounds], theirs[:rounds]).ratio
