"""What a winner costs beside tinygrad's `WINO=1`: `python bench/costs.py --only 2 --budget 40s`.

For each shape, in this order and on the same machine, until all are done or `--deadline` is over:

- the tuner searches within the budget: seconds used, and seconds until it first measured what became the winner;
- BEAM=2 searches the kernels of `WINO=1`, in a process of its own, until it is done or `--limit` is over; with
  `--beam FILE` it is not searched again: the seconds are those that bench/beam.py wrote there on such a machine;
- the winner and `WINO=1` are scheduled and compiled in new processes, in turns, without any cache: seconds of each,
  from the convolution's graph to kernels that can run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from beam import Kept, Search, child_environ, follow, seconds
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, conv_shape, label

from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.statistics import median
from autotune.store import Store
from autotune.tune import tune
from autotune.winner import Winner
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

DIRECT = Candidate.of("direct")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--only", type=int, metavar="N", help="the first N shapes")
    parser.add_argument("--shape-index", type=int, nargs="+", metavar="I", help="only these shapes, from 0")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--budget", default="40s", help="of the tuner, per shape (default %(default)s)")
    parser.add_argument("--limit", default="10m", help="of BEAM, per shape (default %(default)s)")
    parser.add_argument("--deadline", default="9m", help="for everything: no shape is begun after it (default 9m)")
    parser.add_argument("--beam", type=Path, metavar="FILE", help="seconds of BEAM that bench/beam.py wrote")
    parser.add_argument("--starts", type=int, default=3, help="new processes for each compilation")
    parser.add_argument("--compile", nargs=3, metavar=("SHAPE", "CANDIDATE", "WINO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device.split(":")[0] == "CPU":
        ensure_c_compiler()
    if options.compile:
        shape, candidate, wino = map(json.loads, options.compile)
        return compile_one(ConvShape.from_json(shape), Candidate.from_json(candidate), options.device, wino)
    console = Console(width=None if sys.stdout.isatty() else 160)
    spec = describe_device(options.device)
    console.print(
        f"{spec.device} {spec.arch}, {spec.cores} cores, {spec.compiler or spec.driver}, tinygrad {spec.tinygrad}"
    )
    console.print(f"{platform.platform()}, load {os.getloadavg()[0]:.1f}, budget {options.budget} per shape")
    table = Table(
        "shape", "compile winner s", "WINO=1 s", "ratio", "search s", "winner seen s", "BEAM=2 on WINO=1 s", "ratio",
        "winner", box=None,
    )  # fmt: skip
    sizes = SHAPES[options.shapes]
    chosen = [sizes[i] for i in options.shape_index] if options.shape_index is not None else sizes[: options.only]
    until, taken_s = time.monotonic() + seconds(options.deadline), 0.0
    for number, size in enumerate(chosen):
        begun = time.monotonic()
        if begun + taken_s > until:
            console.print(f"the time is over: {len(chosen) - number} of {len(chosen)} shapes are not in the table")
            break
        row = costs(conv_shape(*size), spec, options)
        taken_s = max(taken_s, time.monotonic() - begun)
        table.add_row(*row)
        print(" ".join(row), file=sys.stderr, flush=True)
    console.print(table)
    return 0


def costs(shape: ConvShape, spec: DeviceSpec, options: argparse.Namespace) -> list[str]:
    """One row of the table."""
    key = ConvKey(shape=shape, device=spec)
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(str(Path(scratch) / "costs.db"))
        begun = time.time()
        with LocalRunner(spec.device) as runner:
            winner = tune(key, store=store, runner=runner, budget=Budget.parse(options.budget))
        used_s, seen_s = time.time() - begun, first_seen(store, winner) - begun
        beam_s, complete = beam_seconds(shape, options, Path(scratch) / "beam.json")
    compiled = {"winner": [], "WINO=1": []}  # type: dict[str, list[float]]
    for _ in range(options.starts):
        compiled["winner"].append(compile_seconds(shape, winner.candidate, 0, options.device))
        compiled["WINO=1"].append(compile_seconds(shape, DIRECT, 1, options.device))
    mine, theirs = median(compiled["winner"]), median(compiled["WINO=1"])
    more, less = ("", "") if complete else (">", "<")
    return [
        label(shape), f"{mine:.2f}", f"{theirs:.2f}", f"{mine / theirs:.2f}", f"{used_s:.0f}", f"{seen_s:.0f}",
        f"{more}{beam_s:.0f}", f"{less}{used_s / beam_s:.2f}", str(winner.candidate),
    ]  # fmt: skip


def first_seen(store: Store, winner: Winner) -> float:
    """When what became the winner was measured for the first time, seconds since the epoch."""
    return min(m.measured_at for m in store.measurements(winner.key) if m.candidate == winner.candidate)


def beam_seconds(shape: ConvShape, options: argparse.Namespace, kept: Path) -> tuple[float, bool]:
    """How long BEAM=2 searches `WINO=1`, and whether it came to an end. Raises SystemExit for a file without it."""
    if options.beam is not None:
        search = Search(shape, "WINO=1", 2)
        known = json.loads(options.beam.read_text(encoding="utf-8"))["searches"]
        found = next((entry for entry in known if search.names(entry)), None)
        if found is None:
            raise SystemExit(
                f"costs: {options.beam} has no {search}: search it with bench/beam.py, or leave out --beam"
            )
        return float(found["search_s"]), bool(found["complete"])
    until = time.monotonic() + seconds(options.limit)
    complete = follow(
        Search(shape, "WINO=1", 2), Kept(kept), options.device, child_environ(options.device, 0, 1), until
    )
    return float(json.loads(kept.read_text())["searches"][0]["search_s"]), complete


def compile_seconds(shape: ConvShape, candidate: Candidate, wino: int, device: str) -> float:
    """In a new process, with no cache of tinygrad's."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--device", device, "--compile", json.dumps(shape.to_json()),
        json.dumps(candidate.to_json()), str(wino),
    ]  # fmt: skip
    environ = child_environ(device, 0, 1) | {"CCACHE": "0"}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return float(answer["seconds"])


def compile_one(shape: ConvShape, candidate: Candidate, device: str, wino: int) -> int:
    """In the child. The device is open and tinygrad imported when the clock starts."""
    from tinygrad import Context, Tensor

    from strategies.graph.program import Program

    Tensor.ones(4, device=device).contiguous().realize()
    begun = time.perf_counter()
    with Context(WINO=wino):
        Program(shape, candidate, device)
    print(json.dumps({"seconds": time.perf_counter() - begun}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
