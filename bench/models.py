"""Whole networks, every way in one interleaved run: `python bench/models.py --models resnet18 --batch 1 --device CPU`.

For each network and batch:

1. its convolutions are tuned within `--budget`, into `--db`; what has a winner there is not tuned again;
2. stock tinygrad's kernels are searched with BEAM=2 for at most `--beam-limit`, all networks together, kernel by
   kernel, those first that make up most of their network. `--processes` processes share the GPUs: they compile side by
   side and time in turn, so take as many as there are processors. On a CPU take one: compiling would disturb what
   another times. What was found is kept in `--beam` and not searched again, what was not reached stays with the
   heuristics;
3. stock tinygrad, `WINO=1`, BEAM=2 (replayed), the hook, the hook with frozen weights and, with `--torch`, PyTorch run
   in interleaved rounds in one process; each is captured (TinyJit; a CUDA graph in PyTorch) and timed by the wall, from
   the call to the result;
4. each way is started in new processes: seconds to the first result, schedule and compile included, the compile cache
   warm, the weights in place.

`--budget 0`, `--beam-limit 0`, `--rounds 0` and `--starts 0` leave a step out, so that a long run can be cut in pieces;
one that was stopped goes on where it was. Tuning and comparing take one GPU: where there are more, run a process for
each under its own CUDA_VISIBLE_DEVICES; they may share `--db` and `--beam`, and a winner found on one GPU is one of its
likes. On two GPUs and 32 processors, in three
commands of at most ten minutes, of which the first two may be repeated:

    models="python bench/models.py --device CUDA"
    $models --batch 1 32 --beam-limit 8m --processes 32 --budget 0 --rounds 0 --starts 0

    models="python bench/models.py --device CUDA --beam-limit 0 --rounds 0 --starts 0 --batch 1 32"
    (export CUDA_VISIBLE_DEVICES=0; $models --models resnet18 vgg16 --budget 90s) &
    (export CUDA_VISIBLE_DEVICES=1; $models --models resnet50 --budget 190s) & wait

    models="python bench/models.py --device CUDA --beam-limit 0 --budget 0 --torch"
    (export CUDA_VISIBLE_DEVICES=0; $models --models resnet18 vgg16; $models --models vgg16 --batch 32 --starts 0) &
    (export CUDA_VISIBLE_DEVICES=1; $models --models resnet50; $models --models resnet18 resnet50 --batch 32 --starts 0)
    wait
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from on_device import start_on
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tinygrad.uop.ops import UOp

HERE = Path(__file__).parent
NETWORKS = ("resnet18", "resnet50", "vgg16")
TINYGRAD, WINO, BEAM, HOOK, FROZEN, TORCH = "tinygrad", "WINO=1", "BEAM=2", "hook", "hook, frozen", "PyTorch"
WAYS = (TINYGRAD, WINO, BEAM, HOOK, FROZEN)


def main() -> int:
    options = _parse()
    start_on(options.device)
    if options.search:
        return search(options)
    if options.start:
        return start(options, options.start[0], int(options.start[1]), options.start[2])
    return measure(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--device", default="CPU", help="CPU, CUDA, ... (default %(default)s)")
    parser.add_argument("--budget", default="3m", help="of tuning one network at one batch (default %(default)s)")
    parser.add_argument("--beam-limit", default="10m", help="of all networks together (default %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of the BEAM=2 search (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--starts", type=int, default=2, help="new processes for each way")
    parser.add_argument("--torch", action="store_true", help="PyTorch too, which must be installed")
    parser.add_argument("--db", default=str(HERE / "models.db"), help="default bench/models.db")
    parser.add_argument("--beam", type=Path, help="default bench/beam/models-DEVICE.json")
    parser.add_argument("--search", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device.upper()
    options.beam = options.beam or HERE / "beam" / f"models-{options.device.lower().replace(':', '-')}.json"
    return options


def measure(options: argparse.Namespace) -> int:
    """All the steps for every network, then one table of each."""
    from strategies.graph.device import describe_device

    sys.stdout.reconfigure(line_buffering=True)  # what is printed stays if a long run is cut
    console = Console(width=None if sys.stdout.isatty() else 140)
    spec = describe_device()
    console.print(
        f"{spec.device} {spec.arch}, {spec.cores} cores, {spec.compiler or spec.driver}, tinygrad {spec.tinygrad}"
    )
    console.print(f"{platform.platform()}, load {os.getloadavg()[0]:.1f}, tuning {options.budget} a network")
    wanted = [(name, batch) for name in options.models for batch in options.batch]
    if (limit_s := _seconds(options.beam_limit)) > 0:
        search_within(limit_s, options)
    for name, batch in wanted:
        if (budget_s := _seconds(options.budget)) > 0:
            tune(name, batch, budget_s, options.db)
        if options.rounds:
            console.print(compare(name, batch, options))
        if options.starts:
            console.print(first_results(name, batch, options))
    return 0


def tune(name: str, batch: int, budget_s: float, database: str) -> None:
    """The network's convolutions into the database."""
    from autotune.local_runner import LocalRunner
    from autotune.survey import survey, tune_parts
    from db import open_store
    from strategies.graph.device import describe_device
    from strategies.key import Policy

    spec = describe_device()
    shapes = _convolutions(name, batch)
    _say(f"{name} at {batch}: {sum(shapes.values())} convolutions in {len(shapes)} shapes")
    parts = survey(shapes, spec, policy=Policy(), on_wait=_say)
    with open_store(database) as store, LocalRunner(spec.device) as runner:
        said = lambda part, seconds: _say(f"tuning {part.key}, {part.count} of them, {seconds:.0f} s")  # noqa: E731
        winners = tune_parts(parts, budget_s, store=store, runner=runner, on_part=said)
    for key, winner in winners.items():
        _say(f"{key}: {winner.ratio.median:.2f} of the default, {winner.candidate}")


