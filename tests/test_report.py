"""What the hook says of each convolution of the last schedule, and that it adds up with what it counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from graphs import counted, kernel_count, normal
from tinygrad import Tensor, TinyJit
from tinygrad.device import Buffer
from tinygrad.helpers import Context
from values import a_winner

import autotune
from autotune import bundle, warn
from autotune.report import Outcome
from autotune.winner import Winner
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.shape import ConvShape

SHAPE = ConvShape.of((1, 4, 12, 12), (4, 4, 3, 3), padding=1)
X, W = normal(*SHAPE.input_shape), normal(*SHAPE.weight_shape, seed=1)


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warn, "_warned", set())
    with Context(NOOPT=1):
        yield
    autotune.uninstall()


def winner(shape: ConvShape, candidate: Candidate, state: str = "verified") -> Winner:
    key = ConvKey(shape=shape.canonical(), device=describe_device("CPU"))
    return replace(a_winner(key, state=state), candidate=candidate)


def conv() -> Tensor:
    return X.conv2d(W, padding=1)


def listed() -> list[tuple[str, str]]:
    return [(str(report.outcome), report.reason) for report in autotune.explain_last()]


def test_each_convolution_of_the_last_schedule(tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    bundle.write(path, [
        winner(SHAPE, Candidate.of("four_buffer", tile=2)),
        winner(ConvShape.of((1, 4, 12, 12), (5, 4, 3, 3)), Candidate.of("direct"), "pinned"),
        winner(ConvShape.of((1, 4, 12, 12), (6, 4, 3, 3)), Candidate.of("four_buffer"), "guess"),
        winner(ConvShape.of((1, 4, 12, 12), (8, 4, 3, 3)), Candidate.of("of_tomorrow")),
    ])  # fmt: skip
    autotune.install(path)
    outputs = [conv(), *(X.conv2d(normal(couts, 4, 3, 3)) for couts in (5, 6, 7, 8))]
    with pytest.warns(RuntimeWarning, match="of_tomorrow cannot be applied"):
        did = counted(lambda: Tensor.schedule_linear(*outputs))
    reports = {str(report.key.shape if report.key else ""): report for report in autotune.explain_last()}
    said = {shape.split()[1]: (report.outcome, report.reason) for shape, report in reports.items()}
    assert said["4x4x3x3"] == (Outcome.APPLIED, f"verified winner of {path}")
    assert said["5x4x3x3"] == (Outcome.DIRECT, f"pinned winner of {path}")
    assert said["6x4x3x3"] == (Outcome.MISS, f"its winner in {path} is a guess: it takes guesses=True")
    assert said["7x4x3x3"] == (Outcome.MISS, f"no winner is known in {path}")
    assert said["8x4x3x3"][0] is Outcome.FALLBACK
    assert "UnknownStrategyError: no strategy 'of_tomorrow'" in said["8x4x3x3"][1]
    assert (did.convolutions, did.hits, did.applied, did.misses, did.fallbacks) == (5, 2, 1, 2, 1)
    text = str(reports[str(SHAPE)])
    assert text == f"1x4x12x12 4x4x3x3 padding 1 on CPU: four_buffer(tile=2) (verified winner of {path})"
    assert "left to tinygrad (no winner is known" in "\n".join(map(str, autotune.explain_last()))


def test_a_schedule_from_the_cache_is_listed_too() -> None:
    with autotune.forced("four_buffer"):
        kernel_count(conv())
        kernel_count(X.conv2d(W))
        assert [str(report.key.shape) for report in autotune.explain_last() if report.key] == ["1x4x12x12 4x4x3x3"]
        kernel_count(conv())
        assert [str(report.key.shape) for report in autotune.explain_last() if report.key] == [str(SHAPE)]
        kernel_count(X + 1)  # no convolution: the last one that had some stays
        assert listed() == [("applied", "forced")]
    with autotune.forced("tensor_winograd"):
        kernel_count(X.conv2d(W[:, :, :2, :2]))
    assert listed() == [("miss", "tensor_winograd does not apply to it")]


def test_a_convolution_that_no_key_describes() -> None:
    with autotune.forced("four_buffer"):
        kernel_count(Tensor.empty(1, 2, 5, 5, 5).conv2d(Tensor.empty(3, 2, 3, 3, 3)))
    assert listed() == [("miss", "no key describes it")]
    assert str(autotune.explain_last()[0]).startswith("a convolution of another kind on CPU: left to tinygrad")


def test_a_jit_lists_what_it_captured() -> None:
    run = TinyJit(lambda x: x.conv2d(W, padding=1).realize())
    with autotune.forced("four_buffer"):
        for _ in range(3):
            run(X)
        assert listed() == [("applied", "forced")]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_graph_without_memory(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is out of memory for the intermediates: the program runs as it would have, and counts agree."""
    y, taken = conv().relu(), []
    with autotune.forced("direct"):
        expected = y.numpy()
    most = expected.nbytes
    allocate = Buffer.allocate

    def small(buffer: Buffer, *args: object) -> Buffer:
        if buffer.nbytes > most:
            raise MemoryError("the device is full")
        taken.append(buffer.nbytes)
        return allocate(buffer, *args)

    monkeypatch.setattr(Buffer, "allocate", small)
    stop = threading.Event()
    others = [threading.Thread(target=stop.wait) for _ in range(1, threads)]
    for other in others:
        other.start()
    try:
        with autotune.forced("four_buffer"):
            found: list[object] = []
            with pytest.warns(RuntimeWarning, match="a rewritten graph failed.*MemoryError: the device is full"):
                did = counted(lambda: found.append(conv().relu().numpy()))
            assert listed() == [("fallback", "its graph failed: MemoryError: the device is full")]
            again = counted(lambda: found.append(conv().relu().numpy()))
    finally:
        stop.set()
        for other in others:
            other.join()
    assert all((each == expected).all() for each in found)  # type: ignore[attr-defined]
    assert (did.convolutions, did.hits, did.applied, did.fallbacks) == (1, 0, 0, 1)
    assert (again.convolutions, again.applied) == (0, 0)  # scheduled alone from then on
