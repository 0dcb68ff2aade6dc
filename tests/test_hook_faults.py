"""Whatever fails in the hook, or in what it reads, leaves the program as tinygrad alone: results and exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Array, counted, relative
from hooked import SHAPE, W, X, conv, exported, key, patient_sources, put_back, sqlite, tinygrad_alone, winner  # noqa: F401 - fixtures
from http_service import service
from tinygrad import Tensor
from values import a_winner

import autotune
from autotune import hook, runtime
from autotune.decisions import Winners
from autotune.report import Stats
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.shape import ConvShape


def silently(run: Callable[[], Array]) -> tuple[Array, Stats, list[str], float]:
    """What `run` gives, what the hook did, said and took."""
    found: list[Array] = []
    started = time.monotonic()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        did = counted(lambda: found.append(run()))
    return found[0], did, [str(w.message) for w in said], time.monotonic() - started


def several() -> Array:
    """Several graphs, as a program has."""
    for size in (5, 6, 7, 8):
        Tensor.empty(1, 4, size, size).conv2d(W, padding=1).schedule_linear()
    return conv().numpy()


LIES: dict[str, Callable[[], object]] = {
    "no JSON": lambda: b"<html>",
    "half of it": lambda: b'{"winners": {"',
    "of another type": lambda: {"winners": [1]},
    "of another shape": lambda: {"winners": {key().digest: a_winner().to_json()}},
    "of a key nobody asked for": lambda: {"winners": {a_winner().key.digest: a_winner().to_json()}},
    "an unknown strategy": lambda: said_of(Candidate.of("magic", speed=11)),
    "an unknown parameter": lambda: said_of(Candidate.of("four_buffer", threads=10**9)),
    "an absurd value": lambda: said_of(Candidate.of("four_buffer", tile=10**9)),
    "a value of another type": lambda: said_of(Candidate.of("four_buffer", tile="4; rm -rf /")),
    "a strategy that does not apply": dict,
}


def said_of(candidate: Candidate) -> object:
    asked = ConvKey(shape=SHAPE, device=describe_device("CPU"))
    return {"winners": {asked.digest: replace(a_winner(asked), candidate=candidate).to_json()}}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_service(lie: str, alone: Array, patient: None) -> None:
    if lie == "a strategy that does not apply":
        run: Callable[[], Array] = lambda: X.conv2d(W, stride=2, padding=1).numpy()  # noqa: E731
        asked = ConvKey(
            shape=ConvShape.of((1, 4, 12, 12), (4, 4, 3, 3), padding=1, stride=2).canonical(),
            device=describe_device("CPU"),
        )
        answer: object = {"winners": {asked.digest: a_winner(asked).to_json()}}
        alone = run()
    else:
        run, answer = several, LIES[lie]()

    def answered(request: BaseHTTPRequestHandler, body: Any) -> object:
        if not isinstance(answer, dict) or not isinstance(answer["winners"], dict) or lie.startswith("of a"):
            return answer
        digests = {ConvKey.from_json(each).digest for each in body["keys"]}
        return {"winners": {digest: w for digest, w in answer["winners"].items() if digest in digests}}

    with service(answered) as url:
        autotune.install(url)
        found, did, said, _ = silently(run)
    assert np.array_equal(found, alone)
    assert did.applied == 0
    assert did.misses + did.fallbacks == did.convolutions > 0
    assert len(said) == 1, said
    assert "\n" not in said[0]


def test_a_dead_service(alone: Array) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        autotune.install(f"http://127.0.0.1:{unused.getsockname()[1]}")
        found, did, said, _ = silently(several)
    assert np.array_equal(found, alone)
    assert (did.misses, did.convolutions) == (5, 5)
    assert len(said) == 1
    assert did.seconds < 5


def test_a_slow_service(alone: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds an answer: the program waits for a part of a second, once."""
    monkeypatch.setattr("autotune.decisions.FIRST_BACKOFF_S", 600.0)  # however slow this machine is
    release, asked = threading.Event(), []

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        asked.append(body)
        release.wait(10)
        return {"winners": {}}

    with service(answer) as url:
        autotune.install(url)
        found, did, said, _ = silently(several)
        release.set()
    assert np.array_equal(found, alone)
    assert did.misses == 5
    assert len(said) == 1
    assert "none within 0.3 s" in said[0]
    assert len(asked) == 1
    assert did.seconds < 8