def _convolutions(name: str, batch: int) -> Counter[Any]:
    from autotune.models import NETWORKS
    from strategies.graph.find import find_convolutions

    model, x = NETWORKS[name].outline(batch=batch)
    return find_convolutions(lambda: model(x))


def compare(name: str, batch: int, options: argparse.Namespace) -> Table:
    """Every way in the same rounds."""
    import autotune
    from autotune.comparison import captured
    from autotune.comparison import compare as compare_runs
    from autotune.models import network

    model, x = network(name, batch=batch)
    runs = {}
    before, met = autotune.stats(), Counter[str]()
    for way, context in ways(options, met).items():
        begun = time.perf_counter()
        runs[way] = captured(lambda: model(x), context)
        _say(f"{name} at {batch}, {way}: captured in {time.perf_counter() - begun:.1f} s")
    after = autotune.stats()
    if options.torch:
        runs[TORCH] = torch_network(name, batch, options.device)
    found = compare_runs(runs, options.rounds)
    table = Table(
        "way", "median", "over tinygrad", "over BEAM=2", "difference", box=None,
        title=f"{name}, batch {batch}, {options.rounds} rounds: {after.hits - before.hits} of "
        f"{after.convolutions - before.convolutions} convolutions had a winner, in two captures; BEAM=2 has "
        f"searched {met['searched']} of {met.total()} kernels",
    )  # fmt: skip
    for way in runs:
        over = [found.ratio(way), found.ratio(way, BEAM)]
        table.add_row(
            way, f"{found.median_s(way) * 1e3:.2f} ms", *(f"{r.median:.3f} ({r.low:.3f}-{r.high:.3f})" for r in over),
            "-" if way == TORCH else f"{found.difference(way):.1e}",
        )  # fmt: skip
    return table


def ways(options: argparse.Namespace, met: Counter[str]) -> dict[str, AbstractContextManager[object]]:
    """What a network is scheduled under, by name; `met` counts the kernels under BEAM=2."""
    from tinygrad import Context

    import autotune

    return {
        TINYGRAD: contextlib.nullcontext(),
        WINO: Context(WINO=1),
        BEAM: replayed(kept(options.beam), met),
        HOOK: autotune.tuned(options.db),
        FROZEN: autotune.tuned(options.db, frozen_weights=True),
    }


@contextlib.contextmanager
def replayed(kernels: Mapping[str, Mapping[str, Any]], met: Counter[str]) -> Iterator[None]:
    """Everything that is scheduled, or captured by a TinyJit, gets the options that were found for its kernels. `met`
    counts kernels that have some and kernels that have none."""
    from tinygrad.schedule import rangeify, schedule_cache

    from strategies.graph.options import replaying

    original = rangeify.pm_no_indexing_calls
    chosen = {digest: kernel["options"] for digest, kernel in kernels.items()}
    rangeify.pm_no_indexing_calls = replaying(chosen, met) + original
    schedule_cache.clear()
    try:
        yield
    finally:
        rangeify.pm_no_indexing_calls = original
        schedule_cache.clear()


