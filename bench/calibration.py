"""How often would noise crown a winner? The same candidate under several names: `python bench/calibration.py`.

An A/A test of the tuner's final. In each of 200 runs one candidate meets copies of itself, each made
anew with buffers of its own, as challengers of the default do: rounds interleaved with `direct`, losers stopped by the
race, the decision by the tuner's own rule. A run in which a copy beats the original has a false winner. Printed are
the share of such runs with its 95% interval (Wilson), the same without the rule that a default is given up only for a
minimal gain, and how far the ratios of equals spread. Exit status 1 above --allowed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time

import numpy as np
from shapes import conv_shape, label

from autotune.compiler import ensure_c_compiler
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
    options = parser.parse_args()
    if options.device == "CPU":
        ensure_c_compiler()
    shape, spec, settings = conv_shape(*options.shape), describe_device(options.device), Settings()
    candidate = get_strategy(options.strategy).candidate()
    names = ["A", *(f"A{i}" for i in range(1, options.copies + 1))]
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape)

    def loaded(candidate: Candidate) -> Program:
        program = Program(shape, candidate, spec.device)
        program.load(x, w)
        return program

    print(f"{spec.device} {spec.arch}, {spec.cores} cores, {label(shape)}, {candidate}, load {os.getloadavg()[0]:.1f}")
    begun, crowned, beyond_noise, ratios = time.monotonic(), 0, 0, list[float]()
    for run in range(options.runs):
        order = ["yardstick", *rng.permutation(names)]
        programs = {name: loaded(DIRECT if name == "yardstick" else candidate) for name in order}
        times = interleaved(
            {name: program.run for name, program in programs.items()}, yardstick="yardstick",
            rounds=settings.final_rounds, round_s=ROUND_S, race=True, keep=["A"],
        )  # fmt: skip
        finalists = [
            Contestant(name=n, times_s=times[n].times_s, yardstick_times_s=times["yardstick"].times_s, default=n == "A")
            for n in names if not times[n].pruned
        ]  # fmt: skip
        decision = decide(finalists, seed=run)
        crowned += decision.winner != "A"
        copies = [c for name, c in decision.comparisons.items() if name != "A"]
        beyond_noise += any(c.faster for c in copies)
        ratios += [c.ratio.median for c in copies]
    low, high = wilson(crowned, options.runs)
    print(
        f"{options.runs} runs of {len(names)} copies in {time.monotonic() - begun:.0f} s, load {os.getloadavg()[0]:.1f}"
    )
    print(f"false winners: {crowned} of {options.runs}, {crowned / options.runs:.1%} (95%: {low:.1%} to {high:.1%})")
    print(f"without the minimal gain of {MIN_GAIN:.0%}: {beyond_noise / options.runs:.1%}")
    spread = np.quantile(ratios, (0.025, 0.5, 0.975)) if ratios else (math.nan,) * 3
    print(f"ratio of equals, middle 95% of medians: {spread[0]:.3f} to {spread[2]:.3f} round {spread[1]:.3f}")
    return 0 if crowned <= options.allowed * options.runs else 1


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, "Probable inference", JASA 22, 1927)."""
    share, scale = hits / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


if __name__ == "__main__":
    sys.exit(main())