@pytest.mark.parametrize("content", [b"", b"{", b"SQLite format 3\x00 and then nothing", b"\x00" * 5000, b"[1, 2]"])
@pytest.mark.parametrize("name", ["winners.json", "autotune.db"])
def test_a_file_that_cannot_be_read(name: str, content: bytes, tmp_path: Path, alone: Array) -> None:
    (tmp_path / name).write_bytes(content)
    autotune.install(tmp_path / name)
    found, did, said, _ = silently(several)
    assert np.array_equal(found, alone)
    assert did.applied == 0
    assert did.misses == did.convolutions == 5
    assert len(said) == 1
    assert str(tmp_path / name) in said[0]


def test_a_half_written_export(tmp_path: Path, alone: Array) -> None:
    with exported(tmp_path, winner()) as source:
        whole = Path(source).read_bytes()
        Path(source).write_bytes(whole[: len(whole) // 2])
        autotune.install(source)
        found, did, said, _ = silently(several)
    assert np.array_equal(found, alone)
    assert (did.applied, did.misses) == (0, 5)
    assert len(said) == 1


def test_a_winner_of_another_release(tmp_path: Path, alone: Array) -> None:
    """One warning, however many graphs."""
    with sqlite(tmp_path, winner(Candidate.of("of_tomorrow", tile=8))) as source:
        autotune.install(source)
        found, did, said, _ = silently(lambda: [conv().numpy(), conv().relu().numpy()][0])
    assert np.array_equal(found, alone)
    assert (did.hits, did.fallbacks) == (0, 2)
    assert len(said) == 1
    assert "of_tomorrow(tile=8) cannot be applied" in said[0]


@pytest.mark.parametrize("broken", ["lookup", "version", "describe"])
def test_a_fault_of_ours(broken: str, tmp_path: Path, alone: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("a bug\nof two lines")

    with sqlite(tmp_path, winner()) as source:
        autotune.install(source)
    looked = runtime._stack[0][0]
    assert isinstance(looked, Winners)
    if broken == "describe":
        monkeypatch.setattr(hook, "describe_device", fault)
    else:
        monkeypatch.setattr(looked._source, broken, fault)
    found, did, said, _ = silently(lambda: conv().numpy())
    assert relative(found, alone) < 1e-4
    assert len(said) == 1
    assert "ZeroDivisionError: a bug" in said[0]
    assert did.fallbacks == (broken != "version")
    assert did.applied == (broken == "version")


def test_a_graph_for_a_device_that_does_not_open_is_scheduled(tmp_path: Path) -> None:
    """tinygrad needs no device to schedule; `conv` has a key there that the hook cannot know, `+ 1` asks for none."""

    def schedule(*sizes: int) -> list[int]:
        x, w = (Tensor.empty(*size, device="NOWHERE") for size in ((1, 4, *sizes), W.shape))
        return [len(y.schedule_linear().src) for y in (x + 1, x.conv2d(w, padding=1))]

    with sqlite(tmp_path, winner()) as source:
        autotune.install(source)
    with pytest.warns(RuntimeWarning, match="tinygrad goes on alone: ModuleNotFoundError"):
        assert schedule(12, 12) == [1, 1]


FORKS = """
import http.server, os, signal, threading

asked, answer = threading.Event(), threading.Event()

class Slow(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked.set()
        answer.wait(60)
        self.send_response(500)
        self.end_headers()
    def log_message(self, *args): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()

import autotune
from autotune.sources import http_source
from tinygrad import Tensor

autotune.install(f"http://127.0.0.1:{server.server_port}")
x, w = Tensor.empty(1, 8, 16, 16), Tensor.empty(8, 8, 3, 3)
schedule = lambda: x.conv2d(w, padding=1).schedule_linear()
autotune.runtime._stack[-1][0]._source._timeout_s = 60.0
thread = threading.Thread(target=schedule)
thread.start()
assert asked.wait(60)  # so the thread holds what it holds while it waits
child = os.fork()
if child == 0:
    signal.alarm(60)
    autotune.runtime._stack[-1][0]._source._timeout_s = 0.1
    schedule()
    os._exit(0)
_, status = os.waitpid(child, 0)
answer.set()
thread.join()
assert status == 0, status
"""

SILENT = """
import sys, warnings
import autotune
from tinygrad import Tensor

def refuses(*args, **options): raise OSError("no window to show it in")

autotune.install("/nowhere/w.json")
warnings.showwarning = refuses
sys.stderr.close()
Tensor.empty(1, 8, 16, 16).conv2d(Tensor.empty(8, 8, 3, 3), padding=1).schedule_linear()
print(autotune.stats().convolutions)
"""


def run_as_a_program(script: str) -> str:
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_that_forks_while_another_thread_waits_for_a_service() -> None:
    """In the child nobody is left to open the locks that the thread had taken."""
    run_as_a_program(FORKS)


def test_a_warning_that_cannot_be_shown() -> None:
    assert run_as_a_program(SILENT) == "1\n"
