"""Whole networks, every way in one interleaved run: `python bench/models.py --models resnet18 --batch 1 --device CPU`.

For each network and batch:

1. its convolutions are tuned within `--budget`, into `--db`; what has a winner there is not tuned again;
2. stock tinygrad's kernels are searched with BEAM=2 for at most `--beam-limit`, kernel by kernel in a process of its
   own; what was found is kept in `--beam` and not searched again, what was not reached stays with the heuristics;
3. stock tinygrad, `WINO=1`, BEAM=2 (replayed), the hook, the hook with frozen weights and, with `--torch`, PyTorch run
   in interleaved rounds in one process; each is captured (TinyJit; a CUDA graph in PyTorch) and timed by the wall, from
   the call to the result;
4. each way is started in new processes: seconds to the first result, schedule and compile included, the compile cache
   warm, the weights in place.

`--budget 0`, `--beam-limit 0`, `--rounds 0` and `--starts 0` leave a step out, so that a long run can be cut in pieces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
NETWORKS = ("resnet18", "resnet50", "vgg16")
TINYGRAD, WINO, BEAM, HOOK, FROZEN, TORCH = "tinygrad", "WINO=1", "BEAM=2", "hook", "hook, frozen", "PyTorch"
WAYS = (TINYGRAD, WINO, BEAM, HOOK, FROZEN)


def main() -> int:
    options = _parse()
    if os.environ.get("DEV") != options.device:  # tinygrad reads it when it is imported
        environ = os.environ | {
            "DEV": options.device,
            "PYTHONPATH": f"{HERE.parent}:{os.environ.get('PYTHONPATH', '')}",
        }
        os.execve(sys.executable, [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]], environ)  # noqa: S606 - no shell
    from autotune.compiler import ensure_c_compiler

    if options.device == "CPU":
        ensure_c_compiler()
    if options.search:
        return search(options.search[0], int(options.search[1]))
    if options.start:
        return start(options, options.start[0], int(options.start[1]), options.start[2])
    return measure(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--device", default="CPU", help="CPU, CUDA, ... (default %(default)s)")
    parser.add_argument("--budget", default="3m", help="of tuning one network at one batch (default %(default)s)")
    parser.add_argument("--beam-limit", default="10m", help="of one network (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--starts", type=int, default=2, help="new processes for each way")
    parser.add_argument("--torch", action="store_true", help="PyTorch too, which must be installed")
    parser.add_argument("--db", default=str(HERE / "models.db"), help="default bench/models.db")
    parser.add_argument("--beam", type=Path, help="default bench/beam/models-DEVICE.json")
    parser.add_argument("--search", nargs=2, help=argparse.SUPPRESS)
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
    for name, batch in wanted:
        if (budget_s := _seconds(options.budget)) > 0:
            tune(name, batch, budget_s, options.db)
        if (limit_s := _seconds(options.beam_limit)) > 0:
            search_within(name, batch, limit_s, options)
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
    """The network itself is gone when this returns: the tuner's child needs the memory."""
    from autotune.models import network
    from strategies.graph.find import find_convolutions

    model, x = network(name, batch=batch)
    return find_convolutions(lambda: model(x))


def compare(name: str, batch: int, options: argparse.Namespace) -> Table:
    """Every way in the same rounds."""
    import autotune
    from autotune.comparison import captured
    from autotune.comparison import compare as compare_runs
    from autotune.models import network

    model, x = network(name, batch=batch)
    runs = {}
    before = autotune.stats()
    for way, context in ways(options).items():
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
        f"{after.convolutions - before.convolutions} convolutions had a winner, in two captures",
    )  # fmt: skip
    for way in runs:
        over = [found.ratio(way), found.ratio(way, BEAM)]
        table.add_row(
            way, f"{found.median_s(way) * 1e3:.2f} ms", *(f"{r.median:.3f} ({r.low:.3f}-{r.high:.3f})" for r in over),
            "-" if way == TORCH else f"{found.difference(way):.1e}",
        )  # fmt: skip
    return table


def ways(options: argparse.Namespace) -> dict[str, AbstractContextManager[object]]:
    """What a network is scheduled under, by name."""
    from tinygrad import Context

    import autotune

    return {
        TINYGRAD: contextlib.nullcontext(),
        WINO: Context(WINO=1),
        BEAM: replayed(kept(options.beam)),
        HOOK: autotune.tuned(options.db),
        FROZEN: autotune.tuned(options.db, frozen_weights=True),
    }


