"""What leaving the hook on costs, and that it changes nothing: `python bench/hook.py [--rounds 9] [--graphs 2000]`.

Three parts. A network of 20 convolutions is scheduled by tinygrad alone and with the hook where no winner is known, in
interleaved rounds, tinygrad's schedule cache emptied before each; printed are medians of processor time, the ratio of
the same round, and, which other programs on the machine move least, the share of a schedule that looking takes.
Then the time of one lookup in memory. Then random graphs (random_graphs.py: convolutions, movement, reductions and
elementwise operations, Variables, in chains and diamonds, some differentiated, some assigned to what they read), each
computed by tinygrad alone and with every strategy, or one in turn, without the hook, which would rescue what raises:
how many, how many convolutions were rewritten, and the largest difference. A graph that raises or differs by more than
the bound makes the verdict FAILED and the status 1; Hypothesis reduces it to the smallest such graph. The graphs are
made of the seeds from `--seed` on, 50 of each, by `--jobs` processes at once; one takes about 2 seconds of a processor,
almost all of which tinygrad lowers kernels in, and with `--each` some 10:

    python bench/hook.py --rounds 0 --graphs 2000 --jobs 24 --deadline 8m
    python bench/hook.py --rounds 0 --graphs 2000 --each --jobs 64 --deadline 9m
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from on_device import start_on
from random_graphs import BOUND, Graph, Met, difference, graphs, names_on
from rich.console import Console
from scheduling import Network
from tinygrad import Tensor
from tinygrad.helpers import Context
from tinygrad.schedule import schedule_cache
from tinygrad.uop.ops import UOp

import autotune
from autotune import bundle
from autotune.decisions import Winners
from autotune.job import Budget
from autotune.sources import open_source
from strategies.graph import seam
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.shape import ConvShape

CHUNK = 50
"""Graphs of one seed, in one process."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk of graphs")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--each", action="store_true", help="every strategy on every graph, not one in turn")
    parser.add_argument("--deadline", help="for the graphs, as 90s or 9m; what is not begun by then is left out")
    parser.add_argument("--device", default="CPU", help="for the graphs (default %(default)s)")
    parser.add_argument("--left", type=float, default=float("inf"), help=argparse.SUPPRESS)
    parser.add_argument("--chunk", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    start_on(options.device)
    if options.chunk:
        checked = check_graphs(options.graphs, options.seed, options.device, options.each, options.left)
        print(json.dumps(asdict(checked)))
        return 0
    sys.stdout.reconfigure(line_buffering=True)  # what is printed stays if a long run is cut
    console = Console(width=None if sys.stdout.isatty() else 120)
    spec = describe_device(options.device)
    console.print(
        f"{spec.device} {spec.arch}, {spec.cores} cores, {spec.compiler or spec.driver}, tinygrad {spec.tinygrad}, "
        f"{platform.platform()}, load {os.getloadavg()[0]:.1f}", highlight=False, soft_wrap=True,
    )  # fmt: skip
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
    shares: list[float] = []
    looking = 0.0
    rewrite = seam.rewrite

    def timed(*args: Any) -> UOp:
        nonlocal looking
        started = time.process_time()
        result = rewrite(*args)
        looking = time.process_time() - started
        return result

    seam.rewrite = timed
    for turn in range(rounds + 1):
        ways = ((alone, False), (hooked, True))
        for seconds, installed in ways if turn % 2 else reversed(ways):
            if installed:
                autotune.install(empty)
            schedule_cache.clear()
            output = network(image)
            gc.collect()  # else one of the two pays now and then for what both have left behind
            started = time.process_time()
            output.schedule_linear()
            if turn:  # the first round warms tinygrad's own caches
                seconds.append(time.process_time() - started)
            autotune.uninstall()
        if turn:
            shares.append(looking / (hooked[-1] - looking))
    seam.rewrite = rewrite
    ratios = [b / a for a, b in zip(alone, hooked, strict=True)]
    console.print(
        f"scheduling 20 convolutions: tinygrad {statistics.median(alone) * 1e3:.1f} ms, with the hook and no winner "
        f"{statistics.median(hooked) * 1e3:.1f} ms, ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f}-{max(ratios):.3f})\nlooking for them and their winners took "
        f"{statistics.median(shares):.1%} of the rest of the same schedule ({min(shares):.1%}-{max(shares):.1%}); "
        f"{rounds} rounds", highlight=False, soft_wrap=True,
    )  # fmt: skip


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a number of graphs came to. `runs` counts by strategy, `applied` the convolutions that each has rewritten,
    `ends` by what was asked of a graph; `fault` is the first thing that was wrong, if anything was, and `raised`
    whether that was an exception; `cpu_s` is processor time, compilers' included."""

    graphs: int = 0
    runs: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    convolutions: int = 0
    applied: dict[str, int] = field(default_factory=dict)
    declined: int = 0
    difference: float = 0.0
    fault: str = ""
    raised: bool = False
    cpu_s: float = 0.0

    def __add__(self, other: Checked) -> Checked:
        return Checked(
            graphs=self.graphs + other.graphs, runs=Counter(self.runs) + Counter(other.runs),
            ends=Counter(self.ends) + Counter(other.ends), applied=Counter(self.applied) + Counter(other.applied),
            convolutions=self.convolutions + other.convolutions, declined=self.declined + other.declined,
            difference=max(self.difference, other.difference), fault=self.fault or other.fault,
            raised=self.raised or other.raised, cpu_s=self.cpu_s + other.cpu_s,
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
                console.print(
                    f"seed {options.seed + index}: {one.graphs} graphs, {sum(one.applied.values())} convolutions "
                    f"rewritten, {one.cpu_s:.0f} s of a processor; "
                    f"{total.graphs} after {time.monotonic() - begun:.0f} s"
                )
    if total.fault:
        verdict = f"FAILED: {total.fault}"
    else:
        verdict = "PASSED" if total.graphs >= options.graphs else "NOT COMPLETE, nothing failed"
    listed = ", ".join(f"{name} {count}" for name, count in sorted(total.runs.items()))
    ends = ", ".join(f"{name} {count}" for name, count in sorted(total.ends.items()))
    applied = ", ".join(f"{name} {count}" for name, count in sorted(total.applied.items()))
    equal, left = sum(total.runs.values()), f"{total.declined} declined"
    console.print(
        f"{total.graphs} of {options.graphs} random graphs on {options.device} ({ends})\n"
        f"with a strategy each, exceptions not rescued: {listed}\n"
        f"{total.convolutions} convolutions met; rewritten by {applied or 'none'}; {left}\n"
        f"{equal} equal, {int(bool(total.fault))} not, {int(total.raised)} raised; largest difference "
        f"{total.difference:.1e} (bound {BOUND:.0e}), {time.monotonic() - begun:.0f} s with {options.jobs} at once, "
        f"{total.cpu_s / max(total.graphs, 1):.1f} s of a processor each\n{verdict}", highlight=False,
    )  # fmt: skip
    return int(verdict != "PASSED")


def in_child(options: argparse.Namespace, count: int, number: int, ends: float) -> Checked:
    """One chunk in a process of its own: tinygrad compiles in one thread of a process. Nothing, if there is no time."""
    left_s = ends - time.monotonic()
    if left_s <= 0:
        return Checked()
    command = [
        sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--graphs", str(count),
        "--seed", str(number), "--left", str(left_s), "--chunk", *(["--each"] if options.each else []),
    ]  # fmt: skip
    environ = os.environ | {"PARALLEL": "0"}
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=min(left_s + 120, 1e6), check=False
        )
    except subprocess.TimeoutExpired:
        return Checked(fault=f"seed {number}: a graph did not end within two minutes after the deadline")
    last = (done.stdout.splitlines() or [""])[-1]
    if not last.startswith("{"):
        return Checked(fault=f"seed {number} ended with status {done.returncode}: {done.stderr[-500:]}")
    return Checked(**json.loads(last))


def check_graphs(count: int, number: int, device: str, each: bool, left_s: float) -> Checked:
    """`count` graphs made of the seed `number`, one after the other, fewer when `left_s` seconds are over."""
    names, ends = names_on(device), time.monotonic() + left_s
    total, met, worst = Counter[str](), Met(), 0.0
    asked = Counter[str]()

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(graph=graphs())
    def check(graph: Graph) -> None:
        nonlocal worst
        if time.monotonic() > ends:
            return
        expected = graph.run()
        asked[graph.end] += 1
        turn = zlib.crc32(str(graph).encode())  # Hypothesis runs what failed again: with the same strategy
        for name in names if each else [names[turn % len(names)]]:
            worst = max(worst, difference(name, graph, expected, met))
            total[name] += 1

    fault, raised = "", False
    with Context(NOOPT=1):  # compiling is most of the time
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            fault, raised = f"seed {number}: {error}", error.__cause__ is not None
    return Checked(
        graphs=asked.total(), runs=dict(total), ends=dict(asked), convolutions=met.convolutions,
        applied=dict(met.applied), declined=len(met.declined), difference=worst, fault=fault, raised=raised,
        cpu_s=sum(os.times()[:4]),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
