"""The hook in a user's program: winners from every source are applied, and whatever fails changes nothing.

What the sources check of what they read is tested with them; here it is what a program sees.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Array, counted, kernel_count, normal, relative
from http_service import service
from served import served as application
from tinygrad import Tensor, TinyJit, UOp, dtypes
from tinygrad.helpers import Context, GlobalCounters
from tinygrad.uop.ops import KernelInfo
from values import a_winner

import autotune
from autotune import bundle, decisions, hook, runtime
from autotune.decisions import Winners
from autotune.report import Stats
from autotune.runtime import NoSourceError
from autotune.sources import SourceError, open_source
from autotune.winner import Winner
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape

ROOT = Path(__file__).parent.parent
SHAPE = ConvShape.of((1, 4, 12, 12), (4, 4, 3, 3), padding=1)
X, W = normal(*SHAPE.input_shape), normal(*SHAPE.weight_shape, seed=1)
FOUR, FUSED, DIRECT = (Candidate.of(name) for name in ("four_buffer", "single_fused", "direct"))


def key(**policy: Any) -> ConvKey:
    return ConvKey(shape=SHAPE, device=describe_device("CPU"), policy=Policy(**policy))


def winner(candidate: Candidate = FOUR, state: str = "verified", decided_at: float = 1.0, **policy: Any) -> Winner:
    return replace(a_winner(key(**policy), decided_at=decided_at, state=state), candidate=candidate)


def conv() -> Tensor:
    return X.conv2d(W, padding=1)


def count() -> int:
    return kernel_count(conv())


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has warned of nothing, looks for changes at every schedule, and gets its tinygrad back."""
    monkeypatch.setattr(hook, "_warned", set())
    monkeypatch.setattr(decisions, "POLL_S", 0.0)
    monkeypatch.delenv("AUTOTUNE_SOURCE", raising=False)
    with Context(NOOPT=1):  # compiling is most of the time here
        yield
    autotune.uninstall()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that must come may take longer than a program would wait: the machine is busy."""
    monkeypatch.setattr(runtime, "open_source", partial(open_source, timeout_s=10.0))


@pytest.fixture(scope="module")
def alone() -> Array:
    with Context(NOOPT=1):
        return conv().numpy()


@contextmanager
def sqlite(directory: Path, *winners: Winner) -> Iterator[str]:
    path = directory / "autotune.db"
    with open_store(path) as store:
        for each in winners:
            store.decide(each)
    yield str(path)


@contextmanager
def exported(directory: Path, *winners: Winner) -> Iterator[str]:
    path = directory / "winners.json"
    bundle.write(path, winners)
    yield str(path)


@contextmanager
def served(directory: Path, *winners: Winner) -> Iterator[str]:
    known = {each.key.digest: each.to_json() for each in winners}

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        digests = [ConvKey.from_json(asked).digest for asked in body["keys"]]
        return {"winners": {digest: known[digest] for digest in digests if digest in known}, "digests": digests}

    with service(answer) as url:
        yield url


SOURCES = {"sqlite": sqlite, "json": exported, "http": served}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_winner_is_applied(kind: str, tmp_path: Path, alone: Array, patient: None) -> None:
    with SOURCES[kind](tmp_path, winner()) as source:
        autotune.install(source)
        found: list[Array] = []
        did = counted(lambda: found.append(conv().numpy()))
        assert (did.convolutions, did.hits, did.applied, did.misses, did.fallbacks) == (1, 1, 1, 0, 0)
        assert did.seconds > 0
        assert relative(found[0], alone) < 1e-4
        assert count() == 4
        did = counted(lambda: kernel_count(Tensor.empty(1, 4, 20, 20).conv2d(W)))
        assert (did.convolutions, did.hits, did.misses) == (1, 0, 1)
        autotune.uninstall()
        assert count() == 1


def test_a_winner_of_the_service_itself(tmp_path: Path, patient: None) -> None:
    with sqlite(tmp_path, winner()) as database, application(Path(database)) as running:
        autotune.install(running.url)
        assert count() == 4


@pytest.mark.parametrize("name", ["tensor_winograd", "direct"])
def test_the_defaults_as_winners(name: str, tmp_path: Path) -> None:
    with exported(tmp_path, winner(Candidate.of(name))) as source, autotune.tuned(source):
        did = counted(count)
        assert (did.hits, did.applied) == (1, int(name != "direct"))


@pytest.mark.parametrize(
    ("state", "guesses", "applied"),
    [("verified", False, 1), ("provisional", False, 1), ("pinned", False, 1), ("revoked", False, 0),
     ("revoked", True, 0), ("guess", False, 0), ("guess", True, 1)],
)  # fmt: skip
def test_states(state: str, guesses: bool, applied: int, tmp_path: Path) -> None:
    with exported(tmp_path, winner(state=state)) as source, autotune.tuned(source, guesses=guesses):
        did = counted(count)
    assert (did.applied, did.misses, did.fallbacks) == (applied, 1 - applied, 0)


def test_a_winner_of_another_policy_or_other_flags(tmp_path: Path) -> None:
    with exported(tmp_path, winner(max_error=1e-5)) as source:
        with autotune.tuned(source):
            assert count() == 1
        with autotune.tuned(source, policy=Policy(max_error=1e-5)):
            assert count() == 4
        with autotune.tuned(source, policy=Policy(max_error=1e-5)), Context(BEAM=2):
            assert count() == 1  # tuned without BEAM: it is promised nothing


def test_the_variable_is_only_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSourceError, match="give a URL or a file to install"):
        autotune.install()
    with pytest.raises(NoSourceError, match="give a URL or a file to tuned"), autotune.tuned():
        pass
    with exported(tmp_path, winner()) as source:
        monkeypatch.setenv("AUTOTUNE_SOURCE", source)
        assert count() == 1  # nothing acts on a program that asked for nothing
        autotune.install()
        assert count() == 4


def test_an_address_that_is_none() -> None:
    with pytest.raises(SourceError, match="expected http://"):
        autotune.install("ftp://somewhere/x")
    assert runtime._stack == []


def test_blocks_within_blocks(tmp_path: Path) -> None:
    with exported(tmp_path, winner()) as source:
        autotune.install(source)
        with autotune.forced("single_fused"):
            assert count() == 1
            with autotune.tuned(source):
                assert count() == 4
            assert count() == 1
        assert count() == 4
        (tmp_path / "second").mkdir()
        with exported(tmp_path / "second", winner(Candidate.of("deferred_mhat"))) as other:
            autotune.install(other)  # in place of the first
            assert count() == 3
        autotune.uninstall()
        assert count() == 1


def test_stats_add_up(tmp_path: Path) -> None:
    with exported(tmp_path, winner()) as source, autotune.tuned(source):
        y = conv() + X.conv2d(normal(4, 4, 5, 5), padding=2) + X.conv2d(W[:, :, :1, :1])
        did = counted(lambda: kernel_count(y))
    assert (did.convolutions, did.hits, did.applied, did.misses, did.fallbacks) == (3, 1, 1, 2, 0)
    assert isinstance(autotune.stats(), Stats)


def test_forced_leaves_what_it_does_not_apply_to() -> None:
    with autotune.forced("tensor_winograd"):
        did = counted(lambda: kernel_count(X.conv2d(W, stride=2)))
    assert (did.convolutions, did.hits, did.misses, did.fallbacks) == (1, 0, 1, 0)


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_winners_that_change_in_mid_process(kind: str, tmp_path: Path) -> None:
    """The next schedule has them, although tinygrad's cache is warm."""
    with SOURCES[kind](tmp_path, winner()) as source:
        autotune.install(source)
        assert [count(), count()] == [4, 4]
        with SOURCES[kind](tmp_path, winner(FUSED, decided_at=2.0)):
            assert count() == 1
        with SOURCES[kind](tmp_path, winner(DIRECT, decided_at=3.0)):
            assert count() == 1
        with SOURCES[kind](tmp_path, winner(FOUR, decided_at=4.0)):
            assert count() == 4


