"""The winner against tinygrad's own lowerings, in one interleaved run: `python bench/convs.py [--budget 40s]`.

For each shape the tuner searches within the budget; then direct, tinygrad's `WINO=1` itself (not our rebuilt
tensor_winograd) and the winner are compiled anew in one process and timed in interleaved rounds. Printed are medians,
the ratio winner / better default with its 95% interval over rounds, and the geometric mean of the ratios.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tinygrad import Context

from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.statistics import median, paired_ratio
from autotune.timing import interleaved
from autotune.tune import tune
from autotune.winner import Winner
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey
from strategies.shape import ConvShape

SHAPES = ((1, 16, 32), (1, 64, 56), (1, 128, 28), (1, 256, 14), (1, 512, 7), (8, 64, 56))
"""batch, cin = cout, height = width; 3x3, padding 1."""

DIRECT = Candidate.of("direct")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="40s", help="per shape, as 40s or 2m (default %(default)s)")
    parser.add_argument("--device", default=None, help="default: tinygrad's")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds of the comparison")
    parser.add_argument("--db", default=None, help="keep measurements here (default: a temporary file)")
    options = parser.parse_args()
    ensure_c_compiler()
    console = Console(width=None if sys.stdout.isatty() else 140)
    spec = describe_device(options.device)
    console.print(
        f"{spec.device} {spec.arch}, {spec.cores} cores, {spec.compiler or spec.driver}, tinygrad {spec.tinygrad}"
    )
    console.print(f"{platform.platform()}, load {os.getloadavg()[0]:.1f}, budget {options.budget} per shape")
    table = Table("shape", "direct us", "WINO=1 us", "winner us", "ratio", "95%", "error", "winner", box=None)
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(options.db or str(Path(scratch) / "bench.db"))
        for batch, channels, size in SHAPES:
            shape = ConvShape.of((batch, channels, size, size), (channels, channels, 3, 3), padding=1)
            with LocalRunner(spec.device) as runner:
                winner = tune(
                    ConvKey(shape=shape, device=spec), store=store, runner=runner, budget=Budget.parse(options.budget)
                )
            row, ratio = compare(shape, winner, spec.device, options.rounds)
            table.add_row(*row)
            ratios.append(ratio)
            print(" ".join(row), file=sys.stderr, flush=True)
    console.print(table)
    geomean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    console.print(f"geometric mean of winner / better default: {geomean:.3f}")
    return 0


def compare(shape: ConvShape, winner: Winner, device: str, rounds: int) -> tuple[list[str], float]:
    """One row of the table, and the ratio."""
    programs = {"direct": Program(shape, DIRECT, device)}
    with Context(WINO=1):
        programs["WINO=1"] = Program(shape, DIRECT, device)
    programs["winner"] = Program(shape, winner.candidate, device)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape)
    for program in programs.values():
        program.load(x, w)
    runs = {name: program.run for name, program in programs.items()}
    times = interleaved(runs, yardstick="direct", rounds=rounds, round_s=0.02, prune=False)
    medians = {name: median(t.times_s) for name, t in times.items()}
    default = min(("direct", "WINO=1"), key=lambda name: medians[name])
    ratio = paired_ratio(times["winner"].times_s, times[default].times_s).ratio
    error = f"{winner.error:.1e}" if winner.error is not None else "-"
    row = [
        f"{shape.batch}x{shape.cin} {shape.spatial[0]}x{shape.spatial[1]}",
        *(f"{medians[name] * 1e6:.0f}" for name in programs),
        f"{ratio.median:.3f}", f"{ratio.low:.3f}-{ratio.high:.3f}", error, str(winner.candidate),
    ]  # fmt: skip
    return row, ratio.median


if __name__ == "__main__":
    sys.exit(main())