def kept(path: Path) -> dict[str, Any]:
    """What BEAM found so far, by the kernel's digest. Raises SystemExit if it was on another device."""
    from strategies.graph.device import describe_device

    if not path.exists():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["device"] != describe_device(surroundings=False).identity():
        raise SystemExit(f"{path} was searched on {data['device']}: give another --beam")
    kernels: dict[str, Any] = data["kernels"]
    return kernels


class Found:
    """The kernels of the networks, by digest in the order in which they are searched, and what was chosen for them."""

    def __init__(self, options: argparse.Namespace) -> None:
        from strategies.graph.device import describe_device

        self._path, self._lock = options.beam, threading.Lock()
        self._device, self._kernels = describe_device(surroundings=False).identity(), kept(options.beam)
        self._todo: list[str] | None = None
        self._left = 0

    def next(self, of: list[str]) -> str | None:
        """What is to be searched next: all processes know of the same kernels. None: nothing."""
        with self._lock:
            if self._todo is None:
                self._todo = [digest for digest in of if digest not in self._kernels]
                self._left = len(self._todo)
                _say(f"BEAM=2: {len(self._todo)} of {len(of)} kernels are to be searched")
            return self._todo.pop(0) if self._todo else None

    def put(self, digest: str, kernel: dict[str, Any]) -> None:
        with self._lock:
            self._kernels[digest] = kernel
            self._left -= 1
            text = ",\n".join(f'  "{known}": {json.dumps(each)}' for known, each in self._kernels.items())
            new = self._path.with_suffix(".new")
            new.write_text(
                f'{{"device": {json.dumps(self._device)},\n "kernels": {{\n{text}\n }}}}\n', encoding="utf-8"
            )
            new.replace(self._path)
            _say(f"BEAM=2 {kernel['name']}: {kernel['search_s']} s, {self._left} left")

    @property
    def complete(self) -> bool:
        return self._todo is not None and self._left == 0


def search_within(limit_s: float, options: argparse.Namespace) -> None:
    """Search what is not known in processes, keep each kernel as it is found, end them when the time is over."""
    options.beam.parent.mkdir(parents=True, exist_ok=True)
    found, until = Found(options), time.monotonic() + limit_s
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda slot: search_beside(slot, found, until, options), range(options.processes)))
    _say(f"BEAM=2: {'complete' if found.complete else 'NOT complete, the rest stays with the heuristics'}")


def search_beside(slot: int, found: Found, until: float, options: argparse.Namespace) -> None:
    """One of the processes. A kernel that ends its process is left out; the process is started again."""
    from beam import child_environ

    environ = child_environ(options.device, slot, options.processes)
    task = ["--models", *options.models, "--batch", *map(str, options.batch), "--search"]
    ended = False
    while not ended and time.monotonic() < until:
        kernels: list[str] = []
        with _child(options, *task, until=until - time.monotonic(), environ=environ) as (events, send):
            for event in events:
                if "kernels" in event:
                    kernels = event["kernels"]
                else:
                    found.put(event.pop("digest"), event)
                digest = found.next(kernels)
                if digest is None:
                    ended = True
                    break
                send(digest)
        if not kernels:
            return  # it did not even begin: it would not the next time


def search(options: argparse.Namespace) -> int:
    """In the child: print the digests of all kernels, then search those that are asked for, one a line."""
    from beam import timing_in_turn
    from tinygrad.uop.ops import Ops, UOp

    from strategies.graph.options import beam_choices

    calls = costliest_first((name, batch) for name in options.models for batch in options.batch)
    print(json.dumps({"kernels": list(calls)}), flush=True)
    with timing_in_turn(options.device):
        for line in sys.stdin:
            begun = time.monotonic()
            [choice] = beam_choices(UOp(Ops.LINEAR, src=(calls[json.loads(line)],)), 2)
            print(json.dumps({"digest": choice.ast, "name": choice.name, "options": choice.options,
                              "search_s": round(time.monotonic() - begun, 1)}), flush=True)  # fmt: skip
    return 0


def costliest_first(wanted: Iterable[tuple[str, int]]) -> dict[str, UOp]:
    """The calls of the networks' kernels by digest, those first that make up most of their network: a search that is
    cut short has left out what matters least. The work of a kernel is how often its innermost loop runs."""
    from tinygrad.uop.ops import Ops

    from autotune.models import NETWORKS
    from strategies.graph.options import ast_digest, kernel_calls

    calls: dict[str, UOp] = {}
    shares: defaultdict[str, float] = defaultdict(float)
    for name, batch in wanted:
        model, x = NETWORKS[name].outline(batch=batch)
        work = Counter[str]()
        for call in kernel_calls(model(x).schedule_linear()):
            loops = [int(loop.vmax) + 1 for loop in call.src[0].toposort() if loop.op is Ops.RANGE]
            calls[digest := ast_digest(call.src[0])] = call
            work[digest] += math.prod(loops)
        for digest, times in work.items():
            shares[digest] += times / work.total()
    return {digest: calls[digest] for digest in sorted(shares, key=shares.__getitem__, reverse=True)}


