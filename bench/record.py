"""Measure a subspace of candidates on many shapes, and keep it: `python bench/record.py --slots 32 --deadline 25m`.

On the CPU: the processors are dealt into slots of `--width` each, every slot measures in a child process of its own
that is bound to its processors, eight candidates to a request, their rounds interleaved with `direct`. What has been
measured is written to --out every minute and at the end, and is not measured again by the next run with the same file.
Searches are compared on such a file by bench/search.py. Slots share the memory's bandwidth and the processor's clock;
ratios to `direct` of the same rounds bear with that, times would not.

With --beam FILE, what `NUM_CPU_THREADS=WIDTH python bench/beam.py --shapes recorded` found on the same machine is timed
against `direct` too, and kept with the seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from convs import LOWERINGS, Beams
from recording import Recording, Trial, everything, subspace
from shapes import SHAPES, conv_shape, label

from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement
from autotune.runner import ROUND_S, Limits, Request
from autotune.statistics import median_ratio
from autotune.timing import interleaved
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey, DeviceSpec

SIZES = SHAPES["recorded"]
CHUNK = 8
HOPELESS = 4.0
"""Slower than this many times `direct` is not timed exactly: no search ends there."""
BOUND_CHILD = "import os,sys; os.sched_setaffinity(0, {cpus}); from autotune.child import main; sys.exit(main())"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "recorded" / "cpu.jsonl.gz")
    parser.add_argument("--slots", type=int, default=1, help="children at once (default %(default)s)")
    parser.add_argument("--width", type=int, default=2, help="processors of each (default %(default)s)")
    parser.add_argument("--deadline", default="25m", help="when to stop, as 90s or 25m (default %(default)s)")
    parser.add_argument("--shape-index", type=int, nargs="+", metavar="I", help="only these shapes, from 0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--beam", type=Path, metavar="FILE", help="results of bench/beam.py, to be timed")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if options.slots * options.width > len(cpus):
        sys.exit(f"record: {options.slots} slots of {options.width} need more than the {len(cpus)} processors here")
    ensure_c_compiler()
    os.environ["NUM_CPU_THREADS"] = str(options.width)
    spec = describe_device("CPU")
    recording = opened(options.out, spec, options.slots)
    if options.beam is not None:
        os.sched_setaffinity(0, cpus[: options.width])
        recording.beam = timed_beams(options.beam, spec)
        os.sched_setaffinity(0, cpus)
    todo = chunks(recording, options.shape_index)
    left = len(recording.candidates) * len(SIZES) - sum(map(len, recording.trials))
    print(f"{left} candidates left to measure, {options.slots} slots", flush=True)
    until = time.monotonic() + (Budget.parse(options.deadline).seconds or 0.0)
    lock = threading.Lock()

    def work(slot: int, locks: str) -> None:
        mine = set(cpus[slot * options.width : (slot + 1) * options.width])
        child = (sys.executable, "-c", BOUND_CHILD.format(cpus=mine))
        with LocalRunner("CPU", child=child, lock_directory=Path(locks)) as runner:
            while time.monotonic() < until:
                try:
                    shape, chosen = todo.get_nowait()
                except queue.Empty:
                    return
                request = Request(
                    key=ConvKey(shape=conv_shape(*recording.shapes[shape]), device=spec),
                    candidates=tuple(recording.candidates[i] for i in chosen), rounds=options.rounds,
                    hopeless=HOPELESS, limits=Limits(prepare_s=300.0, lowering_s=20.0), keep=0,
                )  # fmt: skip
                begun = time.monotonic()
                measured = runner.measure(request, should_stop=lambda: time.monotonic() > until)
                elapsed_s = time.monotonic() - begun
                with lock:
                    recording.trials[shape] |= dict(zip(chosen, trials(measured, elapsed_s), strict=True))

    with tempfile.TemporaryDirectory() as scratch:
        folders = [str(Path(scratch) / str(slot)) for slot in range(options.slots)]
        for folder in folders:
            Path(folder).mkdir(mode=0o700)
        threads = [threading.Thread(target=guarded, args=(work, i, f)) for i, f in enumerate(folders)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(60 / len(threads))
            with lock:
                recording.write(options.out)
            print(f"{sum(map(len, recording.trials))} measured, load {os.getloadavg()[0]:.1f}", flush=True)
    for size, done in zip(recording.shapes, recording.trials, strict=True):
        fine = [t.ratio for t in done.values() if t.ok and t.ratio]
        best = f", best {min(fine):.3f} of direct" if fine else ""
        print(f"{label(conv_shape(*size))}: {len(done)} of {len(recording.candidates)}, {len(fine)} ok{best}")
    return 0


def timed_beams(path: Path, spec: DeviceSpec) -> dict[int, tuple[float, float]]:
    """The better of both lowerings with BEAM's options, over direct, and the seconds of its search, by shape."""
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
        plain = Program(shape, Candidate.of("direct"), spec.device)
        for program in (plain, *found.values()):
            program.load(x, w)
        runs = {"plain": plain.run, **{name: program.run for name, program in found.items()}}
        times = interleaved(runs, yardstick="plain", rounds=21, round_s=ROUND_S, prune=False)
        ratios = {name: median_ratio(times[name].times_s, times["plain"].times_s) for name in found}
        best = min(ratios, key=ratios.__getitem__)
        result[number] = (round(ratios[best], 4), took[best])
        print(f"{label(shape)}: BEAM on {best}, {ratios[best]:.3f} of direct after {took[best]:.0f} s", flush=True)
    return result


