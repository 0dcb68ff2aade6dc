"""Search stock tinygrad's kernels with BEAM, and keep what it chose: `python bench/beam.py --shapes cpu`.

For each shape tinygrad's own lowering (`direct`) and its `WINO=1` are searched, kernel by kernel, each in a process of
its own. What was chosen is written to bench/beam/DEVICE.json after every kernel, with the machine's description and the
seconds it took; `bench/convs.py --beam bench/beam/DEVICE.json` then replays it without searching. A search that is in
the file and complete is not made again (`--again` makes it), so that a stopped run goes on where it was.

With `--processes N` that many searches run at once; on CUDA they are dealt out to the GPUs, and those on one GPU
compile side by side and time in turn; on the CPU each has the processors from `--first` on, `--width` each.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shapes import SHAPES, conv_shape, label

from autotune.job import Budget
from strategies.shape import ConvShape

LOWERINGS = ("direct", "WINO=1")
HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--shape-index", type=int, nargs="+", metavar="I", help="only these of them, from 0")
    parser.add_argument("--lowerings", nargs="+", choices=LOWERINGS, default=LOWERINGS)
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--beam", type=int, default=2, help="BEAM's width (default %(default)s)")
    parser.add_argument("--limit", default="10m", help="for one search, as 90s or 10m (default %(default)s)")
    parser.add_argument("--deadline", help="for everything; what is done by then is kept")
    parser.add_argument("--processes", type=int, default=1, help="searches at once")
    parser.add_argument("--width", type=int, help="CPU: bind each search to so many processors of its own")
    parser.add_argument("--first", type=int, default=0, help="CPU: leave so many processors to others")
    parser.add_argument("--again", action="store_true", help="search also what the file has")
    parser.add_argument("--out", type=Path, help="default: bench/beam/DEVICE.json")
    parser.add_argument("--search", nargs=2, metavar=("SHAPE", "LOWERING"), help=argparse.SUPPRESS)
    parser.add_argument("--bound", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        if options.bound:
            os.sched_setaffinity(0, options.bound)
        return search(json.loads(options.search[0]), options.search[1], options.device, options.beam)
    out = options.out or HERE / "beam" / f"{options.device.lower().replace(':', '-')}.json"
    sizes = SHAPES[options.shapes]
    chosen = [sizes[i] for i in options.shape_index] if options.shape_index is not None else sizes
    kept = Kept(out)
    wanted = [Search(conv_shape(*size), lowering, options.beam) for size in chosen for lowering in options.lowerings]
    todo = [s for s in wanted if options.again or not kept.complete(s)]
    print(f"{len(todo)} searches of {len(wanted)}, {options.processes} at once, into {out}", flush=True)
    deadline = time.monotonic() + seconds(options.deadline) if options.deadline else float("inf")
    bound = processors(options.processes, options.width, options.first)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(options.processes):
        slots.put(slot)

    def run(item: Search) -> bool:
        slot = slots.get()
        try:
            environ = child_environ(options.device, slot, options.processes, bound[slot])
            until = min(time.monotonic() + seconds(options.limit), deadline)
            return follow(item, kept, options.device, environ, until, bound[slot])
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(options.processes) as pool:
        complete = list(pool.map(run, todo))
    print(f"{sum(complete)} of {len(todo)} complete")
    return 0 if all(complete) else 1


@dataclass(frozen=True, slots=True)
class Search:
    """One lowering of one shape, searched with one width."""

    shape: ConvShape
    lowering: str
    beam: int

    def names(self, entry: dict[str, Any]) -> bool:
        mine = (self.shape.to_json(), self.lowering, self.beam)
        return (entry["shape"], entry["lowering"], entry["beam"]) == mine

    def __str__(self) -> str:
        return f"{label(self.shape)} {self.lowering} BEAM={self.beam}"


@dataclass(slots=True)
class Kept:
    """The file of results, written whole and put in place at once; several processes may write to it."""

    path: Path
    _here: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, item: Search) -> bool:
        return any(item.names(entry) and entry["complete"] for entry in self._read().get("searches", []))

    def put(self, machine: dict[str, Any], item: Search, entry: dict[str, Any]) -> None:
        """Raises SystemExit if the file is of another device."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._here, self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            data = self._read()
            known = data.get("machine", machine)
            if known["device"] != machine["device"]:
                raise SystemExit(
                    f"{self.path} is of {known['device']}, this is {machine['device']}: give another --out"
                )
            others = [e for e in data.get("searches", []) if not item.names(e)]
            data = {"machine": machine, "searches": [*others, entry]}
            new = self.path.with_suffix(".new")
            new.write_text(compact(data), encoding="utf-8")
            new.replace(self.path)

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}


