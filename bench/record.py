"""Measure a subspace of candidates on many shapes, and keep it: `python bench/record.py --slots 28 --deadline 9m`.

On the CPU: the processors are dealt into slots of `--width` each, every slot measures in a child process of its own
that is bound to its processors, several candidates to a request, their rounds interleaved. Of every shape

1. the structures are measured, those of a grid over the strategies' parameters;
2. on the fastest of them options are searched for each kernel, as `autotune tune` does it, and some that were tried are
   kept: all their combinations are the structure's candidates with options. Of these the first `--wholes`, in an order
   by chance, are measured, each as a whole; what the others take is the sum of their kernels, which bench/search.py
   holds against the measured ones;
3. in the last `--again` the fastest are timed again, in more rounds, which replaces what was first seen: of many
   candidates timed once the fastest is also the luckiest.

In every request one structure, the anchor, runs in the same rounds, and what is kept are ratios to it: see
bench/recording.py.

Every candidate is verified. What has been measured is written to --out every minute and at the end; the next run with
the same file goes on from there. Searches are compared on it by bench/search.py.

With --beam FILE, what `python bench/beam.py --shapes recorded --width WIDTH` found on the same machine is timed against
the anchor instead, and kept with the seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from convs import LOWERINGS, Beams
from recording import MENU, MENU_ALONE, Menu, Menus, Recording, Trial, everything, menu_of, subspace
from shapes import SHAPES, conv_shape, label
from tinygrad.helpers import NUM_CPU_THREADS

from autotune.child import Emit
from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement
from autotune.option_search import FAILED, NEGLIGIBLE, KernelSearch, searched, searches_of
from autotune.runner import ROUND_S, Limits, Request, RunStoppedError
from autotune.space import DEFAULTS
from autotune.statistics import median, median_ratio
from autotune.timing import interleaved
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey, DeviceSpec

DIRECT = Candidate.of("direct")
SIZES = SHAPES["recorded"]
CHUNK, CHUNK_WITH_OPTIONS = 8, 16
PRESET_CHUNKS = 2
AHEAD = 3 * CHUNK
"""A slot stays with its shape until it is so many candidates ahead: another shape's reference takes seconds."""
UNITS, WHOLES = 12, 32
"""Structures per shape, at most, whose kernels' options are recorded, and how many of their combinations are measured
as a whole."""
MENU_S = "20s"
"""How long options are searched for one structure, unless --menu says otherwise."""
FASTEST, ROUNDS, ROUNDS_AGAIN = 16, 5, 15
ROUND_LENGTH_S = 0.01
HOPELESS = 4.0
"""Slower than this many times `direct` is not timed exactly: no search ends there."""
BOUND_CHILD = (
    "import os, sys; os.sched_setaffinity(0, {cpus}); sys.path.insert(0, {here!r}); "
    "import record; sys.exit(record.child())"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "recorded" / "cpu.jsonl.gz")
    parser.add_argument("--slots", type=int, default=1, help="children at once (default %(default)s)")
    parser.add_argument("--width", type=int, default=2, help="processors of each (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="leave so many processors to others (default %(default)s)")
    parser.add_argument("--deadline", default="9m", help="when to stop, as 90s or 25m (default %(default)s)")
    parser.add_argument("--again", default="80s", help="of it, for timing the fastest again (default %(default)s)")
    parser.add_argument("--structures", type=float, default=0.55, metavar="SHARE", help="of the time, then options")
    parser.add_argument("--units", type=int, default=UNITS, help="structures of a shape with options (%(default)s)")
    parser.add_argument("--menu", default=MENU_S, help="how long the options of each are searched (%(default)s)")
    parser.add_argument("--wholes", type=int, default=WHOLES, help="combinations of each that are measured as a whole")
    parser.add_argument("--shape-index", type=int, nargs="+", metavar="I", help="only these shapes, from 0")
    parser.add_argument("--beam", type=Path, metavar="FILE", help="results of bench/beam.py, to be timed")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[options.first :]
    if options.slots * options.width > len(cpus):
        sys.exit(f"record: {options.slots} slots of {options.width} need more than the {len(cpus)} processors here")
    ensure_c_compiler()
    NUM_CPU_THREADS.value = options.width
    os.environ["NUM_CPU_THREADS"] = str(options.width)
    spec = describe_device("CPU")
    recording = opened(options.out, spec, options.slots)
    if options.beam is not None:
        os.sched_setaffinity(0, cpus[: options.width])
        recording.beam |= timed_beams(options.beam, spec, recording.anchor)
        recording.write(options.out)
        return 0
    chosen = options.shape_index if options.shape_index is not None else range(len(SIZES))
    begun = time.monotonic()
    work = Work(
        recording=recording, shapes=chosen, begun=begun, deadline_s=seconds(options.deadline),
        again_s=seconds(options.again), structures_share=options.structures, units=options.units,
        wholes=options.wholes, menu_s=seconds(options.menu),
    )  # fmt: skip
    print(f"{len(recording.structures)} structures on {len(work.shapes)} shapes, {options.slots} slots", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        slots = [
            Slot(number, cpus[number * options.width : (number + 1) * options.width], Path(scratch), spec, work)
            for number in range(options.slots)
        ]
        threads = [threading.Thread(target=slot.run) for slot in slots]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(60 / len(threads))
            with work.lock:
                recording.write(options.out)
            least = min(len(recording.trials[shape]) for shape in work.shapes)
            print(f"{work.elapsed_s():.0f} s: {sum(map(len, recording.trials))} measured, {least} or more of a shape, "
                  f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    for shape, size in enumerate(recording.shapes):
        fine = [t.ratio for t in recording.trials[shape].values() if t.ok and t.ratio]
        best = f", best {min(fine):.3f} of direct" if fine else ""
        counts = f"{len(recording.structured(shape))} structures, options of {len(recording.menus[shape])}"
        total = f"{len(recording.trials[shape])} measured, {len(fine)} ok, {len(recording.composed(shape))} composed"
        print(f"{label(conv_shape(*size))}: {counts}, {total}{best}")
    return 0


@dataclass(slots=True, kw_only=True)
class Work:
    """What is left to measure, dealt out evenly over the shapes. Its methods are for many threads."""

    recording: Recording
    shapes: Sequence[int]
    begun: float
    deadline_s: float
    again_s: float
    structures_share: float
    units: int
    wholes: int
    menu_s: float
    lock: threading.RLock = field(default_factory=threading.RLock)
    _chunks: dict[int, list[list[Candidate]]] = field(default_factory=dict)
    _dealt: dict[int, int] = field(default_factory=dict)
    _units: dict[int, set[int]] = field(default_factory=dict)
    _again: set[int] = field(default_factory=set)

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

    def chunk(self, former: int | None) -> tuple[int, list[Candidate]] | None:
        """Structures to measure, and of which shape: the slot's former one if it is not far ahead of the others."""
        with self.lock:
            left = [shape for shape, rows in self._chunks.items() if rows]
            if not left or self.is_again() or self.elapsed_s() > self.structures_share * self.deadline_s:
                return None
            least = min(left, key=self._dealt.__getitem__)
            stays = former in left and self._dealt[former] <= self._dealt[least] + AHEAD
            shape = former if stays and former is not None else least
            chosen = self._chunks[shape].pop(0)
            self._dealt[shape] += len(chosen)
            return shape, chosen

    def unit(self, former: int | None) -> tuple[int, int] | None:
        """The fastest structure that nobody searches options for, of the shape of which there will be the fewest."""
        with self.lock:
            found = {}
            for shape in self.shapes:
                fine = [(t.ratio, n) for n, t in self.recording.structured(shape).items() if t.ok and t.ratio]
                left = sorted(item for item in fine if item[1] not in self._units[shape])
                if left and len(self._units[shape]) < self.units:
                    found[shape] = left[0][1]
            if not found or self.is_again():
                return None
            shape = min(found, key=lambda s: (len(self._units[s]), s != former))
            self._units[shape].add(found[shape])
            return shape, found[shape]

    def again(self) -> tuple[int, list[Candidate]] | None:
        """The fastest of a shape, and tinygrad's own two."""
        with self.lock:
            shape = next((s for s in self.shapes if s not in self._again), None)
            if shape is None:
                return None
            self._again.add(shape)
            known = self.recording.trials[shape] | self.recording.composed(shape)
            fine = [(t.ratio, c) for c, t in known.items() if t.ok and t.ratio]
            fastest = [c for _, c in sorted(fine, key=lambda item: item[0])[:FASTEST]]
            bases = [replace(c, kernel_options=()) for c in fastest]
            return shape, list(dict.fromkeys([*self.defaults, *bases, *fastest]))

    def keep(self, shape: int, anchor: Measurement, measured: Iterable[Measurement]) -> None:
        made = trials(anchor, measured)
        with self.lock:
            self.recording.trials[shape].update(made)

    def replace(self, shape: int, anchor: Measurement, measured: Iterable[Measurement]) -> None:
        """Another, more exact time for what is known; the first one as a whole for what was composed. What a search
        spends on a candidate stays as it was: the kernels of this one had been compiled before."""
        with self.lock:
            known = self.recording.trials[shape]
            for candidate, made in trials(anchor, measured).items():
                before = known.get(candidate) or self.recording.compose(shape, candidate)
                if made.ok and before is not None:
                    known[candidate] = replace(before, ratio=made.ratio, kernels=made.kernels, program=made.program)

    @property
    def defaults(self) -> list[Candidate]:
        return [c for c in self.recording.structures if c.strategy in DEFAULTS]

    def keep_menus(self, shape: int, structure: int, menus: Menus) -> list[Candidate]:
        """What there is left to measure as a whole then."""
        with self.lock:
            self.recording.menus[shape][structure] = menus
            known = self.recording.trials[shape]
            combined = self.recording.combined(shape, structure)
        random.Random(structure).shuffle(combined)
        return [c for c in combined[: self.wholes] if c not in known]


@dataclass(slots=True)
class Slot:
    """Some processors, and what is measured on them."""

    number: int
    cpus: list[int]
    scratch: Path
    spec: DeviceSpec
    work: Work

    def run(self) -> None:
        folder = self.scratch / str(self.number)
        folder.mkdir(mode=0o700)
        here = str(Path(__file__).parent)
        command = (sys.executable, "-c", BOUND_CHILD.format(cpus=set(self.cpus), here=here))
        try:
            with LocalRunner("CPU", child=command, lock_directory=folder, start_timeout_s=300.0) as runner:
                self._measure_all(runner)
        except RunStoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - the other slots go on, and this one says why it does not
            print(f"slot {self.number} ends: {type(error).__name__}: {error}", flush=True)

    def _measure_all(self, runner: LocalRunner) -> None:
        shape: int | None = None
        while (chunk := self.work.chunk(shape)) is not None:
            shape = chunk[0]
            self._measure(runner, *chunk)
        while not self.work.is_again():
            unit = self.work.unit(shape)
            if unit is None:
                time.sleep(1.0)  # others may still be measuring what is fastest
                continue
            shape = unit[0]
            for chosen in self._with_options(runner, *unit):
                self._measure(runner, shape, chosen)
        while (chunk := self.work.again()) is not None:
            self.work.replace(chunk[0], *self._anchored(runner, *chunk, rounds=ROUNDS_AGAIN))

    def _measure(self, runner: LocalRunner, shape: int, chosen: list[Candidate]) -> None:
        self.work.keep(shape, *self._anchored(runner, shape, chosen))

    def _anchored(
        self, runner: LocalRunner, shape: int, chosen: list[Candidate], rounds: int = ROUNDS
    ) -> tuple[Measurement, list[Measurement]]:
        """The anchor, and these. Raises RuntimeError if the anchor fails."""
        request = self._request(shape, [self.work.recording.anchor, *chosen], rounds=rounds, keep=1)
        anchor, *measured = runner.measure(request, should_stop=self.work.is_over)
        if not anchor.ok:
            raise RuntimeError(f"the anchor failed on shape {shape}: {anchor.status} {anchor.reason}")
        return anchor, measured

    def _with_options(self, runner: LocalRunner, shape: int, structure: int) -> Iterator[list[Candidate]]:
        """Chunks of candidates, until there are no more or it is time to end."""
        menus = self.work.recording.menus[shape].get(structure)
        if menus is None:
            base = self.work.recording.structures[structure]
            request = self._request(shape, [base], keep=1, options=Budget(seconds=self.work.menu_s))
            [found] = runner.measure(request, should_stop=self.work.is_over)
            menus = {role: Menu.from_json(menu) for role, menu in found.conditions.get("menus", {}).items()}
        left = self.work.keep_menus(shape, structure, menus) if menus else []
        while left and not self.work.is_again():
            yield left[:CHUNK_WITH_OPTIONS]
            left = left[CHUNK_WITH_OPTIONS:]

    def _request(
        self, shape: int, chosen: list[Candidate], *, rounds: int = ROUNDS, keep: int = 0, options: Budget | None = None
    ) -> Request:
        return Request(
            key=ConvKey(shape=conv_shape(*self.work.recording.shapes[shape]), device=self.spec),
            candidates=tuple(chosen), rounds=rounds, round_s=ROUND_LENGTH_S, hopeless=HOPELESS, keep=keep,
            options=options, limits=Limits(prepare_s=300.0, lowering_s=20.0),
        )  # fmt: skip


def child() -> int:
    """The process of a slot."""
    from autotune.child import main as serve
    from autotune.child import measure

    def measure_or_search(request: Request, *, emit: Emit) -> list[Measurement]:
        begun: dict[str, list[float]] = {"candidate": [], "shared": [], "time": []}

        def begins(event: dict[str, Any]) -> None:
            """What is final is sent at the end, when it is known what it cost."""
            if event["event"] == "begin":
                emit(event)
                shared = "candidate" if "index" in event else "shared"
                begun[shared if event["phase"] == "prepare" else "time"].append(time.monotonic())

        menus = menus_of(request, emit) if request.options is not None else {}
        measured = measure(replace(request, options=None), emit=begins)
        compiled = begun["time"][0] if begun["time"] else time.monotonic()
        other_s = time.monotonic() - begun["candidate"][0] - (compiled - begun["shared"][1])
        found: dict[str, Any] = {"menus": {role: menu.to_json() for role, menu in menus.items()}} if menus else {}
        return [replace(m, conditions={**found, "other_s": other_s / len(measured)}) for m in measured]

    return serve(measure=measure_or_search)


def menus_of(request: Request, emit: Emit) -> dict[str, Menu]:
    """What the search over options tries on the kernels of the request's candidate."""
    from autotune.measure import WORKERS, pool
    from strategies.graph.kernels import tunable_kernels

    [candidate], budget = request.candidates, request.options
    assert budget is not None
    made = tunable_kernels(request.key.shape, candidate, request.key.device.device, pool=pool())
    kernels = {kernel.role: kernel for kernel in made}

    def begins() -> None:
        emit({"event": "begin", "phase": "time", "index": 0})

    begun = time.monotonic()
    searches = searches_of(
        kernels, budget=budget, seed=0, begun=begun, clock=time.monotonic, at_once=WORKERS, begins=begins
    )
    searched(searches)
    alone = {role: search.times[kernels[role].default] for role, search in searches.items()}
    whole = sum(s for s in alone.values() if s < FAILED)
    worth = [role for role in sorted(alone, key=alone.__getitem__, reverse=True)
             if NEGLIGIBLE * whole <= alone[role] < FAILED]  # fmt: skip
    sizes = [MENU_ALONE] if len(worth) == 1 else [*MENU, *([1] * len(worth))]
    for role, most in zip(worth, sizes, strict=False):
        widen(searches[role], most)
    try_s = (time.monotonic() - begun) / sum(len(search.times) for search in searches.values())
    return {
        role: menu_of(kernels[role].axes, kernels[role].default, searches[role].times, most, try_s, alone[role] / whole)
        for role, most in zip(worth, sizes, strict=False)
    }


def widen(search: KernelSearch, most: int) -> None:
    """Try steps by chance, from where a search begins and from the best, until so many sets of options are known or
    there are no more: a search that finds nothing better ends early, and what is slower belongs to the subspace too."""
    kernel, rng = search.kernel, random.Random(0)
    begins = dict.fromkeys((kernel.default, (), min(search.times, key=search.times.__getitem__)))
    for _ in range(2 * most):
        fine = [options for options, s in search.times.items() if s < FAILED]
        at = [options for options in begins if options in fine]
        steps = [step for o in at for step in (*kernel.more(o), *kernel.other(o)) if step not in search.times]
        if len(fine) >= most or not steps:
            return
        search.time(rng.choice(steps))


def timed_beams(path: Path, spec: DeviceSpec, anchor: Candidate) -> dict[int, tuple[float, float]]:
    """The better of both lowerings with BEAM's options, over the anchor, and the seconds of its search, by shape."""
    beams, result = Beams.read(path, spec), dict[int, tuple[float, float]]()
    searches = json.loads(path.read_text(encoding="utf-8"))["searches"]
    for number, size in enumerate(SIZES):
        shape = conv_shape(*size)
        took = {e["lowering"]: e["search_s"] for e in searches if e["shape"] == shape.to_json() and e["complete"]}
        programs = {name: beams.program(shape, name, spec.device) for name in LOWERINGS if name in took}
        found = {name: program for name, program in programs.items() if program is not None}
        if not found:
            continue
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape)
        others = {"anchor": Program(shape, anchor, spec.device), "plain": Program(shape, DIRECT, spec.device)}
        for program in (*others.values(), *found.values()):
            program.load(x, w)
        runs = {name: program.run for name, program in (others | found).items()}
        times = interleaved(runs, yardstick="anchor", rounds=21, round_s=ROUND_S, prune=False)
        ratios = {name: median_ratio(times[name].times_s, times["anchor"].times_s) for name in ("plain", *found)}
        best = min(found, key=ratios.__getitem__)
        result[number] = (round(ratios[best], 4), took[best])
        over = ratios[best] / ratios["plain"]
        print(f"{label(shape)}: BEAM on {best}, {over:.3f} of direct after {took[best]:.0f} s", flush=True)
    return result


def opened(path: Path, spec: DeviceSpec, slots: int) -> Recording:
    """The file if it exists. Raises SystemExit if it is of another device or subspace."""
    structures = everything(subspace(ConvKey(shape=conv_shape(1, 64, 56), device=spec)))
    machine = {"device": spec.to_json(), "platform": platform.platform(), "slots": slots}
    if not path.exists():
        return Recording.empty(machine, SIZES, structures)
    recording = Recording.read(path)
    if recording.machine["device"] != spec.to_json() or not set(recording.structures) <= set(structures):
        sys.exit(f"record: {path} is of another device or subspace: give another --out")
    recording.structures += [candidate for candidate in structures if candidate not in recording.structures]
    return recording


def chunks(structures: Sequence[Candidate]) -> list[list[Candidate]]:
    """The presets first, then an order by chance: a run that is stopped has something of everything. Neighbours stay
    together, they share kernels."""
    result = [list(structures[start : start + CHUNK]) for start in range(0, len(structures), CHUNK)]
    presets, rest = result[:PRESET_CHUNKS], result[PRESET_CHUNKS:]
    random.Random(0).shuffle(rest)
    return presets + rest


def trials(anchor: Measurement, measured: Iterable[Measurement]) -> dict[Candidate, Trial]:
    return {
        m.candidate: Trial(
            status=str(m.status), compile_s=round(m.compile_s, 3),
            other_s=round(float(m.conditions.get("other_s", 0.0)), 3), program=m.fingerprint[:8],
            ratio=ratio_of(m, anchor) if m.times_s else None, kernels=kernels_of(m, anchor),
        ) for m in measured
    }  # fmt: skip


def ratio_of(measurement: Measurement, anchor: Measurement) -> float:
    """What was stopped after a first short look has times of other rounds: it is compared by way of `direct`."""
    if measurement.ok:
        return round(median_ratio(measurement.times_s, anchor.times_s), 4)
    over_direct = median_ratio(measurement.times_s, measurement.yardstick_times_s)
    return round(over_direct / median_ratio(anchor.times_s, anchor.yardstick_times_s), 4)


def kernels_of(measurement: Measurement, anchor: Measurement) -> tuple[float, ...]:
    times = [kernel.median_s for kernel in measurement.kernels]
    return () if None in times else tuple(round(s / median(anchor.times_s), 4) for s in times if s is not None)


def seconds(text: str) -> float:
    return Budget.parse(text).seconds or 0.0


if __name__ == "__main__":
    sys.exit(main())
