"""What bench/record.py has left to measure, dealt out evenly over the shapes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from recording import Menus, Recording, Trial, is_common

from autotune.space import DEFAULTS
from strategies.candidate import Candidate

CHUNK = 8
PRESET_CHUNKS = 3
AHEAD = 12 * CHUNK
"""A slot stays with its shape until it is so many candidates ahead: another shape's reference takes seconds."""
UNIT = 64
"""How many candidates a structure's options are taken for until they are known."""
DECENT = 1.5
"""Of the structures this many times as slow as the fastest no search would look for options."""
FASTEST, FASTEST_AT_ONCE = 24, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Structures of one shape to be measured, or one whose kernels' options are to be searched and measured."""

    shape: int
    structures: Sequence[Candidate] = ()
    unit: int | None = None


@dataclass(slots=True, kw_only=True)
class Work:
    """Of every shape `structures` structures first, then the options of `units` of them, then the other structures;
    whose turn it is has the fewest candidates. From `again_s` before the deadline on the fastest are timed again. Its
    methods are for many threads."""

    recording: Recording
    shapes: Sequence[int]
    begun: float
    deadline_s: float
    again_s: float
    structures: int
    units: int
    wholes: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    _chunks: dict[int, list[list[Candidate]]] = field(default_factory=dict)
    _dealt: dict[int, int] = field(default_factory=dict)
    _units: dict[int, set[int]] = field(default_factory=dict)
    _again: dict[int, list[list[Candidate]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for shape in self.shapes:
            done = self.recording.trials[shape]
            rows = ([c for c in chunk if c not in done] for chunk in chunks(self.recording.structures))
            self._chunks[shape] = [row for row in rows if row]
            self._dealt[shape], self._units[shape] = len(done), set()

    def elapsed_s(self) -> float:
        return time.monotonic() - self.begun

    def is_over(self) -> bool:
        return self.elapsed_s() > self.deadline_s

    def is_again(self) -> bool:
        """Whether it is time to time the fastest again."""
        return self.elapsed_s() > self.deadline_s - self.again_s

    def next(self, former: int | None) -> Task | None:
        """The next for a slot, of its former shape if that is not far ahead of the others. None when it is time to time
        the fastest again, or nothing is left."""
        with self.lock:
            tasks = {shape: task for shape in self.shapes if (task := self._task(shape)) is not None}
            if self.is_again() or not tasks:
                return None
            least = min(tasks, key=self._dealt.__getitem__)
            stays = former in tasks and self._dealt[former] <= self._dealt[least] + AHEAD
            task = tasks[former if stays and former is not None else least]
            if task.unit is None:
                self._chunks[task.shape].pop(0)
            else:
                self._units[task.shape].add(task.unit)
            self._dealt[task.shape] += len(task.structures) if task.unit is None else UNIT
            return task

    def _task(self, shape: int) -> Task | None:
        rows, unit = self._chunks[shape], None
        known = sum(not c.kernel_options for c in self.recording.trials[shape])
        if known >= self.structures or not rows:
            unit = self._next_unit(shape)
        if unit is not None:
            return Task(shape=shape, unit=unit)
        return Task(shape=shape, structures=rows[0]) if rows else None

    def _next_unit(self, shape: int) -> int | None:
        """What an earlier run began with comes first; then the fastest, in turn with one by chance."""
        done = self._units[shape]
        fine = {n: t.ratio for n, t in self.recording.structured(shape).items() if t.ok and t.ratio}
        left = [n for n in fine if n not in done]
        if not left or len(done) >= self.units:
            return None
        begun = [n for n in left if n in self.recording.menus[shape]]
        if begun:
            return begun[0]
        if len(done) % 2 == 0:
            return min(left, key=fine.__getitem__)
        decent = [n for n in left if fine[n] <= DECENT * min(fine.values())]
        return random.Random(len(done)).choice(decent or left)

    def again(self, former: int | None) -> tuple[int, list[Candidate]] | None:
        """Some of the fastest of a shape, the slot's former one if there are, each also without options, and tinygrad's
        own two."""
        with self.lock:
            for shape in self.shapes if not self._again else ():
                self._again[shape] = self._fastest(shape)
            left = [shape for shape, several in self._again.items() if several]
            if not left:
                return None
            shape = former if former in left and former is not None else max(left, key=lambda s: len(self._again[s]))
            return shape, self._again[shape].pop(0)

    def _fastest(self, shape: int) -> list[list[Candidate]]:
        known = self.recording.trials[shape] | self.recording.composed(shape)
        fine = [(t.ratio, c) for c, t in known.items() if t.ok and t.ratio]
        fastest = [c for _, c in sorted(fine, key=lambda item: item[0])[:FASTEST]]
        result: list[list[Candidate]] = []
        for at in range(0, len(fastest), FASTEST_AT_ONCE):
            part = fastest[at : at + FASTEST_AT_ONCE]
            defaults = [] if result else [c for c in self.recording.structures if c.strategy in DEFAULTS]
            result.append(list(dict.fromkeys([*defaults, *(c.structure for c in part), *part])))
        return result

    def keep(self, shape: int, made: Mapping[Candidate, Trial]) -> None:
        with self.lock:
            self.recording.trials[shape].update(made)

    def replace(self, shape: int, made: Mapping[Candidate, Trial]) -> None:
        """Another, more exact time for what is known; the first one as a whole for what was composed. What a search
        spends on a candidate stays as it was: the kernels of this one had been compiled before."""
        with self.lock:
            known = self.recording.trials[shape]
            for candidate, new in made.items():
                before = known.get(candidate) or self.recording.compose(shape, candidate)
                if new.ok and before is not None:
                    known[candidate] = replace(before, ratio=new.ratio, kernels=new.kernels, program=new.program)

    def keep_menus(self, shape: int, structure: int, menus: Menus) -> list[Candidate]:
        """What there is left to measure as a whole then."""
        with self.lock:
            self.recording.menus[shape][structure] = menus
            known = self.recording.trials[shape]
            combined = self.recording.combined(shape, structure)
            random.Random(structure).shuffle(combined)
            left = [c for c in combined[: self.wholes] if c not in known]
            self._dealt[shape] += len(left) - UNIT
        return left


def chunks(structures: Sequence[Candidate]) -> list[list[Candidate]]:
    """The presets first, then an order by chance, the common ones before the others: a run that is stopped has
    something of everything. Neighbours stay together, they share kernels."""
    common = [c for c in structures if is_common(c)]
    first, rest = common[: PRESET_CHUNKS * CHUNK], common[PRESET_CHUNKS * CHUNK :]
    result = _cut(first)
    for several in (rest, [c for c in structures if not is_common(c)]):
        rows = _cut(several)
        random.Random(0).shuffle(rows)
        result += rows
    return result


def _cut(structures: Sequence[Candidate]) -> list[list[Candidate]]:
    return [list(structures[start : start + CHUNK]) for start in range(0, len(structures), CHUNK)]
