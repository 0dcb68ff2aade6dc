"""What only a Mac can prove, in about ten minutes: `DEV=METAL python bench/metal.py > report.md`, and paste that.

    python bench/metal.py --quick          one shape, no search: about a minute
    DEV=CPU python bench/metal.py --quick  any other device, to see what it does

Every strategy is compiled by the device's own compiler, verified against float64 and timed beside direct, in the
process that `autotune tune` uses; then how the device slows down when it idles, then a search of each shape.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from autotune.compiler import CCompilerError, ensure_c_compiler
from autotune.conditions import conditions
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement
from autotune.reference import inputs
from autotune.runner import Request
from autotune.space import Space
from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.shape import ConvShape

# The three shapes of the investigation notes that the project grew out of.
SHAPES = [ConvShape.of((1, c, size, size), (c, c, 3, 3), padding=1) for c, size in ((8, 32), (16, 32), (32, 64))]
GAPS_S = (0.0, 0.01, 0.1, 1.0)
BUDGET = "120s"


def main() -> int:
    """Exit status 1 if a strategy is wrong, crashes or hangs on this device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one shape, no search")
    args = parser.parse_args()
    try:
        ensure_c_compiler()
    except CCompilerError as error:
        sys.stderr.write(f"{error}\n")  # only the CPU device needs one
    from strategies.graph.device import describe_device

    begun, spec = time.time(), describe_device()
    print(f"## tinygrad-autotune on {spec.title}\n")
    print(f"```\nPython {platform.python_version()}, {platform.platform()}, {platform.machine()}")
    print(json.dumps({**spec.to_json(), "conditions": conditions()}, indent=1) + "\n```\n")
    faults = 0
    for shape in SHAPES[:1] if args.quick else SHAPES:
        faults += _strategies(ConvKey(shape=shape, device=spec))
    _gaps(SHAPES[0], spec.device)
    if not args.quick:
        for shape in SHAPES:
            _search(shape, spec.device)
    print(f"Conditions at the end: `{json.dumps(conditions())}`; {time.time() - begun:.0f} s in all.")
    return faults > 0


def _strategies(key: ConvKey) -> int:
    """One row per candidate; how many ended as none may."""
    print(f"### {key.shape}\n")
    print("| candidate | status | error | us | of direct's time | compile s | kernels | largest source |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    faults = 0
    with LocalRunner(key.device.device) as runner:
        for measured in _measured(key, runner):
            faults += measured.status in ("wrong", "crashed", "timeout", "fallback")
            print(_row(measured), flush=True)
    print()
    return faults


def _measured(key: ConvKey, runner: LocalRunner) -> Iterator[Measurement]:
    for candidate in Space.of(key).presets:
        # kept: the slow are verified and timed as well, which is what the report is for
        yield from runner.measure(Request(key=key, candidates=(candidate,), rounds=7, hopeless=math.inf, keep=1))


def _row(m: Measurement) -> str:
    own, direct = (median(t) if t else 0.0 for t in (m.times_s, m.yardstick_times_s))
    times = f"{own * 1e6:.1f} | {own / direct:.2f}" if own and direct else " | "
    error = "" if m.error is None else f"{m.error:.1e}"
    source = max((kernel.source_bytes for kernel in m.kernels), default=0)
    status = f"{m.status}: {m.reason}" if m.reason and m.status != "inapplicable" else str(m.status)
    return f"| {m.candidate} | {status} | {error} | {times} | {m.compile_s:.2f} | {len(m.kernels)} | {source} |"


def _gaps(shape: ConvShape, device: str) -> None:
    """The first run after the device has idled, over one of many in a row: what warming up is for."""
    from strategies.graph.program import Program

    program = Program(shape, Candidate.of("direct"), device)
    program.load(*inputs(shape, "normal", 0))
    warm = _spun(program.run, 0.5)
    print("### After idling\n\n| idle s | first run / warm run |\n| --- | --- |")
    for gap_s in GAPS_S:
        firsts = []
        for _ in range(5):
            _spun(program.run, 0.3)
            time.sleep(gap_s)
            firsts.append(program.run())
        print(f"| {gap_s:g} | {median(firsts) / warm:.2f} |")
    print("\n| spun for s | run / warm run |\n| --- | --- |")
    for spun_s in (0.02, 0.05, 0.1, 0.25, 0.5):
        time.sleep(1.0)
        _spun(program.run, spun_s)
        print(f"| {spun_s:g} | {median(program.run() for _ in range(5)) / warm:.2f} |")
    print()


def _spun(run: object, seconds: float) -> float:
    """The median of runs that fill `seconds`."""
    assert callable(run)
    times, until = [run()], time.monotonic() + seconds
    while time.monotonic() < until:
        times.append(run())
    return median(times[len(times) // 2 :])


def _search(shape: ConvShape, device: str) -> None:
    texts = ("x".join(map(str, size)) for size in (shape.input_shape, shape.weight_shape))
    command = [
        sys.executable,
        "-m",
        "api.cli",
        "tune",
        *texts,
        "--padding",
        "1",
        "--device",
        device,
        "--budget",
        BUDGET,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"### A search of {shape}\n\n```\n{done.stdout}{done.stderr[-1000:] if done.returncode else ''}```\n")


if __name__ == "__main__":
    sys.exit(main())
