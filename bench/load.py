"""Lookups under load: cached ones against a bare FastAPI route, a batch, and memory over time.

    python bench/load.py                     100,000 winners, 10 minutes for the memory
    python bench/load.py --winners 2000 --rounds 2 --requests 500 --minutes 0
    python bench/load.py --db load.db --minutes 0; python bench/load.py --db load.db --only memory --minutes 9
    python bench/load.py --db postgresql+psycopg://...  on an empty database of a server

The service is `autotune serve` in a process of its own, the bare route the same server with nothing but one route;
both are asked in turns, from this process, over connections that stay open. All of it on two cores (`--cores`), however
many there are. A database that is there already, with as many winners, is used as it is. The last line is the verdict;
exit status 1 if a figure is not held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from api.devices import ProbedDevices
from autotune.statistics import median
from autotune.winner import Interval, Winner, WinnerState
from db import open_store
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

ROOT = Path(__file__).parent.parent
BARE = """
import sys
from fastapi import FastAPI
from api.server import Server, listen
app = FastAPI(docs_url=None, redoc_url=None)
app.state.service = type("Nothing", (), {"stopping": __import__("threading").Event()})
@app.get("/bare")
async def bare():
    return {"status": "ok"}
sock = listen("127.0.0.1", 0)
Server(app, lambda: print(f"at http://127.0.0.1:{sock.getsockname()[1]}", file=sys.stderr, flush=True)).run([sock])
"""
BATCH = 200
SHARE, P99_S, BATCH_S, GROWTH = 0.5, 0.010, 0.020, 0.05
"""What must hold: of the bare route's rate; the 99th percentile; a batch's median; growth of memory once it is warm."""
SAMPLE_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per figure."""
    options = _options(arguments)
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, cores)  # of this process, and of those that it starts
    print(f"on {len(cores)} cores", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        database = options.db or str(Path(directory) / "load.db")
        spec = ProbedDevices().describe("CPU")
        _fill(database, spec, options.winners)
        serve = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--db", database]
        with _server(serve) as (service, address), _server([sys.executable, "-c", BARE]) as (_, bare):
            parts: dict[str, Callable[[], bool]] = {
                "compare": lambda: _compare(address, bare, options), "batch": lambda: _batch(address, spec, options),
                "memory": lambda: not options.minutes or _memory(address, service.pid, options),
            }  # fmt: skip
            held = {name: part() for name, part in parts.items() if name in (options.only or parts)}
            with contextlib.suppress(KeyboardInterrupt):
                service.send_signal(signal.SIGTERM)
    broken = [name for name, good in held.items() if not good]
    print(f"load: {'NOT HELD: ' + ', '.join(broken) if broken else 'HELD'}: {', '.join(held)}")
    return 1 if broken else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--winners", type=int, default=100_000, help="in the database (100000)")
    parser.add_argument("--hot", type=int, default=1000, help="different lookups that are asked again and again (1000)")
    parser.add_argument("--connections", type=int, default=4, help="open at once (4)")
    parser.add_argument("--rounds", type=int, default=10, help="of each, in turns (10)")
    parser.add_argument("--requests", type=int, default=4000, help="per round (4000)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load while memory is watched (10)")
    parser.add_argument("--cores", type=int, default=2, help="for all processes together (2)")
    parser.add_argument("--only", action="append", choices=("compare", "batch", "memory"), help="may be repeated")
    parser.add_argument("--db", help="a database, empty or of a run before (default: a new SQLite file)")
    return parser.parse_args(arguments)


def _shape(number: int) -> ConvShape:
    """A different one for each number."""
    channels, size = 1 + number % 400, 8 + number // 400
    return ConvShape.of((1, 64, size, size), (channels, 64, 3, 3), padding=1)


def _query(number: int) -> bytes:
    shape = _shape(number)
    sizes = ("x".join(map(str, dims)) for dims in (shape.input_shape, shape.weight_shape))
    return "/lookup?input={}&weight={}&padding=1&device=CPU".format(*sizes).encode()


def _fill(database: str, spec: DeviceSpec, count: int) -> None:
    interval = Interval(median=1e-3, low=0.9e-3, high=1.1e-3)
    winners = (
        Winner(
            key=ConvKey(shape=_shape(number), device=spec), candidate=Candidate.of("four_buffer", tile=4),
            state=WinnerState.VERIFIED, time_s=interval, default=Candidate.of("direct"), default_time_s=interval,
            ratio=Interval(median=1.0, low=0.95, high=1.05), error=1e-6, times_s={"direct": 1e-3},
            provenance={"host": "load", "trials": 40}, decided_at=float(number),
        )
        for number in range(count)
    )  # fmt: skip
    started = time.perf_counter()
    with open_store(database) as store:
        if store.counts()["winners"] == count:
            print(f"{count} winners were there")
            return
        kept = store.merge(winners)
    taken = time.perf_counter() - started
    print(f"{kept} winners merged in {taken:.1f} s, {kept / taken:.0f} per second", flush=True)


@contextlib.contextmanager
def _server(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """The process, and where it listens: the last word of the line that says so."""
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "http://" in line)
            host, port = line.split()[-1].removeprefix("http://").rsplit(":", 1)
            yield process, (host, int(port))
        finally:
            process.terminate()


def _ask(address: tuple[str, int], requests: Sequence[bytes], connections: int) -> list[float]:
    """Seconds per request, sent over so many connections, each the next one as soon as it has its answer."""
    times: list[float] = []
    rest = iter(requests)
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:

        def send(sock: socket.socket) -> bool:
            request = next(rest, None)
            if request is None:
                selector.unregister(sock)
                return False
            sock.sendall(request)
            selector.modify(sock, selectors.EVENT_READ, [time.perf_counter(), b""])
            return True

        open_count = 0
        for _ in range(connections):
            sock = stack.enter_context(socket.create_connection(address))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ)
            open_count += send(sock)
        while open_count:
            for event, _ in selector.select():
                ours, state = event.fileobj, event.data
                assert isinstance(ours, socket.socket)
                state[1] += ours.recv(1 << 20)
                if _whole(state[1]):
                    times.append(time.perf_counter() - state[0])
                    open_count -= not send(ours)
    return times