def test_winners_of_a_service_that_change(patient: None) -> None:
    answers: list[Winner] = []

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        return {"winners": {each.key.digest: each.to_json() for each in answers}, "digests": []}

    now = [0.0]
    with service(answer) as url:
        autotune.install(url)
        source = runtime._stack[0][0]
        assert isinstance(source, Winners)
        source._source._clock = lambda: now[0]  # type: ignore[attr-defined]
        assert count() == 1
        answers.append(winner())
        assert count() == 1  # known for the time of a window
        now[0] += 6
        assert count() == 4


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_a_file_that_comes_later(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was scheduled meanwhile is scheduled again."""
    monkeypatch.setattr(decisions, "FIRST_BACKOFF_S", 0.0)
    missing = tmp_path / {"sqlite": "autotune.db", "json": "winners.json"}[kind]
    autotune.install(missing)
    with pytest.warns(RuntimeWarning, match="winners cannot be read, tinygrad goes on alone"):
        assert count() == 1
    assert count() == 1
    with SOURCES[kind](tmp_path, winner()):
        assert count() == 4


def test_a_service_that_comes_back(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    monkeypatch.setattr(decisions, "FIRST_BACKOFF_S", 0.0)
    up, now = [False], [0.0]

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        return {"winners": {winner().key.digest: winner().to_json()}, "digests": []} if up[0] else b"not yet"

    with service(answer) as url, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        autotune.install(url)
        looked = runtime._stack[0][0]
        assert isinstance(looked, Winners)
        looked._source._clock = lambda: now[0]  # type: ignore[attr-defined]
        assert count() == 1
        up[0] = True
        now[0] += 6
        assert count() == 4
    assert len(said) == 1


def test_a_captured_jit_keeps_its_lowering() -> None:
    run = TinyJit(lambda x: x.conv2d(W, padding=1).realize())

    def kernels() -> int:
        before = GlobalCounters.kernel_count
        run(X)
        return GlobalCounters.kernel_count - before

    with Context(NOOPT=1):
        with autotune.forced("four_buffer"):
            assert [kernels() for _ in range(4)] == [4, 4, 4, 4]
        assert kernels() == 4
        with autotune.forced("inline_transforms"):
            assert kernels() == 4
            run.reset()
            assert [kernels() for _ in range(3)] == [2, 2, 2]
        autotune.uninstall()
        run.reset()
        assert [kernels() for _ in range(3)] == [1, 1, 1]


# What goes wrong


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
    assert did.seconds < 1


def test_a_slow_service(alone: Array) -> None:
    """Ten seconds an answer: the program waits for a part of a second, once."""
    release = threading.Event()

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
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
    assert did.seconds < 1.5


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


# Next to what else a program may use


def test_the_users_own_winograd() -> None:
    with Context(WINO=1, NOOPT=1):
        expected = conv().numpy()
        with autotune.forced("single_fused"):
            did = counted(count)
            assert np.array_equal(conv().numpy(), expected)
        assert did.applied == 0


def test_half_next_to_it() -> None:
    x, w = X.cast(dtypes.float16), W.cast(dtypes.float16)
    with Context(NOOPT=1):
        expected = x.conv2d(w, padding=1).relu().numpy()
        with autotune.forced("hybrid_grid"):
            found = x.conv2d(w, padding=1).relu().numpy()
    assert found.dtype == np.float16
    assert relative(found.astype(np.float64), expected.astype(np.float64)) < 1e-3


def test_a_kernel_of_the_users_own_next_to_it() -> None:
    def twice(out: UOp, a: UOp) -> UOp:
        i = UOp.range(a.numel(), 0)
        doubled: UOp = out.flatten()[i].store(a.flatten()[i] * 2).end(i).sink(arg=KernelInfo(name="twice"))
        return doubled

    def run() -> Tensor:
        out = Tensor.empty(*SHAPE.output_shape)
        return Tensor.custom_kernel(out, conv().contiguous(), fxn=twice)[0].conv2d(W)

    with Context(NOOPT=1):
        expected = (conv() * 2).contiguous().conv2d(W).numpy()
        assert relative(run().numpy(), expected) < 1e-4
        with autotune.forced("four_buffer"):
            found: list[Array] = []
            did = counted(lambda: found.append(run().numpy()))
    assert did.applied == 2
    assert relative(found[0], expected) < 1e-4


@pytest.mark.slow
def test_beam_next_to_it(tmp_path: Path) -> None:
    """A user's BEAM goes on searching, over our kernels too."""
    environment = {
        **os.environ,
        "CACHEDB": str(tmp_path / "cache.db"),
        "BEAM": "1",
        "DEV": "CPU",
        "PARALLEL": "0",
        "PYTHONPATH": str(ROOT),
    }
    program = """
import numpy as np, autotune
from autotune.compiler import ensure_c_compiler
ensure_c_compiler()
if __name__ == "__main__":
    from tinygrad import Tensor
    Tensor.manual_seed(0)
    x, w = Tensor.randn(1, 2, 6, 6).realize(), Tensor.randn(2, 2, 3, 3).realize()
    y = x.conv2d(w).numpy()
    with autotune.forced("inline_transforms"):
        z = x.conv2d(w).relu().numpy()
    assert abs(np.maximum(y, 0) - z).max() < 1e-4, (y, z)
    print(autotune.stats().applied)
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
