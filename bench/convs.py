"""The winner against tinygrad's own lowerings, in one interleaved run: `python bench/convs.py [--budget 40s]`.

With `--torch`, PyTorch's convolution (oneDNN or cuDNN) is timed in the same rounds, with its tensors as ours are and,
below float32, with channels last as well, which is how cuDNN's tensor cores want them; it must be installed. With
`--beam FILE`, what bench/beam.py found for direct and `WINO=1` is replayed in the same rounds, without searching.

For each shape the tuner searches within the budget; then direct, tinygrad's `WINO=1` itself (not our rebuilt
tensor_winograd) and the winner are compiled anew in one process and timed in interleaved rounds. Printed are medians,
the ratio winner / better default with its 95% interval over rounds, and the geometric means of the ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, conv_shape, label
from tinygrad import Context, Device

from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.statistics import median, paired_ratio
from autotune.timing import interleaved
from autotune.tune import tune
from autotune.winner import Winner
from db import open_store
from strategies.candidate import Candidate, Option
from strategies.graph.device import describe_device
from strategies.graph.program import NONE, Program
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.shape import DTYPES, ConvShape

LOWERINGS = ("direct", "WINO=1")
CHANNELS_LAST = "PyTorch channels last"
DIRECT = Candidate.of("direct")
LAUNCHES = 20
"""Of one convolution in a graph, on devices that have graphs: what the launch of a graph costs is shared, as in a
network, by tinygrad's as by PyTorch's."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="40s", help="per shape, as 40s or 2m (default %(default)s)")
    parser.add_argument("--device", default=None, help="default: tinygrad's")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds of the comparison")
    parser.add_argument("--shapes", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--allow-tf32", action="store_true", help="for the winner and for PyTorch")
    parser.add_argument("--only", type=int, metavar="N", help="the first N shapes")
    parser.add_argument("--torch", action="store_true", help="time PyTorch's convolution too")
    parser.add_argument("--beam", type=Path, metavar="FILE", help="replay what bench/beam.py found")
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
    beams = Beams.read(options.beam, spec) if options.beam is not None else Beams()
    torch = [f"{name} us" for name in torch_formats(options.dtype)] if options.torch else []
    searched = [f"{lowering} BEAM us" for lowering in LOWERINGS] if options.beam is not None else []
    columns = ("shape", "direct us", "WINO=1 us", *searched, "winner us", *torch, "ratio", "95%", "error", "winner")
    table = Table(*columns, box=None)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(options.db or str(Path(scratch) / "bench.db"))
        for size in SHAPES[options.shapes][: options.only]:
            shape = conv_shape(*size, dtype=options.dtype)
            key = ConvKey(shape=shape, device=spec, policy=Policy(allow_tf32=options.allow_tf32))
            with LocalRunner(spec.device) as runner:
                winner = tune(key, store=store, runner=runner, budget=Budget.parse(options.budget))
            row = compare(winner, options.rounds, beams, options.torch)
            table.add_row(*row.cells)
            rows.append(row)
            print(" ".join(row.cells), file=sys.stderr, flush=True)
    console.print(table)
    for name in dict.fromkeys(name for row in rows for name in row.over):
        console.print(
            f"geometric mean of winner / {name}: {geomean([r.over[name] for r in rows if name in r.over]):.3f}"
        )
    return 0


@dataclass(frozen=True, slots=True)
class Row:
    """One shape: the cells of the table, and the winner's time over others' by name."""

    cells: tuple[str, ...]
    over: dict[str, float]


@dataclass(frozen=True, slots=True)
class Beams:
    """What bench/beam.py found: options by kernel, by shape and lowering. Of ended searches, what there is."""

    found: dict[tuple[ConvShape, str], dict[str, list[Option]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, device: DeviceSpec) -> Beams:
        """Raises SystemExit if they are of another device: kernels, and what suits them, are others there."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["machine"]["device"] != (here := json.loads(json.dumps(device.identity()))):
            raise SystemExit(
                f"{path} was searched on {data['machine']['device']}, this is {here}: run bench/beam.py here"
            )
        return cls(
            {
                (ConvShape.from_json(e["shape"]), e["lowering"]): {k["ast"]: k["options"] for k in e["kernels"]}
                for e in data["searches"]
            }
        )

    def program(self, shape: ConvShape, lowering: str, device: str) -> Program | None:
        options = self.found.get((shape, lowering))
        if options is None:
            return None
        program = stock(shape, lowering, device, options)
        if program.unmatched:
            raise SystemExit(
                f"{label(shape)} {lowering}: BEAM's options fit no kernel any more: run bench/beam.py --again"
            )
        return program


def stock(shape: ConvShape, lowering: str, device: str, options: Mapping[str, Sequence[Option]] = NONE) -> Program:
    """tinygrad's own lowering, by default or under its `WINO=1`."""
    with Context(WINO=int(lowering == "WINO=1")):
        return Program(shape, DIRECT, device, options=options)


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def compare(winner: Winner, rounds: int, beams: Beams, with_torch: bool) -> Row:
    """Everything compiled anew and timed in the same rounds."""
    shape, device, tf32 = winner.key.shape, winner.key.device.device, winner.key.policy.allow_tf32
    programs = {lowering: stock(shape, lowering, device) for lowering in LOWERINGS}
    searched = {f"{lowering} BEAM": beams.program(shape, lowering, device) for lowering in LOWERINGS}
    programs |= {name: program for name, program in searched.items() if program is not None}
    programs["winner"] = Program(shape, winner.candidate, device)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape)
    for program in programs.values():
        program.load(x, w)
    launches = LAUNCHES if Device[device].graph is not None else 1
    runs = {name: program.repeated(launches) for name, program in programs.items()}
    formats = torch_formats(shape.dtype) if with_torch else ()
    for name in formats:
        runs[name] = torch_convolution(x, w, shape, device, channels_last=name == CHANNELS_LAST, tf32=tf32)
    times = interleaved(runs, yardstick="direct", rounds=rounds, round_s=0.02, prune=False)
    medians = {name: median(t.times_s) for name, t in times.items()}
    default = min(LOWERINGS, key=lambda name: medians[name])
    over = {name: paired_ratio(times["winner"].times_s, times[name].times_s).ratio for name in runs if name != "winner"}
    stock_best = min((name for name in programs if name != "winner"), key=lambda name: medians[name])
    summary = {"better default": over[default].median, "stock tinygrad's best": over[stock_best].median}
    summary |= {name: over[name].median for name in formats}
    columns = [*LOWERINGS, *(searched if beams.found else ()), "winner", *formats]
    cells = (
        label(shape), *(f"{medians[name] * 1e6:.0f}" if name in medians else "-" for name in columns),
        f"{over[default].median:.3f}", f"{over[default].low:.3f}-{over[default].high:.3f}",
        f"{winner.error:.1e}" if winner.error is not None else "-", str(winner.candidate),
    )  # fmt: skip
    return Row(cells, summary)


def torch_formats(dtype: str) -> tuple[str, ...]:
    return ("PyTorch",) if dtype == "float32" else ("PyTorch", CHANNELS_LAST)


def torch_convolution(
    x: np.ndarray, w: np.ndarray, shape: ConvShape, device: str, *, channels_last: bool, tf32: bool
) -> Callable[[], float]:
    """PyTorch's convolution; on CUDA a graph of LAUNCHES, timed by events. Gives seconds for one.

    In a thread of its own: PyTorch and tinygrad each have a CUDA context, and which is current belongs to the thread.
    """
    thread = ThreadPoolExecutor(1)
    run = thread.submit(_torch_convolution, x, w, shape, device, channels_last, tf32).result()
    return lambda: thread.submit(run).result()


def _torch_convolution(
    x: np.ndarray, w: np.ndarray, shape: ConvShape, device: str, channels_last: bool, tf32: bool
) -> Callable[[], float]:
    import torch

    place = "cuda" if device == "CUDA" else "cpu"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, tf32
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    tx, tw = (
        torch.tensor(values, dtype=getattr(torch, shape.dtype), device=place).contiguous(memory_format=format_)
        for values in (x, w)
    )
    padding = [before for before, _ in shape.padding]
    others = {"stride": shape.stride, "dilation": shape.dilation, "groups": shape.groups}
    convolve = lambda: torch.nn.functional.conv2d(tx, tw, padding=padding, **others)  # noqa: E731

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
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            convolve()

    def on_cuda() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / LAUNCHES

    return on_cuda


if __name__ == "__main__":
    sys.exit(main())
