"""A measured subspace kept as a file, so that searches can be compared without the device: see bench/record.py."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.measurement import Status
from autotune.option_search import FAILED, Options, one_step
from autotune.space import Space
from strategies.candidate import Candidate, KernelOptions, Value
from strategies.key import ConvKey
from strategies.parameter import Parameter, param, parameters_of
from strategies.registry import Strategy, get_strategy

TILES: Mapping[str, Sequence[Value]] = {"tile": (2, 4)}
GRID: Mapping[str, Mapping[str, Sequence[Value]]] = {
    "blocked": {
        "tile": (2, 4), "cout_block": (4, 8, 16), "tile_block": (4, 8, 16), "channel_block": (1, 2), "xhat": ("GTCAt",),
        "ghat": ("AGOoC", "AGOCo", "GOACo"), "mhat": ("GOTAot", "GOTAto"), "product": ("AGTO", "AGOT", "GOTA"),
        "vectors": ("tinygrad", "compiler"), "kernels": ("hand",), "cores": ("one", "all"), "output": ("auto",),
        "xhat_by": ("element",), "ghat_by": ("element",),  # what was recorded is of before there were lanes
    },
    "im2col": {
        "cout_block": (4, 8, 16), "window_block": (8, 16, 32), "columns": ("staged",), "weight": ("inline", "staged"),
        "product": ("GTO",), "sums": ("GOoTt", "GOTot"), "vectors": ("compiler",), "cores": ("one", "all"),
    },
    "four_buffer": TILES, "hybrid_grid": TILES, "deferred_mhat": TILES, "inline_transforms": TILES,
    "single_fused": {"tile": (2,)},
}  # fmt: skip
"""What is recorded of a strategy's parameters, others at their defaults; other strategies with all of their values."""
LATER: Mapping[str, Value] = {"channel_block": 2, "ghat": "GOACo", "product": "GOTA"}
"""Of these the structures that have one are recorded after all others: there are many."""

