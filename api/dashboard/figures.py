"""What charts show, as plain JSON: `api/static/js/charts.js` draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from api.dashboard.words import colour, headline, parameters
from autotune.measurement import Measurement
from autotune.statistics import median, median_ratio
from autotune.winner import Winner
from strategies.shape import JsonObject


def timed(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Those that were verified and have times."""
    return [m for m in measurements if m.ok and m.times_s]


def by_strategy(measurements: Sequence[Measurement], winner: Winner | None) -> JsonObject:
    """Every timed candidate as a point: strategy against time, the fastest strategy on top."""
    points: list[JsonObject] = [
        {"strategy": m.candidate.strategy, "time": median(m.times_s), "params": parameters(m.candidate),
         "won": winner is not None and m.candidate == winner.candidate}
        for m in timed(measurements)
    ]  # fmt: skip
    best: dict[str, float] = {}
    for point in points:
        best[point["strategy"]] = min(point["time"], best.get(point["strategy"], math.inf))
    names = sorted(best, key=lambda name: -best[name])
    default = None if winner is None else {"name": winner.default.strategy, "time": winner.default_time_s.median}
    return {"strategies": _coloured(names), "points": points, "default": default}


def search_progress(measurements: Sequence[Measurement]) -> JsonObject:
    """Each measurement's ratio to `direct` in the order of the search, and the best so far."""
    best, steps = math.inf, list[list[float]]()
    points: list[JsonObject] = []
    for number, m in enumerate(timed(measurements), 1):
        if len(m.times_s) != len(m.yardstick_times_s):
            continue
        ratio = median_ratio(m.times_s, m.yardstick_times_s)
        best = min(best, ratio)
        steps.append([number, best])
        points.append({"number": number, "ratio": ratio, "strategy": m.candidate.strategy,
                       "params": parameters(m.candidate)})  # fmt: skip
    return {"points": points, "best": steps, "strategies": _coloured(sorted({p["strategy"] for p in points}))}


def by_parameter(measurements: Sequence[Measurement], strategy: str) -> JsonObject | None:
    """One line per candidate of a strategy across its parameters to its time; None where nothing was varied."""
    chosen = [m for m in timed(measurements) if m.candidate.strategy == strategy]
    values: dict[str, list[str]] = {}
    for m in chosen:
        for name, value in m.candidate.params:
            values.setdefault(name, []).append(str(value))
    names = [name for name, said in values.items() if len(set(said)) > 1]
    if not names:
        return None
    axes = [{"name": name, "values": sorted(set(values[name]), key=_order)} for name in names]
    rows = [
        [*(str(dict(m.candidate.params).get(name, "")) for name in names), median(m.times_s)]
        for m in sorted(chosen, key=lambda m: -median(m.times_s))
        if all(name in dict(m.candidate.params) for name in names)
    ]
    return {"axes": axes, "rows": rows, "colour": colour(strategy)} if rows else None


def importance(shares: Mapping[str, float], strategy: str) -> JsonObject:
    """Parameters by what they explain, the most important on top."""
    named = [[name, share] for name, share in reversed(list(shares.items()))]
    return {"shares": named, "colour": colour(strategy)}


def kernel_times(measurement: Measurement) -> JsonObject:
    """The kernels of one candidate in execution order; None where the device does not tell them apart."""
    return {
        "kernels": [{"name": k.name, "time": k.median_s} for k in measurement.kernels],
        "colour": colour(measurement.candidate.strategy),
    }


def pairs(rows: Sequence[tuple[Winner, Winner]], names: tuple[str, str]) -> JsonObject:
    """Two winners of the same convolution side by side."""
    return {
        "names": list(names),
        "rows": [
            {"shape": headline(a.key.shape), "times": [a.time_s.median, b.time_s.median],
             "colours": [colour(a.candidate.strategy), colour(b.candidate.strategy)],
             "strategies": [a.candidate.strategy, b.candidate.strategy]}
            for a, b in rows
        ],
    }  # fmt: skip


def _coloured(names: Sequence[str]) -> list[JsonObject]:
    return [{"name": name, "colour": colour(name)} for name in names]


def _order(text: str) -> tuple[int, float, str]:
    return (0, float(text), "") if text.lstrip("-").isdigit() else (1, 0.0, text)