def _whole(answer: bytes) -> bool:
    """Whether all of it is there. Raises RuntimeError unless it is a good one."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"expected status 200, found {answer[:500]!r}")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(length.split(b":")[1])


def _get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _compare(service: tuple[str, int], bare: tuple[str, int], options: argparse.Namespace) -> bool:
    hot = [_get(_query(number)) for number in range(min(options.hot, options.winners))]
    lookups, plain = [hot[number % len(hot)] for number in range(options.requests)], [_get(b"/bare")] * options.requests
    _ask(service, hot, options.connections)
    _ask(bare, plain[:200], options.connections)
    shares, rates, latencies = [], [], []
    for _ in range(options.rounds):
        rate = {}
        for name, address, requests in (("bare", bare, plain), ("lookup", service, lookups)):
            started = time.perf_counter()
            times = _ask(address, requests, options.connections)
            rate[name] = len(times) / (time.perf_counter() - started)
            latencies += times if name == "lookup" else []
        shares.append(rate["lookup"] / rate["bare"])
        rates.append(rate)
    share, p99 = median(shares), sorted(latencies)[len(latencies) * 99 // 100]
    looked, bared = (median([rate[name] for rate in rates]) for name in ("lookup", "bare"))
    print(f"cached lookups: {looked:.0f} per second, a bare route {bared:.0f}; of it {share:.2f} (at least {SHARE})")
    print(f"cached lookups: 99% within {p99 * 1e3:.1f} ms (at most {P99_S * 1e3:.0f}), {len(latencies)} of them")
    return share >= SHARE and p99 <= P99_S


def _post(path: bytes, content: object) -> bytes:
    data = json.dumps(content).encode()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (path, len(data)) + data


def _batch(service: tuple[str, int], spec: DeviceSpec, options: argparse.Namespace) -> bool:
    chosen = random.Random(1).sample(range(options.winners), BATCH)
    shapes = [_shape(number) for number in chosen]
    keys = [ConvKey(shape=shape, device=spec).to_json() for shape in shapes]
    bodies = [{"input": s.input_shape, "weight": s.weight_shape, "padding": 1, "device": "CPU"} for s in shapes]
    held = True
    for name, content in (("keys", {"keys": keys}), ("shapes", {"shapes": bodies})):
        first, *times = _ask(service, [_post(b"/lookup", content)] * 30, 1)
        held &= median(times) <= BATCH_S
        print(
            f"{BATCH} {name} at once: {median(times) * 1e3:.1f} ms (at most {BATCH_S * 1e3:.0f}), "
            f"{first * 1e3:.1f} ms the first time"
        )
    return held


def _memory(service: tuple[str, int], pid: int, options: argparse.Namespace) -> bool:
    """Any winner, not only the hot ones, so that what is remembered turns over. Each was asked for once before: what
    is remembered has reached its limits, however slow the machine."""
    process, rng = psutil.Process(pid), random.Random(2)
    sizes: list[float] = []
    _ask(service, [_get(_query(number)) for number in range(options.winners)], options.connections)
    ends_at = time.monotonic() + options.minutes * 60
    while (now := time.monotonic()) < ends_at:
        while time.monotonic() < now + SAMPLE_S:
            _ask(service, [_get(_query(rng.randrange(options.winners))) for _ in range(500)], options.connections)
        sizes.append(process.memory_info().rss / 2**20)
    fifth = max(1, len(sizes) // 5)
    early, late = median(sizes[fifth : 2 * fifth] or sizes), median(sizes[-fifth:])
    growth = late / early - 1
    print(
        f"memory: {early:.0f} MiB in the second fifth of {options.minutes:g} minutes, {late:.0f} MiB in the last: "
        f"{growth:+.1%} (at most {GROWTH:+.0%})"
    )
    return growth <= GROWTH


if __name__ == "__main__":
    raise SystemExit(main())