def guarded(work: object, slot: int, folder: str) -> None:
    """A slot that fails says so; the others go on."""
    try:
        work(slot, folder)  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001 - RunStoppedError at the deadline, or a child that cannot be started
        print(f"slot {slot} ends: {type(error).__name__} {error}", flush=True)


def opened(path: Path, spec: DeviceSpec, slots: int) -> Recording:
    """The file if it exists. Raises SystemExit if it is of another device or subspace."""
    candidates = everything(subspace(ConvKey(shape=conv_shape(1, 64, 56), device=spec)))
    machine = {"device": spec.to_json(), "platform": platform.platform(), "slots": slots}
    if not path.exists():
        return Recording(machine, list(SIZES), candidates, [{} for _ in SIZES])
    recording = Recording.read(path)
    if recording.machine["device"] != spec.to_json() or recording.candidates != candidates:
        sys.exit(f"record: {path} is of another device or subspace: give another --out")
    return recording


def chunks(recording: Recording, only: list[int] | None) -> queue.Queue[tuple[int, list[int]]]:
    """What is left, shapes in turn and, after the presets, in an order by chance (the same for each shape): a run that
    is stopped has something of everything. Neighbours stay together: they share kernels."""
    rows = []
    starts = list(range(CHUNK, len(recording.candidates), CHUNK))
    random.Random(0).shuffle(starts)
    for shape, done in enumerate(recording.trials):
        if only is None or shape in only:
            for turn, start in enumerate([0, *starts]):
                left = [i for i in range(start, min(start + CHUNK, len(recording.candidates))) if i not in done]
                rows += [(turn, shape, left)] if left else []
    result: queue.Queue[tuple[int, list[int]]] = queue.Queue()
    for _, shape, chosen in sorted(rows, key=lambda row: row[:2]):
        result.put((shape, chosen))
    return result


def trials(measured: list[Measurement], elapsed_s: float) -> list[Trial]:
    compiling_s = sum(m.compile_s for m in measured)
    other_s = max(elapsed_s - compiling_s, 0.05 * elapsed_s) / len(measured)
    return [
        Trial(
            status=str(m.status), compile_s=round(m.compile_s, 3), other_s=round(other_s, 3), program=m.fingerprint[:8],
            ratio=round(median_ratio(m.times_s, m.yardstick_times_s), 4) if m.times_s else None,
        ) for m in measured
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
