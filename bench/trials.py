"""How many candidates a minute are measured, and what the time goes into: `python bench/trials.py [--candidates 20]`.

The same candidates each time: the presets, then some at random from the whole space, one request each as in a search
whose best is as good as the presets. To compare with another state of the code, give it its checkout:

    git worktree add ../before COMMIT && PYTHONPATH=../before python bench/trials.py
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import time
from pathlib import Path

from shapes import conv_shape, label

import autotune
from autotune.compiler import ensure_c_compiler
from autotune.local_runner import LocalRunner
from autotune.runner import Request
from autotune.space import Space
from strategies.graph.device import describe_device
from strategies.key import ConvKey


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 64, 28), metavar=("BATCH", "CHANNELS", "SIZE"))
    parser.add_argument("--device", default="CPU")
    options = parser.parse_args()
    if options.device == "CPU":
        ensure_c_compiler()
    key = ConvKey(shape=conv_shape(*options.shape), device=describe_device(options.device))
    space, rng = Space.of(key), random.Random(0)
    drawn = (space.sample(rng) for _ in range(10 * options.candidates))
    candidates = list(dict.fromkeys([*space.presets, *(c for c in drawn if c is not None)]))[: options.candidates]
    root = Path(autotune.__file__).parent.parent
    print(
        f"{label(key.shape)} on {key.device.device}, {key.device.cores} cores, load {os.getloadavg()[0]:.1f}, "
        f"code of {root.name}"
    )
    ended: collections.Counter[str] = collections.Counter()
    compiling_s = 0.0
    with LocalRunner(options.device) as runner:
        runner.measure(
            Request(key=key, candidates=tuple(candidates[:1]))
        )  # the child starts, the reference is computed
        begun = time.monotonic()
        for candidate in candidates:
            started = time.monotonic()
            [measurement] = runner.measure(Request(key=key, candidates=(candidate,)))
            took_s = time.monotonic() - started
            ended[str(measurement.status)] += 1
            compiling_s += measurement.compile_s
            print(
                f"{took_s:7.2f} s, {measurement.compile_s:6.2f} s of kernels, {measurement.status}: {candidate}",
                flush=True,
            )
        total_s = time.monotonic() - begun
    print(
        f"{len(candidates)} candidates in {total_s:.0f} s: {60 * len(candidates) / total_s:.1f} a minute; {dict(ended)}"
    )
    print(f"kernels took {compiling_s:.0f} s to compile, each for itself; load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
