"""A measured subspace kept as a file, so that searches can be compared without the device: see bench/record.py."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.measurement import Status
from autotune.space import Space
from strategies.candidate import Candidate, Value
from strategies.key import ConvKey
from strategies.parameter import Parameter, param, parameters_of
from strategies.registry import Strategy

GRID: Mapping[str, Mapping[str, Sequence[Value]]] = {
    "blocked": {
        "tile": (2, 4), "cout_block": (4, 8, 16), "tile_block": (8, 16), "channel_block": (1, 2),
        "xhat": ("GTCAt", "AGCTt"), "ghat": ("AGOoC", "GOACo"), "mhat": ("GOTAot", "AGOoTt"),
        "product": ("AGTO", "AGOT", "GTOA"), "vectors": ("tinygrad", "compiler"), "kernels": ("hand",),
        "output": ("auto",),
    },
}  # fmt: skip
"""What is recorded of a strategy's parameters, others at their defaults; other strategies with all of their values."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate of one shape: its time over direct's (None if it has none), the seconds that a search would have
    spent on it (its kernels' compilation, shared or not, and the rest), and what program it came out as."""

    status: str
    ratio: float | None
    compile_s: float
    other_s: float
    program: str

    @property
    def ok(self) -> bool:
        return self.status == Status.OK


@dataclass(slots=True)
class Recording:
    """`trials[shape][candidate]`, both by number. `beam` holds, by the shape's number, what BEAM=2 came to on the
    better of tinygrad's own lowerings, over direct without BEAM, and the seconds that it searched."""

    machine: dict[str, Any]
    shapes: list[tuple[int, int, int]]
    candidates: list[Candidate]
    trials: list[dict[int, Trial]] = field(default_factory=list)
    beam: dict[int, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Raises OSError, ValueError."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head, *rows = map(json.loads, file)
        recording = cls(
            machine=head["machine"], shapes=[tuple(s) for s in head["shapes"]],
            candidates=[Candidate.from_json(c) for c in head["candidates"]],
            beam={int(shape): tuple(found) for shape, found in head["beam"].items()},
        )  # fmt: skip
        recording.trials = [{} for _ in recording.shapes]
        for shape, candidate, *values in rows:
            recording.trials[shape][candidate] = Trial(*values)
        return recording

    def write(self, path: Path) -> None:
        head = {
            "machine": self.machine, "shapes": self.shapes, "candidates": [c.to_json() for c in self.candidates],
            "beam": self.beam,
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with gzip.open(new, "wt", encoding="utf-8") as file:
            for row in [head, *self._rows()]:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
        new.replace(path)

    def _rows(self) -> Iterator[list[Any]]:
        for shape, trials in enumerate(self.trials):
            for candidate, trial in sorted(trials.items()):
                yield [shape, candidate, *dataclasses.astuple(trial)]


def subspace(key: ConvKey, *, presets: bool = True) -> Space:
    """The space of a key, its strategies' parameters cut down to GRID, with or without what they declare as good."""
    return Space(tuple(_cut(item, key, presets) for item in Space.of(key).strategies))


def everything(space: Space) -> list[Candidate]:
    """All of its candidates, each once."""
    return list(dict.fromkeys(itertools.chain(space.presets, space)))


def _cut(item: Strategy, key: ConvKey, with_presets: bool) -> Strategy:
    grid = GRID.get(item.name)
    if grid is None:
        return item
    allowed = {p.name: grid.get(p.name, (p.default,)) for p in parameters_of(item.params)}
    fields = [(p.name, type(p.default), _narrowed(p, allowed[p.name])) for p in parameters_of(item.params)]
    narrowed = dataclasses.make_dataclass(item.params.__name__, fields, frozen=True, kw_only=True)
    declared = (dict(candidate.params) for candidate in item.good(key))
    good = [values for values in declared if all(v in allowed[name] for name, v in values.items())]
    if with_presets:
        narrowed.presets = tuple(good)
    return dataclasses.replace(item, params=narrowed)


def _narrowed(parameter: Parameter, values: Sequence[Value]) -> Any:
    default = parameter.default if parameter.default in values else values[0]
    return param(default, tuple(values), parameter.about, parameter.when)