def first_results(name: str, batch: int, options: argparse.Namespace) -> Table:
    """Seconds to the first result of each way in new processes, in turns; and how much of it is scheduling, and
    lowering and compiling."""
    events: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    warm = 0 if options.rounds else 1  # the comparison has filled the compile cache
    for turn in range(options.starts + warm):
        for way in WAYS:
            with _child(options, "--start", name, str(batch), way, until=600.0) as (said, _):
                found = list(said)
            if turn >= warm:
                events[way] += found
                _say(f"{name} at {batch}, {way}: first result after {' '.join(map(str, found))}")
    title = f"{name}, batch {batch}: start-up"
    table = Table("way", "first result", "over tinygrad", "schedule", "compile", box=None, title=title)
    taken = {way: [event["seconds"] for event in events[way]] for way in WAYS}
    for way, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, taken[TINYGRAD], strict=False)]
        if ratios:
            table.add_row(
                way, f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                *(f"{statistics.median(each[part] for each in events[way]):.2f} s" for part in ("schedule", "compile")),
            )  # fmt: skip
    return table


def start(options: argparse.Namespace, name: str, batch: int, way: str) -> int:
    """In the child: seconds from the call to the first result."""
    import tinygrad.engine.realize
    import tinygrad.tensor

    from autotune.models import network

    model, x = network(name, batch=batch)
    spent: defaultdict[str, float] = defaultdict(float)
    with ways(options, Counter())[way]:
        # outside of all that the way itself has put round them
        for module, function, part in (
            (tinygrad.tensor, "create_linear_with_vars", "schedule"),
            (tinygrad.engine.realize, "compile_linear", "compile"),
        ):
            setattr(module, function, _timed(getattr(module, function), spent, part))
        begun = time.perf_counter()
        model(x).numpy()
        spent["seconds"] = time.perf_counter() - begun
        print(json.dumps({part: round(spent[part], 3) for part in ("seconds", "schedule", "compile")}), flush=True)
    return 0


def _timed(function: Callable[..., Any], spent: defaultdict[str, float], part: str) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[part] += time.perf_counter() - begun

    return timed


@contextlib.contextmanager
def _child(
    options: argparse.Namespace, *task: str, until: float, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[Iterator[dict[str, Any]], Callable[[str], None]]]:
    """The JSON lines of this command run in a process of its own, and what sends it some; it is ended, with all it
    started, when its time is over."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--db", options.db,
        "--beam", str(options.beam), *task,
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environ or os.environ, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        events = (json.loads(line) for line in child.stdout if line.startswith("{"))  # whatever else a driver prints

        def send(message: str) -> None:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its output ends, then
                child.stdin.write(json.dumps(message) + "\n")
                child.stdin.flush()

        timer = threading.Timer(until, _end, (child.pid,))
        timer.start()
        try:
            yield events, send
        finally:
            timer.cancel()
            _end(child.pid)


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def torch_network(name: str, batch: int, device: str) -> Callable[[], tuple[float, Any]]:
    """PyTorch's float32 network without TF32, in a thread of its own: PyTorch and tinygrad each have a CUDA context,
    and which is current belongs to the thread."""
    thread = ThreadPoolExecutor(1)
    run = thread.submit(_torch_network, name, batch, device).result()
    return lambda: thread.submit(run).result()


def _torch_network(name: str, batch: int, device: str) -> Callable[[], tuple[float, Any]]:
    import torch
    from torch_networks import NETWORKS as TORCH_NETWORKS

    place = "cuda" if device.startswith("CUDA") else "cpu"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    torch.backends.cuda.matmul.allow_tf32 = False
    model = TORCH_NETWORKS[name]().eval().to(place)
    x = torch.randn(batch, 3, 224, 224, device=place)

    def eager() -> Any:
        with torch.no_grad():
            return model(x)

    call = _graphed(eager) if place == "cuda" else eager

    def run() -> tuple[float, Any]:
        started = time.perf_counter()
        output = call().cpu().numpy()
        return time.perf_counter() - started, output

    for _ in range(3):
        run()
    return run


def _graphed(eager: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            eager()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = eager()

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def _seconds(text: str) -> float:
    from autotune.job import Budget

    return 0.0 if text == "0" else Budget.parse(text).seconds or 0.0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