def processors(processes: int, width: int | None, first: int) -> list[list[int]]:
    """Which of the CPU's each search is bound to; none where they are not bound. Raises SystemExit for too few."""
    if width is None:
        return [[] for _ in range(processes)]
    cpus = sorted(os.sched_getaffinity(0))[first:]
    if processes * width > len(cpus):
        raise SystemExit(f"beam: {processes} searches of {width} need more than the {len(cpus)} processors here")
    return [cpus[slot * width : (slot + 1) * width] for slot in range(processes)]


def follow(
    item: Search, kept: Kept, device: str, environ: dict[str, str], until: float, bound: Sequence[int] = ()
) -> bool:
    """Make one search in a child, keep what it has found after every kernel, end it when its time is over."""
    begun = time.monotonic()
    if begun >= until:
        print(f"{item}: not begun, the time is over", flush=True)
        return False
    entry: dict[str, Any] = {
        "shape": item.shape.to_json(), "lowering": item.lowering, "beam": item.beam, "complete": False,
        "search_s": 0.0, "kernels": [],
    }  # fmt: skip
    machine: dict[str, Any] = {}
    for event in child_events(item, device, environ, until, bound):
        if "machine" in event:
            machine = event["machine"]
        elif "kernel" in event:
            entry["kernels"].append(event["kernel"])
        elif "done" in event:
            entry["complete"] = True
        entry["search_s"] = round(time.monotonic() - begun, 1)
        if machine:
            kept.put(machine, item, entry)
    if not entry["complete"]:
        entry["search_s"] = round(time.monotonic() - begun, 1)
        if machine:
            kept.put(machine, item, entry)
    state = "complete" if entry["complete"] else "NOT COMPLETE"
    print(f"{item}: {len(entry['kernels'])} kernels, {entry['search_s']:.0f} s, {state}", flush=True)
    return bool(entry["complete"])


def child_events(
    item: Search, device: str, environ: dict[str, str], until: float, bound: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """The JSON lines of a child that is ended, with all it has started, when the time is over."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--device", device, "--beam", str(item.beam),
        "--search", json.dumps(item.shape.to_json()), item.lowering, "--bound", *map(str, bound),
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as child:
        timer = threading.Timer(until - time.monotonic(), end, (child.pid,)) if until < float("inf") else None
        if timer is not None:
            timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):  # whatever else a driver prints
                    yield json.loads(line)
        finally:
            if timer is not None:
                timer.cancel()
            end(child.pid)


def end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def child_environ(device: str, slot: int, processes: int, bound: Sequence[int] = ()) -> dict[str, str]:
    """Neither a cache of former searches nor a flag of the caller's; one of the GPUs, and a share of the processors.

    Freed memory goes back to the GPU (LRU=0), which others search on too. A process that has but one processor, and
    one that times on the processors, compiles itself (PARALLEL=0) instead of in a pool beside what it times.
    """
    from autotune.child_environment import DROPPED

    environ = {name: value for name, value in os.environ.items() if name not in DROPPED}
    root = str(HERE.parent)
    environ |= {"DEV": device, "CACHELEVEL": "0", "PYTHONPATH": os.pathsep.join([root, environ.get("PYTHONPATH", "")])}
    if bound:
        environ |= {"NUM_CPU_THREADS": str(len(bound)), "PARALLEL": str(len(bound))}
    share = len(os.sched_getaffinity(0)) // processes
    environ.setdefault("PARALLEL", str(share if share > 1 and not device.startswith("CPU") else 0))
    if processes > 1 and device in ("CUDA", "NV"):
        environ |= {"CUDA_VISIBLE_DEVICES": gpus(environ)[slot % len(gpus(environ))], "LRU": "0"}
    return environ


def gpus(environ: Mapping[str, str]) -> list[str]:
    """NVIDIA's GPUs as CUDA_VISIBLE_DEVICES names them: those that `environ` shows, else all."""
    shown = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return shown or [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))] or ["0"]


