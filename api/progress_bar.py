"""The bar that a search fills, on stderr and only where it is a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from api.console import Console
from api.text import shorten
from api.time_left import key_time_left_s
from api.units import fraction, span
from autotune.job import Budget
from strategies.candidate import Candidate

BAR = 16
FIXED = 2 + BAR + 1 + 4 + 1 + 7 + 2
"""Columns that the spinner, the bar, the percentage, the time and what separates them take."""


class TuneBar:
    """A context manager; `show` takes the search's progress as JSON, from this process or from a service."""

    def __init__(self, console: Console, title: str) -> None:
        room = max(0, console.progress.width - FIXED)
        title = shorten(title, max(room // 2, 1))
        self._room = max(room - len(title), 1)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(BAR),
            TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=console.progress, transient=True, disable=not console.interactive,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=1.0, said="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, progress: Mapping[str, Any]) -> None:
        """What the search says now."""
        left = time_left(progress)
        said = ", ".join(filter(None, [f"{left} left" if left else "", describe(progress)]))
        self._bar.update(self._task, completed=fraction(progress), said=shorten(said, self._room))


def time_left(progress: Mapping[str, Any]) -> str:
    """`40 s` until the budget is used, as far as the progress says; empty where it does not."""
    budget = progress.get("budget")
    if not isinstance(budget, Mapping) or progress.get("phase") == "final":
        return ""
    left_s = key_time_left_s(
        Budget.from_json(budget), float(progress.get("used_s", 0.0)), int(progress.get("trials", 0))
    )
    return "" if left_s is None else span(left_s)


def describe(progress: Mapping[str, Any]) -> str:
    """`final run, best four_buffer 0.52, 12 candidates`: what matters most first, for who has to cut."""
    if "waiting_for" in progress:
        return str(progress["waiting_for"])
    parts = ["final run"] if progress.get("phase") == "final" else []
    if progress.get("best") and isinstance(progress.get("ratio"), int | float):
        parts.append(f"best {Candidate.from_json(progress['best']).strategy} {progress['ratio']:.2f}")
    if progress.get("trials"):
        parts.append(f"{progress['trials']} candidate{'' if progress['trials'] == 1 else 's'}")
    return ", ".join(parts)