MENU = (10, 8, 2)
"""How many sets of options are recorded for the kernel that takes most of a candidate's time and has any to choose
from, for the second, and so on."""
MENU_ALONE = 40
"""The same where a candidate is one kernel."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate of one shape: its time over the anchor's (None if it has none), the seconds that a search would
    have spent on it (its kernels' compilation, shared or not, and the rest), what program it came out as, and how long
    each of its kernels takes alone, over the anchor's time."""

    status: str
    ratio: float | None
    compile_s: float
    other_s: float
    program: str
    kernels: tuple[float, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status == Status.OK


@dataclass(frozen=True, slots=True)
class Menu:
    """The options recorded for one kernel of a structure, first what it has by default; each one's seconds alone on the
    device, what trying one took, its compilation included, and which share of the structure's time the kernel takes
    with its default."""

    axes: str
    options: tuple[Options, ...]
    seconds: tuple[float, ...]
    try_s: float
    share: float

    def to_json(self) -> list[Any]:
        return [self.axes, self.options, self.seconds, self.try_s, self.share]

    @classmethod
    def from_json(cls, data: list[Any]) -> Menu:
        axes, options, seconds, try_s, share = data
        whole = KernelOptions.from_json({"axes": axes, "options": []})
        made = (KernelOptions.from_json({"axes": axes, "options": list(o)}).options for o in options)
        return cls(whole.axes, tuple(made), tuple(seconds), try_s, share)

    def gain(self, chosen: int) -> float:
        """How much of the structure's time is saved by these options instead of the default; negative if it is lost."""
        return self.share * (1 - self.seconds[chosen] / self.seconds[0])


Menus = Mapping[str, Menu]
"""By the kernel's role."""


@dataclass(slots=True)
class Recording:
    """`structures` are candidates without kernel options. `menus[shape][structure]`, both by number, has the options
    recorded for the fastest of them; `trials[shape]` what was measured, each as a whole. `composed` gives the other
    combinations of a structure's options: kernels run one after the other, so that what options save on each alone adds
    up. Some combinations are measured all the same, which shows how far that is true. `beam` holds, by the
    shape's number, what BEAM=2 came to on the better of tinygrad's own lowerings, over the anchor, and the seconds that
    it searched.

    The anchor is one structure of all shapes that runs in the rounds of everything that is timed. Where many processes
    share a machine, `direct` is slowed down otherwise than what is measured, and by another factor each time."""

    machine: dict[str, Any]
    shapes: list[tuple[int, int, int]]
    structures: list[Candidate]
    menus: list[dict[int, Menus]] = field(default_factory=list)
    trials: list[dict[Candidate, Trial]] = field(default_factory=list)
    beam: dict[int, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def empty(
        cls, machine: dict[str, Any], shapes: Sequence[tuple[int, int, int]], structures: Sequence[Candidate]
    ) -> Recording:
        return cls(machine, list(shapes), list(structures), [{} for _ in shapes], [{} for _ in shapes])

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Raises OSError, ValueError."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head, *rows = map(json.loads, file)
        shapes = [tuple(s) for s in head["shapes"]]
        recording = cls.empty(head["machine"], shapes, [_completed(Candidate.from_json(c)) for c in head["structures"]])
        recording.beam = {int(shape): tuple(found) for shape, found in head["beam"].items()}
        for shape, structure, menus in head["menus"]:
            recording.menus[shape][structure] = {role: Menu.from_json(menu) for role, menu in menus.items()}
        for shape, structure, chosen, *values, kernels in rows:
            menus = recording.menus[shape].get(structure, {})
            candidate = with_chosen(recording.structures[structure], menus, chosen)
            recording.trials[shape][candidate] = Trial(*values, kernels=tuple(kernels))
        return recording

    def write(self, path: Path) -> None:
        menus = [
            [shape, structure, {role: menu.to_json() for role, menu in made.items()}]
            for shape, all_menus in enumerate(self.menus) for structure, made in all_menus.items()
        ]  # fmt: skip
        head = {
            "machine": self.machine, "shapes": self.shapes, "structures": [c.to_json() for c in self.structures],
            "beam": self.beam, "menus": menus,
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with gzip.open(new, "wt", encoding="utf-8") as file:
            for row in [head, *self._rows()]:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
        new.replace(path)

    @property
    def anchor(self) -> Candidate:
        """The first preset of `blocked`."""
        return next(candidate for candidate in self.structures if candidate.strategy == "blocked")

    def structured(self, shape: int) -> dict[int, Trial]:
        """What was measured without options, by the structure's number."""
        known = self.trials[shape]
        return {number: known[c] for number, c in enumerate(self.structures) if c in known}

    def combined(self, shape: int, structure: int) -> list[Candidate]:
        """A structure's candidates with options, all combinations of its menus; the defaults alone are not among them:
        that is the structure itself."""
        menus = self.menus[shape][structure]
        choices = itertools.product(*(range(len(menu.options)) for menu in menus.values()))
        return [with_chosen(self.structures[structure], menus, chosen) for chosen in choices if any(chosen)]

    def composed(self, shape: int) -> dict[Candidate, Trial]:
        """What was not measured as a whole, but each of its kernels alone."""
        known = self.trials[shape]
        return {
            candidate: made for structure in self.menus[shape] for candidate in self.combined(shape, structure)
            if candidate not in known and (made := self._summed(shape, structure, candidate)) is not None
        }  # fmt: skip

    def compose(self, shape: int, candidate: Candidate) -> Trial | None:
        """The structure's trial with what the options save. None where the structure itself has no time."""
        return self._summed(shape, self.structures.index(candidate.structure), candidate)

    def _summed(self, shape: int, structure: int, candidate: Candidate) -> Trial | None:
        whole, menus = self.trials[shape].get(self.structures[structure]), self.menus[shape][structure]
        if whole is None or not whole.ok or not whole.ratio:
            return None
        chosen = zip(menus.values(), chosen_of(candidate, menus), strict=True)
        ratio = whole.ratio * (1 - sum(menu.gain(at) for menu, at in chosen))
        return replace(whole, ratio=round(ratio, 4), program=candidate.digest[:8], kernels=())

    def _rows(self) -> Iterator[list[Any]]:
        numbers = {candidate: number for number, candidate in enumerate(self.structures)}
        for shape, trials in enumerate(self.trials):
            for candidate, trial in trials.items():
                structure = numbers[candidate.structure]
                chosen = chosen_of(candidate, self.menus[shape].get(structure, {}))
                *values, kernels = dataclasses.astuple(trial)
                yield [shape, structure, chosen, *values, list(kernels)]


def with_chosen(structure: Candidate, menus: Menus, chosen: Sequence[int]) -> Candidate:
    """The structure with the options of each kernel's menu; without those that are its default."""
    options = {
        role: KernelOptions(axes=menu.axes, options=menu.options[at])
        for (role, menu), at in zip(menus.items(), chosen, strict=bool(chosen)) if at
    }  # fmt: skip
    return replace(structure, kernel_options=tuple(sorted(options.items())))


def chosen_of(candidate: Candidate, menus: Menus) -> list[int]:
    """The inverse; nothing for a candidate without options."""
    made = dict(candidate.kernel_options)
    return [menu.options.index(made[r].options) if r in made else 0 for r, menu in menus.items()] if made else []


def menu_of(axes: str, default: Options, times: Mapping[Options, float], most: int, try_s: float, share: float) -> Menu:
    """Of what a search over options tried on a kernel: none at all, where it begins too, its way from the default to
    the best, and then what it tried beside that way, in the order in which it did. Failures are left out, and what no
    step leads to."""
    fine = {options: seconds for options, seconds in times.items() if seconds < FAILED}
    way, before = [default], {default: default}
    for at in way:
        for options in fine:
            if options not in before and one_step(at, options):
                before[options] = at
                way.append(options)
    chosen, at = [default], min(before, key=fine.__getitem__)
    while at != default:
        chosen.insert(1, at)
        at = before[at]
    beside = (o for o in fine if o in before and before[o] in chosen)
    without = [()] if () in fine else []
    chosen = list(dict.fromkeys([default, *without, *chosen, *beside]))[: max(most, 1)]
    return Menu(axes, tuple(chosen), tuple(round(fine[o], 9) for o in chosen), round(try_s, 3), round(share, 4))


def subspace(key: ConvKey) -> Space:
    """The space of a key, its strategies' parameters cut down to GRID."""
    return Space(tuple(_cut(item, key) for item in Space.of(key).strategies))


def _completed(structure: Candidate) -> Candidate:
    """With the defaults of what was no parameter yet when it was recorded."""
    return get_strategy(structure.strategy).candidate(dict(structure.params))


def everything(space: Space) -> list[Candidate]:
    """All of its candidates, each once."""
    return list(dict.fromkeys(itertools.chain(space.presets, space)))


def is_common(structure: Candidate) -> bool:
    """Whether it is among those that are recorded first."""
    return structure.strategy != "blocked" or all(dict(structure.params)[name] != v for name, v in LATER.items())


def _cut(item: Strategy, key: ConvKey) -> Strategy:
    grid = GRID.get(item.name)
    if grid is None:
        return item
    if key.device.cores == 1 and "cores" in grid:  # there is nothing to divide
        grid = {**grid, "cores": ("one",)}
    allowed = {p.name: grid.get(p.name, (p.default,)) for p in parameters_of(item.params)}
    fields = [(p.name, type(p.default), _narrowed(p, allowed[p.name])) for p in parameters_of(item.params)]
    narrowed = dataclasses.make_dataclass(item.params.__name__, fields, frozen=True, kw_only=True)
    only = {name: values[0] for name, values in allowed.items() if len(values) == 1 and name in grid}
    presets = (dict(candidate.params) for candidate in item.good(key))
    declared = ({**params, **{name: only[name] for name in params.keys() & only}} for params in presets)
    good = [values for values in declared if all(v in allowed[name] for name, v in values.items())]
    narrowed.presets = tuple(good)
    return dataclasses.replace(item, params=narrowed)


def _narrowed(parameter: Parameter, values: Sequence[Value]) -> Any:
    default = parameter.default if parameter.default in values else values[0]
    return param(default, tuple(values), parameter.about, parameter.when)