@contextlib.contextmanager
def timing_in_turn(device: str) -> Iterator[None]:
    """BEAM's timing of a candidate waits for that of other processes, and for a tuner, on the same device; what it
    compiles does not.

    The file is the one of the device's lock, which is tried again every 50 ms: some hundred turns for a kernel are
    waited for in the kernel's own queue instead.
    """
    from tinygrad.codegen.opt import search

    from autotune.device_lock import DeviceLock

    original, lock = search._time_program, DeviceLock(device)  # noqa: SLF001 - tinygrad has no other place to stand

    def timed(*args: Any, **options: Any) -> list[float]:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        try:
            return original(*args, **options)
        finally:
            fcntl.flock(lock.fileno(), fcntl.LOCK_UN)

    search._time_program = timed  # noqa: SLF001
    try:
        yield
    finally:
        search._time_program = original  # noqa: SLF001
        lock.close()


def end_with_parent() -> None:
    """Nothing comes on our standard input but its end, which is the parent's: killed, or done with us."""
    sys.stdin.read()
    end(0)


def search(shape: dict[str, Any], lowering: str, device: str, beam: int) -> int:
    """In the child: print what was found, a JSON object a line."""
    from tinygrad import Context

    from autotune.compiler import ensure_c_compiler
    from strategies.candidate import Candidate
    from strategies.graph.device import describe_device
    from strategies.graph.options import beam_choices
    from strategies.graph.program import convolution, operands, schedule

    threading.Thread(target=end_with_parent, daemon=True).start()
    if device.split(":", maxsplit=1)[0] == "CPU":
        ensure_c_compiler()
    spec = describe_device(device)
    say(machine={"device": spec.identity(), "surroundings": spec.surroundings, "platform": platform.platform()})
    conv = ConvShape.from_json(shape)
    with Context(WINO=int(lowering == "WINO=1")):
        linear = schedule(convolution(*operands(conv, device), conv), Candidate.of("direct"))
    begun = time.monotonic()
    with timing_in_turn(device):
        for choice in beam_choices(linear, beam):
            took, begun = time.monotonic() - begun, time.monotonic()
            say(kernel={"ast": choice.ast, "name": choice.name, "options": choice.options, "search_s": round(took, 1)})
    say(done=True)
    return 0


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def seconds(text: str) -> float:
    return Budget.parse(text).seconds or 0.0


def compact(data: dict[str, Any]) -> str:
    """JSON with a kernel to a line."""
    searches = []
    for entry in sorted(data["searches"], key=lambda e: (json.dumps(e["shape"]), e["lowering"], e["beam"])):
        head = json.dumps({name: value for name, value in entry.items() if name != "kernels"})
        kernels = ",\n    ".join(json.dumps(kernel) for kernel in entry["kernels"])
        searches.append(f'  {head[:-1]}, "kernels": [\n    {kernels}\n  ]}}')
    return f'{{"machine": {json.dumps(data["machine"])},\n "searches": [\n' + ",\n".join(searches) + "\n ]}\n"


if __name__ == "__main__":
    sys.exit(main())
