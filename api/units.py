"""Numbers as people read them, in the terminal and on the page alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.winner import Interval
from strategies.candidate import Candidate

MAX_AGE_S = 1000 * 365 * 86400.0


class AgeError(ValueError):
    """A length of time that is none."""


MINUTE_S, HOUR_S = 60.0, 3600.0


def parse_age(text: str) -> float:
    """Seconds of `45m`, `12h`, `90d`, `1y`. Raises AgeError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "y": 365 * 86400.0}
    try:
        age_s = float(text[:-1]) * units[text[-1:]]
        if 0 < age_s < MAX_AGE_S:
            return age_s
    except (KeyError, ValueError):
        pass
    raise AgeError(f"expected a length of time like 12h or 90d, found {text[:40]!r}: write one")


def duration(seconds: float) -> str:
    """`12.3 µs`, `4.56 ms`, `1.23 s`: three digits."""
    if not math.isfinite(seconds):
        return "unknown"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns"


def amount(value: float) -> str:
    """`57.8 M`, `1.75 G`: three digits and the decimal prefix, for a unit to follow."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_three_digits(value / size)} {prefix}"
    return f"{value:.0f} "


def share_text(share: float) -> str:
    """`48%`; below one percent, `0.4%`."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def span(seconds: float) -> str:
    """`12 s`, `4 min`, `1.5 h`: how long something takes, for a person who waits."""
    if seconds < MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < HOUR_S else f"{seconds / HOUR_S:.1f} h"


def ratio_text(ratio: Interval) -> str:
    """`0.521 (0.503-0.548)`: winner over the better default."""
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def lowering(candidate: Candidate) -> str:
    """`blocked(tile=4, cout_block=8)`: the tile first, as what tells most where there is little room."""
    params = sorted(candidate.params, key=lambda pair: pair[0] != "tile")
    return (
        f"{candidate.strategy}({', '.join(f'{name}={value}' for name, value in params)})"
        if params
        else candidate.strategy
    )


def fraction(progress: Mapping[str, Any]) -> float:
    """How far the search of the current key is, from 0 to 1, as its progress says; 0 if it does not."""
    said = progress.get("fraction", 0.0)
    return min(1.0, max(0.0, said)) if isinstance(said, int | float) and math.isfinite(said) else 0.0


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
