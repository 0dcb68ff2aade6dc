"""Shapes, lowerings, states and times as the pages spell them."""

from __future__ import annotations

import json
import math
from typing import Any

from api.dashboard.html import Html, join, tag
from api.dashboard.layout import page_link
from api.units import ratio_text
from autotune.winner import Interval, Winner, WinnerState
from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.shape import ConvShape

BAR_WIDTH, BAR_HEIGHT = 108, 16
WIDEST_RATIO = 1.25
"""The right end of the drawn bar. The better default stands at 1."""

COLOURS = {
    "direct": 0, "tensor_winograd": 1, "blocked": 2, "hybrid_grid": 3, "four_buffer": 4, "deferred_mhat": 5,
    "inline_transforms": 6, "single_fused": 7, "shared_memory": 8, "tensor_cores": 10, "im2col": 9,
    "implicit_gemm": 12, "tensor_cores_tf32": 13, "cache_blocked": 14,
}  # fmt: skip
"""Which colour of the palette in dashboard.css a strategy has; others take one by their name."""
PALETTE = 15

AGES = (("d", 86400), ("h", 3600), ("min", 60))


def colour(strategy: str) -> int:
    """The strategy's place in the palette, the same on every page and after every restart."""
    rest = [number for number in range(PALETTE) if number not in COLOURS.values()]
    return COLOURS.get(strategy, rest[sum(strategy.encode()) % len(rest)])


def headline(shape: ConvShape) -> str:
    """`64 → 64 · 56×56 · 3×3`: what one says first about a convolution."""
    parts = [f"{shape.cin} → {shape.cout}", "×".join(map(str, shape.spatial)), "×".join(map(str, shape.kernel))]
    if shape.batch != 1:
        parts.append(f"batch {shape.batch}")
    if set(shape.stride) != {1}:
        parts.append(f"stride {','.join(map(str, sorted(set(shape.stride))))}")
    if shape.groups != 1:
        parts.append(f"groups {shape.groups}")
    return " · ".join(parts) if shape.dtype == "float32" else " · ".join([*parts, shape.dtype])


def shape_href(key: ConvKey) -> str:
    """The page of one shape."""
    return f"/shape/{key.digest}"


def shape_cell(key: ConvKey) -> Html:
    """Its headline as a link, and below it how tinygrad prints it."""
    promised = [name for name in ("allow_tf32", "frozen_weights") if getattr(key.policy, name)]
    notes = ", ".join([f"{name}={value}" for name, value in key.device.flags] + promised)
    return join([
        page_link(headline(key.shape), shape_href(key), class_="shape"),
        tag("span", str(key.shape), class_="sub"),
        tag("span", notes, class_="sub") if notes else None,
    ])  # fmt: skip


def strategy_mark(name: str) -> Html:
    """A strategy's name behind a dot in its colour."""
    return tag("span", tag("i", class_=f"dot c{colour(name)}", aria_hidden="true"), name, class_="strategy")


def parameters(candidate: Candidate) -> str:
    """`tile 4, cout_block 8`: the tile first, as what tells most where there is little room."""
    params = sorted(candidate.params, key=lambda pair: pair[0] != "tile")
    return ", ".join(f"{name} {value}" for name, value in params)


def state_mark(state: str) -> Html:
    """A winner's or a job's state."""
    return tag("span", state, class_=f"state {state}")


def stale_mark(winner: Winner, stale: frozenset[str]) -> Html | None:
    """Beside the state of a winner that was measured in other surroundings."""
    if winner.key.digest not in stale:
        return None
    why = "measured under another driver, system, compiler or tinygrad than there is now: served as provisional"
    return tag("span", "stale", class_="stale", title=why)


def age(seconds: float) -> str:
    """`3 d`, `2 h`, `5 min`, `now`."""
    for unit, size in AGES:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"


def decided(winner: Winner, now: float) -> str:
    """How long ago it was decided: `3 d`; nobody decided a guess."""
    return "not measured" if winner.state is WinnerState.GUESS else age(now - winner.decided_at)


def ratio_bar(ratio: Interval) -> Html:
    """The ratio as a bar, its interval as a whisker, the better default as a line at 1; and as text."""
    text = ratio_text(ratio)
    if not all(math.isfinite(value) for value in (ratio.median, ratio.low, ratio.high)):
        return tag("span", text)
    end, low, high = _x(1), _x(ratio.low), _x(ratio.high)
    drawn = tag(
        "svg",
        tag("rect", class_="track", y=4, width=f"{end:.1f}", height=BAR_HEIGHT - 8, rx=2),
        tag("rect", class_="faster" if ratio.high < 1 else "same", y=4, width=f"{_x(ratio.median):.1f}",
            height=BAR_HEIGHT - 8, rx=2),
        tag("path", class_="default", d=f"M{end:.1f} 1V{BAR_HEIGHT - 1}"),
        tag("path", class_="whisker", d=f"M{low:.1f} 4v8m0-4H{high:.1f}m0-4v8"),
        class_="bar", width=BAR_WIDTH, height=BAR_HEIGHT, role="img", aria_label=text,
    )  # fmt: skip
    median, _, interval = text.partition(" ")
    said = tag("span", interval.strip("()").replace("-", "–"), class_="sub") if ratio.low < ratio.high else None
    return join([tag("span", tag("b", median), drawn, class_="ratio"), said])


def finite_json(value: Any) -> str:
    """JSON for a script, compact."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def speedup(winner: Winner) -> str:
    """`1.92 times as fast`, or that the default stays."""
    if winner.candidate == winner.default:
        return "tinygrad's own is the fastest"
    return f"{1 / winner.ratio.median:.2f} times as fast as {winner.default.strategy}"


def _x(ratio: float) -> float:
    return max(0.0, min(ratio, WIDEST_RATIO)) / WIDEST_RATIO * BAR_WIDTH
