"""Winners as a picture: their ratios with intervals, in the terminal or as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from api.text import shorten
from api.units import duration, ratio_text
from autotune.winner import Interval, Winner

SUFFIXES = (".png", ".svg")
WIDEST = 1.25
"""The right end of a bar; the better default stands at 1."""
MIN_BAR, MAX_BAR = 12, 60
EIGHTHS = " ▏▎▍▌▋▊▉"
FASTER, SAME = "#1b83d1", "#98a2ae"


def ratio_chart(winners: Sequence[Winner], width: int) -> Table:
    """A bar per winner in `width` columns: the ratio filled, its interval beside it, `|` where the default stands."""
    several = len({winner.key.device.device for winner in winners}) > 1
    named = [str(winner.key if several else winner.key.shape) for winner in winners]
    names = [shorten(name, max(16, width // 3)) for name in named]
    room = width - max(map(len, names), default=0) - 27
    columns = max(MIN_BAR, min(MAX_BAR, room))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, justify in (("convolution", "left"), ("ratio to the better default", "left"), ("", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name, winner in zip(names, winners, strict=True):
        ratio = winner.ratio
        style = "green" if ratio.high < 1 else "dim"
        table.add_row(Text(name), Text(bar(ratio, columns), style=style), Text(ratio_text(ratio)))
    return table


def bar(ratio: Interval, columns: int) -> str:
    """The ratio in eighths of a column, up to WIDEST; `|` at 1 where the bar does not cover it."""
    share = min(max(ratio.median, 0.0), WIDEST) / WIDEST if math.isfinite(ratio.median) else 1.0
    eighths = round(share * columns * 8)
    text = ("█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(columns)
    default = round(columns / WIDEST) - 1
    return text if text[default] != " " else f"{text[:default]}|{text[default + 1 :]}"


def write_plot(winners: Sequence[Winner], path: str) -> None:
    """PNG or SVG, by the path's ending. Raises ImportError without matplotlib, OSError where it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.34 * len(winners)), layout="constrained")
    axes = figure.subplots()
    shown = list(reversed(winners))
    medians = [winner.ratio.median for winner in shown]
    below = [max(0.0, winner.ratio.median - winner.ratio.low) for winner in shown]
    above = [max(0.0, winner.ratio.high - winner.ratio.median) for winner in shown]
    colours = [FASTER if winner.ratio.high < 1 else SAME for winner in shown]
    at = range(len(shown))
    axes.barh(at, medians, xerr=(below, above), color=colours, height=0.62, error_kw={"elinewidth": 1, "capsize": 2})
    axes.set_yticks(at, [f"{winner.key.shape} on {winner.key.device.device}" for winner in shown], fontsize=8)
    axes.axvline(1.0, color="#58626f", linestyle="--", linewidth=1)
    axes.set_xlim(0, max(WIDEST, *medians) if medians else WIDEST)
    axes.set_xlabel("time over the better of tinygrad's own lowerings, 95% interval; below 1 is faster")
    for row, winner in zip(at, shown, strict=True):
        text = f"{winner.candidate.strategy}, {duration(winner.time_s.median)}"
        axes.text(0.012, row, text, va="center", fontsize=7, color="white")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def is_picture(path: str) -> bool:
    """Whether its ending is one that `write_plot` knows."""
    return Path(path).suffix.lower() in SUFFIXES
