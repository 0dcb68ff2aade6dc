"""Measure a subspace of candidates on many shapes, and keep it: `python bench/record.py --slots 28 --deadline 9m`.

On the CPU: the processors are dealt into slots of `--width` each, every slot measures in a child process of its own
that is bound to its processors, several candidates to a request, their rounds interleaved. Of every shape

1. `--structures` of them are measured, of a grid over the strategies' parameters;
2. on `--units` of these, the fastest and others by chance that are not much slower, options are searched for each
   kernel, as `autotune tune` does it, and some that were tried are kept, the same for all structures that have the
   kernel: all their combinations are the structure's candidates with options. They are measured, each as a whole, in an
   order by chance; what there was no time for is the sum of its kernels, which bench/search.py holds against the
   measured ones;
3. more structures are measured;
4. in the last `--again` the fastest are timed again, in more rounds, which replaces what was first seen: of many
   candidates timed once the fastest is also the luckiest.

In every request one structure, the anchor, runs in the same rounds, and what is kept are ratios to it: see
bench/recording.py.

Every candidate is verified. What has been measured is written to --out every 20 seconds and at the end; the next run
with the same file goes on from there. Searches are compared on it by bench/search.py.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from convs import LOWERINGS, Beams
from dealing import Work
from recording import MENU, MENU_ALONE, Menu, Recording, Trial, everything, menu_of, subspace
from shapes import SHAPES, conv_shape, label
from tinygrad.helpers import NUM_CPU_THREADS

from autotune.child import Emit
from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement
from autotune.option_search import FAILED, NEGLIGIBLE, Kernel, KernelSearch, Options, timed
from autotune.runner import ROUND_S, Limits, Request, RunStoppedError
from autotune.statistics import median, median_ratio
from autotune.timing import interleaved
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey, DeviceSpec

DIRECT = Candidate.of("direct")
SIZES = SHAPES["recorded"]
CHUNK_WITH_OPTIONS = 16
STRUCTURES, UNITS = 240, 12
ROUNDS, ROUNDS_AGAIN = 5, 15
WRITE_S = 20.0
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
    parser.add_argument("--first", type=int, default=0, help="leave so many to others and to us (default %(default)s)")
    parser.add_argument("--deadline", default="9m", help="when to stop, as 90s or 25m (default %(default)s)")
    parser.add_argument("--again", default="60s", help="of it, for timing the fastest again (default %(default)s)")
    parser.add_argument("--structures", type=int, default=STRUCTURES, help="of a shape before options (%(default)s)")
    parser.add_argument("--units", type=int, default=UNITS, help="structures of a shape with options (%(default)s)")
    parser.add_argument("--wholes", type=int, metavar="N", help="of each, combinations measured as a whole (all)")
    parser.add_argument("--shape-index", type=int, nargs="+", metavar="I", help="only these shapes, from 0")
    parser.add_argument("--beam", type=Path, metavar="FILE", help="results of bench/beam.py, to be timed")
    options = parser.parse_args()
    allowed = sorted(os.sched_getaffinity(0))
    cpus = allowed[options.first :]
    if options.slots * options.width > len(cpus):
        sys.exit(f"record: {options.slots} slots of {options.width} need more than the {len(cpus)} processors here")
    ensure_c_compiler()
    NUM_CPU_THREADS.value = options.width
    os.environ["NUM_CPU_THREADS"] = str(options.width)
    spec = describe_device("CPU")
    recording = opened(options.out, spec, options.slots)
    if options.beam is not None:
        os.sched_setaffinity(0, cpus[: options.width])
        for shape, found in timed_beams(options.beam, spec, recording.anchor):
            recording.beam[shape] = found
            recording.write(options.out)
        return 0
    if options.first:
        os.sched_setaffinity(0, allowed[: options.first])  # what deals out work and keeps it is not to disturb
    chosen = options.shape_index if options.shape_index is not None else range(len(SIZES))
    begun = time.monotonic()
    work = Work(
        recording=recording, shapes=chosen, begun=begun, deadline_s=seconds(options.deadline),
        again_s=seconds(options.again), structures=options.structures, units=options.units,
        wholes=options.wholes,
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
                thread.join(WRITE_S / len(threads))
            with work.lock:
                recording.write(options.out)
            least = min(len(recording.trials[shape]) for shape in work.shapes)
            print(f"{work.elapsed_s():.0f} s: {sum(map(len, recording.trials))} measured, {least} or more of a shape, "
                  f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    for shape, size in enumerate(recording.shapes):
        if shape not in work.shapes:
            continue
        fine = [t.ratio for t in recording.trials[shape].values() if t.ok and t.ratio]
        best = f", best {min(fine):.3f} of the anchor" if fine else ""
        counts = f"{len(recording.structured(shape))} structures, options of {len(recording.menus[shape])}"
        total = f"{len(recording.trials[shape])} measured, {len(fine)} ok, {len(recording.composed(shape))} composed"
        print(f"{label(conv_shape(*size))}: {counts}, {total}{best}")
    return 0


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
        while not self.work.is_again():
            task = self.work.next(shape)
            if task is None:
                break
            shape = task.shape
            chunks = [task.structures] if task.unit is None else self._with_options(runner, shape, task.unit)
            for chosen in chunks:
                self.work.keep(shape, self._anchored(runner, shape, chosen))
        while (chunk := self.work.again(shape)) is not None:
            self.work.replace(chunk[0], self._anchored(runner, *chunk, rounds=ROUNDS_AGAIN))

    def _anchored(
        self, runner: LocalRunner, shape: int, chosen: Sequence[Candidate], rounds: int = ROUNDS
    ) -> dict[Candidate, Trial]:
        """These, measured with the anchor. Raises RuntimeError if that fails."""
        request = self._request(shape, [self.work.recording.anchor, *chosen], rounds=rounds, keep=1)
        anchor, *measured = runner.measure(request, should_stop=self.work.is_over)
        if not anchor.ok:
            raise RuntimeError(f"the anchor failed on shape {shape}: {anchor.status} {anchor.reason}")
        return trials(anchor, measured)

    def _with_options(self, runner: LocalRunner, shape: int, structure: int) -> Iterator[list[Candidate]]:
        """Chunks of candidates, until there are no more or it is time to end."""
        menus = self.work.recording.menus[shape].get(structure)
        if menus is None:
            base = self.work.recording.structures[structure]
            request = self._request(shape, [base], keep=1, options=Budget(trials=sum(MENU)))
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


_kernels: dict[tuple[str, Any], tuple[KernelSearch, float]] = {}
"""In a slot's process: what was searched for a kernel, by its shape's digest and its graph, and what one trial took."""


def menus_of(request: Request, emit: Emit) -> dict[str, Menu]:
    """What the search over options tries on the kernels of the request's candidate. A kernel that another candidate has
    too is not searched again."""
    from autotune.measure import pool
    from strategies.graph.kernels import tunable_kernels

    [candidate], key = request.candidates, request.key

    def begins() -> None:
        emit({"event": "begin", "phase": "time", "index": 0})

    begins()
    kernels = {kernel.role: kernel for kernel in tunable_kernels(key.shape, candidate, key.device.device, pool=pool())}
    alone = {role: timed(kernel, kernel.default) for role, kernel in kernels.items()}
    whole = sum(s for s in alone.values() if s < FAILED)
    worth = [role for role in sorted(alone, key=alone.__getitem__, reverse=True)
             if NEGLIGIBLE * whole <= alone[role] < FAILED]  # fmt: skip
    menus: dict[str, Menu] = {}
    for role in worth:
        chosen_from = sum(len(menu.options) > 1 for menu in menus.values())
        most = MENU_ALONE if len(worth) == 1 else (*MENU, *([1] * len(worth)))[chosen_from]
        named = (key.digest, kernels[role].kernel)
        begun, search = time.monotonic(), _kernels.get(named, (None, 0.0))[0]
        if search is None or len(search.times) < most:
            search = searched_up_to(kernels[role], most, begins)
            _kernels[named] = search, (time.monotonic() - begun) / len(search.times)
        default, share = kernels[role].default, alone[role] / whole
        menus[role] = menu_of(kernels[role].axes, default, search.times, most, _kernels[named][1], share)
    return menus


def searched_up_to(kernel: Kernel, most: int, begins: Callable[[], None]) -> KernelSearch:
    """A search over a kernel's options that has tried so many, if there are."""
    times: dict[Options, float] = {}
    search = KernelSearch(kernel, lambda: len(times) / most, random.Random(0), begins=begins, times=times)
    search.time(kernel.default)
    search.run(1.0)
    widen(search, most)
    return search


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


def timed_beams(path: Path, spec: DeviceSpec, anchor: Candidate) -> Iterator[tuple[int, tuple[float, float]]]:
    """Of each shape, by number: the better of both lowerings with BEAM's options, over the anchor, and the seconds of
    the search for its kernels' options."""
    beams = Beams.read(path, spec)
    searches = json.loads(path.read_text(encoding="utf-8"))["searches"]
    for number, size in enumerate(SIZES):
        shape = conv_shape(*size)
        took = {
            e["lowering"]: sum(kernel["search_s"] for kernel in e["kernels"])
            for e in searches if e["shape"] == shape.to_json() and e["complete"]
        }  # fmt: skip
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
        yield number, (round(ratios[best], 4), round(took[best], 1))
        over = ratios[best] / ratios["plain"]
        print(f"{label(shape)}: BEAM on {best}, {over:.3f} of direct after {took[best]:.0f} s", flush=True)


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
