"""The bar that a search fills, on stderr and only where it is a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from api.console import Console
from api.units import fraction
from strategies.candidate import Candidate


class TuneBar:
    """A context manager; `show` takes the search's progress as JSON, from this process or from a service."""

    def __init__(self, console: Console, title: str) -> None:
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
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
        self._bar.update(self._task, completed=fraction(progress), said=describe(progress))


def describe(progress: Mapping[str, Any]) -> str:
    """`12 candidates, best four_buffer(tile=4) at 0.52 of direct`."""
    if "waiting_for" in progress:
        return str(progress["waiting_for"])
    parts = [f"{progress['trials']} candidates"] if progress.get("trials") else []
    if progress.get("best") and isinstance(progress.get("ratio"), int | float):
        parts.append(f"best {Candidate.from_json(progress['best'])} at {progress['ratio']:.2f} of direct")
    if progress.get("phase") == "final":
        parts.append("final run")
    return ", ".join(parts)
