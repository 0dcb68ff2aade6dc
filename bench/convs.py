"""The winner against tinygrad's own lowerings, in one interleaved run: `python bench/convs.py [--budget 40s]`.

With `--torch`, PyTorch's convolution (oneDNN or cuDNN) is timed in the same rounds; it must be installed.

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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

SHAPES = {
    "cpu": ((1, 16, 32), (1, 64, 56), (1, 128, 28), (1, 256, 14), (1, 512, 7), (8, 64, 56)),
    "gpu": (
        (8, 256, 56), (32, 256, 14), (32, 128, 28), (32, 64, 56), (8, 64, 224), (32, 512, 7), (1, 64, 56), (1, 128, 28),
        (1, 256, 14), (1, 512, 7),
    ),
}  # fmt: skip
"""batch, cin = cout, height = width; 3x3, padding 1."""

DIRECT = Candidate.of("direct")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="40s", help="per shape, as 40s or 2m (default %(default)s)")
    parser.add_argument("--device", default=None, help="default: tinygrad's")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds of the comparison")
    parser.add_argument("--shapes", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--only", type=int, metavar="N", help="the first N shapes")
    parser.add_argument("--torch", action="store_true", help="time PyTorch's convolution too")
    parser.add_argument("--db", default=None, help="keep measurements here (default: a temporary file)")
    options = parser.parse_args()
    if options.device in (None, "CPU"):
        ensure_c_compiler()
    console = Console(width=None if sys.stdout.isatty() else 140)
    spec = describe_device(options.device)
    console.print(
        f"{spec.device} {spec.arch}, {spec.cores} cores, {spec.compiler or spec.driver}, tinygrad {spec.tinygrad}"
    )
    console.print(f"{platform.platform()}, load {os.getloadavg()[0]:.1f}, budget {options.budget} per shape")
    torch = ["PyTorch us"] if options.torch else []
    columns = ("shape", "direct us", "WINO=1 us", "winner us", *torch, "ratio", "95%", "error", "winner")
    table = Table(*columns, box=None)
    ratios: list[float] = []
    against_torch: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(options.db or str(Path(scratch) / "bench.db"))
        for batch, channels, size in SHAPES[options.shapes][: options.only]:
            shape = ConvShape.of((batch, channels, size, size), (channels, channels, 3, 3), padding=1)
            with LocalRunner(spec.device) as runner:
                winner = tune(
                    ConvKey(shape=shape, device=spec), store=store, runner=runner, budget=Budget.parse(options.budget)
                )
            row, ratio, over_torch = compare(shape, winner, spec.device, options.rounds, options.torch)
            table.add_row(*row)
            ratios.append(ratio)
            against_torch += over_torch
            print(" ".join(row), file=sys.stderr, flush=True)
    console.print(table)
    console.print(f"geometric mean of winner / better default: {geomean(ratios):.3f}")
    if against_torch:
        console.print(f"geometric mean of winner / PyTorch: {geomean(against_torch):.3f}")
    return 0


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def compare(
    shape: ConvShape, winner: Winner, device: str, rounds: int, with_torch: bool
) -> tuple[list[str], float, list[float]]:
    """One row of the table, winner over the better default, and over PyTorch if that was asked for."""
    programs = {"direct": Program(shape, DIRECT, device)}
    with Context(WINO=1):
        programs["WINO=1"] = Program(shape, DIRECT, device)
    programs["winner"] = Program(shape, winner.candidate, device)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape)
    for program in programs.values():
        program.load(x, w)
    runs = {name: program.run for name, program in programs.items()}
    if with_torch:
        runs["PyTorch"] = torch_convolution(x, w, shape, device)
    times = interleaved(runs, yardstick="direct", rounds=rounds, round_s=0.02, prune=False)
    medians = {name: median(t.times_s) for name, t in times.items()}
    default = min(("direct", "WINO=1"), key=lambda name: medians[name])
    ratio = paired_ratio(times["winner"].times_s, times[default].times_s).ratio
    error = f"{winner.error:.1e}" if winner.error is not None else "-"
    row = [
        f"{shape.batch}x{shape.cin} {shape.spatial[0]}x{shape.spatial[1]}",
        *(f"{medians[name] * 1e6:.0f}" for name in runs),
        f"{ratio.median:.3f}", f"{ratio.low:.3f}-{ratio.high:.3f}", error, str(winner.candidate),
    ]  # fmt: skip
    over_torch = [medians["winner"] / medians["PyTorch"]] if with_torch else []
    return row, ratio.median, over_torch


def torch_convolution(x: np.ndarray, w: np.ndarray, shape: ConvShape, device: str) -> Callable[[], float]:
    """PyTorch's float32 convolution without TF32; on CUDA a graph of 20, timed by events. Gives seconds for one.

    In a thread of its own: PyTorch and tinygrad each have a CUDA context, and which is current belongs to the thread.
    """
    thread = ThreadPoolExecutor(1)
    run = thread.submit(_torch_convolution, x, w, shape, device).result()
    return lambda: thread.submit(run).result()


def _torch_convolution(x: np.ndarray, w: np.ndarray, shape: ConvShape, device: str) -> Callable[[], float]:
    import torch

    place = "cuda" if device == "CUDA" else "cpu"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    tx, tw = (torch.tensor(values, dtype=torch.float32, device=place) for values in (x, w))
    padding = [before for before, _ in shape.padding]
    convolve = lambda: torch.nn.functional.conv2d(tx, tw, padding=padding)  # noqa: E731

    def on_cpu() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            convolve()
        return time.perf_counter() - started

    if place == "cpu":
        return on_cpu
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            convolve()
    torch.cuda.synchronize()
    graph, launches = torch.cuda.CUDAGraph(), 20
    with torch.cuda.graph(graph):
        for _ in range(launches):
            convolve()

    def on_cuda() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / launches

    return on_cuda


if __name__ == "__main__":
    sys.exit(main())