@contextlib.contextmanager
def replayed(kernels: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Everything that is scheduled gets the options that were found for its kernels."""
    import tinygrad.tensor

    from strategies.graph.options import with_options

    original = tinygrad.tensor.create_linear_with_vars
    chosen = {digest: kernel["options"] for digest, kernel in kernels.items()}

    def create_linear_with_vars(sink: Any) -> Any:
        linear, variables = original(sink)
        return with_options(linear, chosen), variables

    tinygrad.tensor.create_linear_with_vars = create_linear_with_vars
    try:
        yield
    finally:
        tinygrad.tensor.create_linear_with_vars = original


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


def search_within(name: str, batch: int, limit_s: float, options: argparse.Namespace) -> None:
    """Search what is not known in a child, keep each kernel as it is found, end it when its time is over."""
    from strategies.graph.device import describe_device

    device, kernels = describe_device(surroundings=False).identity(), kept(options.beam)
    options.beam.parent.mkdir(parents=True, exist_ok=True)
    complete = False
    for event in _child(options, "--search", name, str(batch), until=limit_s, CACHELEVEL="0"):
        complete = complete or "done" in event
        if "digest" in event:
            kernels[event.pop("digest")] = event
            text = ",\n".join(f'  "{digest}": {json.dumps(kernel)}' for digest, kernel in kernels.items())
            new = options.beam.with_suffix(".new")
            new.write_text(f'{{"device": {json.dumps(device)},\n "kernels": {{\n{text}\n }}}}\n', encoding="utf-8")
            new.replace(options.beam)
            _say(f"BEAM=2 {event['name']}: {event['search_s']} s")
    _say(f"{name} at {batch}, BEAM=2: {'complete' if complete else 'NOT complete, the rest stays with the heuristics'}")


def search(name: str, batch: int) -> int:
    """In the child: search each kernel that nothing is known of, print what was found."""
    from autotune.models import network
    from strategies.graph.options import ast_digest, beam_choices, kernel_calls

    known = set(json.loads(sys.stdin.readline()))
    model, x = network(name, batch=batch)
    linear = model(x).schedule_linear()
    left = linear.replace(src=tuple(c for c in kernel_calls(linear) if ast_digest(c.src[0]) not in known))
    begun = time.monotonic()
    for choice in beam_choices(left, 2):
        took, begun = time.monotonic() - begun, time.monotonic()
        print(json.dumps({"digest": choice.ast, "name": choice.name, "options": choice.options,
                          "search_s": round(took, 1)}), flush=True)  # fmt: skip
    print(json.dumps({"done": True}), flush=True)
    return 0


def first_results(name: str, batch: int, options: argparse.Namespace) -> Table:
    """Seconds to the first result of each way in new processes, in turns."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    warm = 0 if options.rounds else 1  # the comparison has filled the compile cache
    for turn in range(options.starts + warm):
        for way in WAYS:
            for event in _child(options, "--start", name, str(batch), way, until=600.0):
                if turn >= warm:
                    seconds[way].append(event["seconds"])
                    _say(f"{name} at {batch}, {way}: first result after {event['seconds']:.2f} s")
    table = Table("way", "first result", "over tinygrad", box=None, title=f"{name}, batch {batch}: start-up")
    for way, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds[TINYGRAD], strict=False)]
        if ratios:
            table.add_row(
                way, f"{statistics.median(taken):.2f} s ({min(taken):.2f}-{max(taken):.2f})",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            )  # fmt: skip
    return table


def start(options: argparse.Namespace, name: str, batch: int, way: str) -> int:
    """In the child: seconds from the call to the first result."""
    from autotune.models import network

    model, x = network(name, batch=batch)
    with ways(options)[way]:
        begun = time.perf_counter()
        model(x).numpy()
        print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)
    return 0


def _child(options: argparse.Namespace, *task: str, until: float, **environ: str) -> Iterator[dict[str, Any]]:
    """The JSON lines of this command run in a process of its own, ended with all it started when its time is over."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--db", options.db,
        "--beam", str(options.beam), *task,
    ]  # fmt: skip
    with subprocess.Popen(
        command, env=os.environ | environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as child:  # fmt: skip
        timer = threading.Timer(until, _end, (child.pid,))
        timer.start()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(list(kept(options.beam))) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                if line.startswith("{"):  # whatever else a driver prints
                    yield json.loads(line)
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
