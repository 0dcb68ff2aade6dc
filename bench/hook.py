"""What leaving the hook on costs, and that it changes nothing: `python bench/hook.py [--rounds 9] [--graphs 2000]`.

Three parts. A network of 20 convolutions is scheduled by tinygrad alone and with the hook where no winner is known, in
interleaved rounds, tinygrad's schedule cache emptied before each; printed are medians of processor time and the ratio
of the same round.
Then the time of one lookup in memory. Then random graphs (convolutions, movement, reductions and elementwise
operations, in chains and diamonds, some of them differentiated) computed by tinygrad alone and with every strategy
forced, in turn or each on every graph: how many, how many convolutions were rewritten, and the largest difference. A
graph that raises, falls back or differs by more than the bound makes the verdict FAILED and the status 1; Hypothesis
reduces it to the smallest such graph. The graphs are made of the seeds from `--seed` on, 50 of each, by `--jobs`
processes at once:

    python bench/hook.py --rounds 0 --graphs 2000 --each --jobs 64 --deadline 9m
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from on_device import start_on
from rich.console import Console
from scheduling import Network
from tinygrad import Tensor
from tinygrad.helpers import Context
from tinygrad.schedule import schedule_cache

import autotune
from autotune import bundle
from autotune.decisions import Winners
from autotune.job import Budget
from autotune.reference import Array
from autotune.report import Outcome
from autotune.sources import open_source
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.registry import strategies
from strategies.shape import ConvShape

GPU_ONLY = "shared_memory"
CHUNK = 50
"""Graphs of one seed, in one process."""
BOUND = 1e-3
"""Of a whole graph, which may hold several convolutions: relative to its largest value."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk of graphs")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--each", action="store_true", help="every strategy on every graph, not one in turn")
    parser.add_argument("--deadline", help="for the graphs, as 90s or 9m; what is not begun by then is left out")
    parser.add_argument("--device", default="CPU", help="for the graphs (default %(default)s)")
    parser.add_argument("--chunk", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    start_on(options.device)
    if options.chunk:
        print(json.dumps(asdict(check_graphs(options.graphs, options.seed, options.device, options.each))))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as directory:
        empty = Path(directory) / "winners.json"
        bundle.write(empty, [])
        if options.rounds:
            _print_overhead(console, empty, options.rounds)
            _print_lookup(console, empty)
    return print_graphs(console, options) if options.graphs else 0


def _print_overhead(console: Console, empty: Path, rounds: int) -> None:
    network = Network()
    image = Tensor.randn(1, 32, 56, 56).realize()
    alone: list[float] = []
    hooked: list[float] = []
    for turn in range(rounds + 1):
        for seconds, installed in ((alone, False), (hooked, True)):
            if installed:
                autotune.install(empty)
            schedule_cache.clear()
            output = network(image)
            started = time.process_time()
            output.schedule_linear()
            if turn:  # the first round warms tinygrad's own caches
                seconds.append(time.process_time() - started)
            autotune.uninstall()
    ratios = [b / a for a, b in zip(alone, hooked, strict=True)]
    console.print(
        f"scheduling 20 convolutions: tinygrad {statistics.median(alone) * 1e3:.1f} ms, with the hook and no winner "
        f"{statistics.median(hooked) * 1e3:.1f} ms, ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f}-{max(ratios):.3f})"
    )


def _print_lookup(console: Console, empty: Path) -> None:
    device = describe_device("CPU", surroundings=False)
    winners = Winners(open_source(empty), guesses=False, warn=lambda _, message: console.print(message))

    def keys() -> list[ConvKey]:
        return [
            ConvKey(shape=ConvShape.of((1, 64, 56, 56), (couts, 64, 3, 3)), device=device) for couts in range(1, 21)
        ]

    winners.answers(keys())
    times = []
    for _ in range(200):
        asked = keys()  # others each time, as from a graph
        started = time.process_time()
        winners.answers(asked)
        times.append((time.process_time() - started) / len(asked))
    console.print(
        f"lookup in memory: {statistics.median(times) * 1e6:.2f} us a convolution (at best {min(times) * 1e6:.2f})"
    )


Step = Callable[[Tensor, Tensor], Tensor]


def _weight(couts: int, cin: int, size: int) -> Tensor:
    values = np.random.default_rng(couts * 100 + cin * 10 + size).normal(size=(couts, cin, size, size))
    return Tensor((values / (cin * size)).astype(np.float32)).realize()


WEIGHTS = {(cin, size): _weight(4, cin, size) for cin in (1, 2, 4) for size in (1, 3, 5)}
STEPS: dict[str, Step] = {
    "conv 3x3": lambda x, _: x.conv2d(WEIGHTS[4, 3], padding=1),
    "conv 3x3 unpadded": lambda x, _: x.pad((1, 1, 1, 1)).conv2d(WEIGHTS[4, 3]),
    "conv of groups": lambda x, _: x.conv2d(WEIGHTS[2, 3], padding=1, groups=2),
    "depthwise": lambda x, _: x.conv2d(WEIGHTS[1, 3], padding=1, groups=4),
    "conv 1x1": lambda x, _: x.conv2d(WEIGHTS[4, 1]),
    "conv 5x5": lambda x, _: x.conv2d(WEIGHTS[4, 5], padding=2),
    "conv transposed": lambda x, _: x.conv_transpose2d(WEIGHTS[4, 3], padding=1),
    "conv strided": lambda x, _: x.conv2d(WEIGHTS[4, 3], padding=1, stride=2).interpolate(x.shape[2:], mode="nearest"),
    "conv dilated": lambda x, _: x.conv2d(WEIGHTS[4, 3], padding=2, dilation=2),
    "conv of a channel": lambda x, _: x[:, :1].expand(*x.shape).conv2d(WEIGHTS[4, 3], padding=1),
    "relu": lambda x, _: x.relu(),
    "scaled": lambda x, _: x * 0.5 + 1,
    "residual": lambda x, old: x + old,
    "product": lambda x, old: x * old.sigmoid(),
    "swapped": lambda x, _: x.permute(0, 1, 3, 2),
    "flipped": lambda x, _: x.flip(2),
    "rolled": lambda x, _: x.roll(1, 3),
    "flattened and back": lambda x, _: x.flatten(1).relu().reshape(*x.shape),
    "channels last and back": lambda x, _: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "shuffled": lambda x, _: x.reshape(x.shape[0], 1, 2, 2, *x.shape[2:]).permute(0, 1, 3, 2, 4, 5).reshape(*x.shape),
    "padded and cut": lambda x, _: x.pad((1, 1, 1, 1)).relu()[:, :, 1:-1, 1:-1],
    "pooled": lambda x, _: x.avg_pool2d((3, 3), stride=1, padding=1),
    "normed": lambda x, _: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1),
    "stored": lambda x, _: x.contiguous(),
    "summed": lambda x, _: x + x.sum(1, keepdim=True) / 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a number of graphs came to. `fault` is the first thing that was wrong, if anything was."""

    graphs: int = 0
    runs: int = 0
    convolutions: int = 0
    applied: int = 0
    difference: float = 0.0
    fault: str = ""

    def __add__(self, other: Checked) -> Checked:
        return Checked(
            graphs=self.graphs + other.graphs, runs=self.runs + other.runs, applied=self.applied + other.applied,
            convolutions=self.convolutions + other.convolutions,
            difference=max(self.difference, other.difference), fault=self.fault or other.fault,
        )  # fmt: skip


def print_graphs(console: Console, options: argparse.Namespace) -> int:
    """All graphs, in processes of CHUNK graphs each, `--jobs` at once; then the verdict."""
    begun = time.monotonic()
    ends = begun + (Budget.parse(options.deadline).seconds or 0.0) if options.deadline else float("inf")
    chunks = [min(CHUNK, options.graphs - first) for first in range(0, options.graphs, CHUNK)]
    total = Checked()
    with ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(options.seed, options.seed + len(chunks))
        for index, one in enumerate(pool.map(lambda *chunk: in_child(options, *chunk, ends), chunks, seeds)):
            total += one
            if one.graphs:
                console.print(f"seed {options.seed + index}: {one.graphs} graphs, {time.monotonic() - begun:.0f} s")
    if total.fault:
        verdict = f"FAILED: {total.fault}"
    else:
        verdict = "PASSED" if total.graphs >= options.graphs else "NOT COMPLETE, nothing failed"
    console.print(
        f"{total.graphs} of {options.graphs} random graphs on {options.device}, {total.runs} runs with a strategy "
        f"forced ({'each' if options.each else 'one in turn'} of {', '.join(names_on(options.device))}): "
        f"{total.convolutions} convolutions met, {total.applied} rewritten, none fell back, largest difference "
        f"{total.difference:.1e} (bound {BOUND:.0e}), {time.monotonic() - begun:.0f} s\n{verdict}", highlight=False,
    )  # fmt: skip
    return int(verdict != "PASSED")


def in_child(options: argparse.Namespace, count: int, number: int, ends: float) -> Checked:
    """One chunk in a process of its own: tinygrad compiles in one thread of a process. Nothing, if there is no time."""
    left_s = ends - time.monotonic()
    if left_s <= 0:
        return Checked()
    command = [
        sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--graphs", str(count),
        "--seed", str(number), "--chunk", *(["--each"] if options.each else []),
    ]  # fmt: skip
    environ = os.environ | {"PARALLEL": "0"}
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=min(left_s, 1e6), check=False
        )
    except subprocess.TimeoutExpired:
        return Checked()
    last = (done.stdout.splitlines() or [""])[-1]
    if not last.startswith("{"):
        return Checked(fault=f"seed {number} ended with status {done.returncode}: {done.stderr[-500:]}")
    return Checked(**json.loads(last))


def names_on(device: str) -> list[str]:
    return [item.name for item in strategies() if item.lower is not None and (item.name != GPU_ONLY or device != "CPU")]


def forced(name: str) -> AbstractContextManager[None]:
    """The strategy with its default parameters; blocks as small as these graphs where it would not apply else."""
    small = {"cout_block": 16, "tile_block": 32, "couts": 4, "tiles": 4, "depth": 4} if name == GPU_ONLY else {}
    return autotune.forced(name, **small)


def check_graphs(count: int, number: int, device: str, each: bool) -> Checked:
    """`count` graphs made of the seed `number`, one after the other."""
    names = names_on(device)
    image = Tensor(np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)).realize()
    worst, done, runs = 0.0, 0, 0
    before = autotune.stats()

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=6), differentiated=st.booleans())
    def check(steps: list[str], differentiated: bool) -> None:
        nonlocal worst, done, runs

        def run() -> Array:
            old, new = image, STEPS["conv 3x3"](image, image)
            for step in steps:
                old, new = new, STEPS[step](new, old)
            result: Array = (new.square().mean().gradient(image)[0] if differentiated else new).numpy()
            return result

        expected = run()
        done += 1
        for name in names if each else [names[(number + done) % len(names)]]:
            fallbacks = autotune.stats().fallbacks
            with forced(name):
                found = run()
            worst = max(worst, expect_same(name, found, expected, autotune.stats().fallbacks - fallbacks))
            runs += 1

    fault = ""
    with Context(NOOPT=1):  # compiling is most of the time
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            fault = f"seed {number}: {error}"
    did = {f.name: getattr(autotune.stats(), f.name) - getattr(before, f.name) for f in fields(autotune.Stats)}
    return Checked(
        graphs=done, runs=runs, convolutions=did["convolutions"], applied=did["applied"], difference=worst, fault=fault
    )


def expect_same(name: str, found: Array, expected: Array, fallbacks: int) -> float:
    """How far apart they are. Raises AssertionError if that is too far, or if the hook had to fall back."""
    reports = [report for report in autotune.explain_last() if report.outcome is Outcome.FALLBACK]
    too_small = [report for report in reports if "NotApplicableError" in report.reason]  # for blocks of shared_memory
    assert fallbacks == (len(too_small) if name == GPU_ONLY else 0), f"{name}: {fallbacks} fallbacks: {reports}"
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
    assert difference <= BOUND, f"{name}: differs by {difference:.1e}"
    return difference


if __name__ == "__main__":
    sys.exit(main())
