"""How often would noise crown a winner? The same candidate under several names: `python bench/calibration.py`.

An A/A test of the tuner's final. In each of 200 runs one candidate meets copies of itself, each made
anew with buffers of its own, as challengers of the default do: rounds interleaved with `direct`, losers stopped by the
race, the decision by the tuner's own rule. A run in which a copy beats the original has a false winner. Printed are
the share of such runs with its 95% interval (Wilson), the same without the rule that a default is given up only for a
minimal gain, and how far the ratios of equals spread. Exit status 1 above --allowed, or if the time was over before.

On a machine with many processors: `python bench/calibration.py --slots 28 --width 2 --deadline 5m`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from shapes import conv_shape, label

from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.runner import ROUND_S
from autotune.session import Settings
from autotune.statistics import MIN_GAIN, Contestant, decide
from autotune.timing import interleaved
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.registry import get_strategy

DIRECT = Candidate.of("direct")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--copies", type=int, default=Settings().finalists, help="challengers (default %(default)s)")
    parser.add_argument("--strategy", default="blocked", help="whose preset is the candidate (default %(default)s)")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 16, 32), metavar=("BATCH", "CHANNELS", "SIZE"))
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--allowed", type=float, default=0.05, help="largest share of false winners")
    parser.add_argument("--slots", type=int, default=1, help="runs at once, each in a process (default %(default)s)")
    parser.add_argument("--width", type=int, help="CPU: bind each slot to so many processors of its own")
    parser.add_argument("--deadline", default="1h", help="no run that would end after it is begun (%(default)s)")
    parser.add_argument("--first-run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bound", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "CPU":
        ensure_c_compiler()
    if options.first_run is not None:
        return one_slot(options)
    spec, begun = describe_device(options.device), time.monotonic()
    cores = options.width or spec.cores
    candidate = get_strategy(options.strategy).candidate()
    shape = label(conv_shape(*options.shape))
    print(
        f"{spec.device} {spec.arch}, {cores} cores a slot, {options.slots} at once, {shape}, {candidate}, "
        f"load {os.getloadavg()[0]:.1f}", flush=True,
    )  # fmt: skip
    runs = in_slots(options)
    if not runs:
        sys.exit("calibration: no run was finished in time: give it a longer --deadline")
    crowned = sum(run["crowned"] for run in runs)
    ratios = [ratio for run in runs for ratio in run["ratios"]]
    low, high = wilson(crowned, len(runs))
    took_s = time.monotonic() - begun
    print(f"{len(runs)} runs of {options.copies + 1} copies in {took_s:.0f} s, load {os.getloadavg()[0]:.1f}")
    print(f"false winners: {crowned} of {len(runs)}, {crowned / len(runs):.1%} (95%: {low:.1%} to {high:.1%})")
    beyond_noise = sum(run["beyond_noise"] for run in runs)
    print(f"without the minimal gain of {MIN_GAIN:.0%}: {beyond_noise / len(runs):.1%}")
    spread = np.quantile(ratios, (0.025, 0.5, 0.975)) if ratios else (math.nan,) * 3
    print(f"ratio of equals, middle 95% of medians: {spread[0]:.3f} to {spread[2]:.3f} round {spread[1]:.3f}")
    if len(runs) < options.runs:
        print(f"the time was over before {options.runs} runs")
    return 0 if crowned <= options.allowed * len(runs) and len(runs) == options.runs else 1


def in_slots(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the runs came to, made in as many processes as there are slots; fewer runs if the time is over."""
    cpus = sorted(os.sched_getaffinity(0)) if options.width else []
    if options.slots * (options.width or 0) > len(cpus):
        sys.exit(f"calibration: {options.slots} slots of {options.width} need more than {len(cpus)} processors")
    slots, width = options.slots, options.width or 0
    children = []
    for slot in range(slots):
        command = [
            sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--first-run", str(slot),
            "--bound", *map(str, cpus[slot * width : (slot + 1) * width]),
        ]  # fmt: skip
        environ = os.environ | ({"NUM_CPU_THREADS": str(width)} if width else {})
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ))
    said = [child.communicate()[0] for child in children]
    failed = sum(child.returncode != 0 for child in children)
    if failed:
        print(
            f"{failed} of {slots} slots failed, their errors are above: what they had finished is counted", flush=True
        )
    return [json.loads(line) for lines in said for line in lines.splitlines() if line.startswith("{")]


def one_slot(options: argparse.Namespace) -> int:
    """In a slot's process: every run whose number is the slot's, modulo the slots, a line of JSON each."""
    if options.bound:
        os.sched_setaffinity(0, options.bound)
    until = time.monotonic() + (Budget.parse(options.deadline).seconds or 0.0)
    taken_s = 0.0
    for run in range(options.first_run, options.runs, options.slots):
        begun = time.monotonic()
        if begun + taken_s > until:
            break
        print(json.dumps(one_run(options, run)), flush=True)
        taken_s = time.monotonic() - begun
    return 0


def one_run(options: argparse.Namespace, run: int) -> dict[str, Any]:
    """One final among equals: whether a copy won, whether one was faster beyond noise, and the copies' ratios."""
    shape, settings, rng = conv_shape(*options.shape), Settings(), np.random.default_rng(run)
    candidate = get_strategy(options.strategy).candidate()
    names = ["A", *(f"A{i}" for i in range(1, options.copies + 1))]
    x, w = rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape)
    programs = {}
    for name in ["yardstick", *rng.permutation(names)]:
        programs[name] = Program(shape, DIRECT if name == "yardstick" else candidate, options.device)
        programs[name].load(x, w)
    times = interleaved(
        {name: program.run for name, program in programs.items()}, yardstick="yardstick",
        rounds=settings.final_rounds, round_s=ROUND_S, race=True, keep=["A"],
    )  # fmt: skip
    finalists = [
        Contestant(name=n, times_s=times[n].times_s, yardstick_times_s=times["yardstick"].times_s, default=n == "A")
        for n in names if not times[n].pruned
    ]  # fmt: skip
    decision = decide(finalists, seed=run)
    copies = [c for name, c in decision.comparisons.items() if name != "A"]
    return {
        "crowned": decision.winner != "A", "beyond_noise": any(c.faster for c in copies),
        "ratios": [c.ratio.median for c in copies],
    }  # fmt: skip


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, "Probable inference", JASA 22, 1927)."""
    share, scale = hits / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


if __name__ == "__main__":
    sys.exit(main())
