"""A seeded share of what `python bench/hook.py` computes by the thousand: random graphs under every strategy."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from graphs import examples
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor
from tinygrad.helpers import Context

from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.ranges import Ranges


def bench() -> ModuleType:
    """bench/random_graphs.py, whose directory is no package."""
    directory = str(Path(__file__).parent.parent / "bench")
    sys.path.insert(0, directory)
    try:
        import random_graphs
    finally:
        sys.path.remove(directory)
    return random_graphs


RANDOM = bench()


@examples(6)
@given(graph=RANDOM.graphs(), name=st.sampled_from(RANDOM.names_on("CPU")))
def test_a_graph_keeps_its_numbers(graph: object, name: str) -> None:
    with Context(NOOPT=1):
        RANDOM.difference(name, graph, graph.run(), RANDOM.Met())  # type: ignore[attr-defined]


def test_every_strategy_has_convolutions_to_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on those that it is for: scheduled for a device whose threads share memory, nothing is compiled."""

    def there(*size: int) -> Tensor:
        return Tensor.empty(*size, device="PYTHON")

    for name in ("BIAS", "OTHER", "LINEAR", "WIDE", "POINTWISE", "NARROW", "BOTH"):
        monkeypatch.setattr(RANDOM, name, there(*getattr(RANDOM, name).shape))
    monkeypatch.setattr(RANDOM, "WEIGHTS", {key: there(*weight.shape) for key, weight in RANDOM.WEIGHTS.items()})
    x = there(*RANDOM.SHAPE)
    steps = [step for name, step in RANDOM.STEPS.items() if name.startswith("conv")]
    for name in (*RANDOM.FOR_GPUS, RANDOM.MIXED):
        met = RANDOM.Met()
        with RANDOM.lowered(name, met):
            for step in steps:
                step(x, x).linear_with_vars()
        assert met.applied.total() >= 3, name
        assert name != RANDOM.MIXED or len(met.applied) > 5


def test_what_a_lowering_raises_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook would rescue the program, and the result would be right."""

    def broken(conv: Conv, candidate: object, ranges: Ranges) -> Lowered | None:
        raise ZeroDivisionError("planted")

    graph = RANDOM.Graph(steps=("relu",))
    with Context(NOOPT=1):
        expected = graph.run()
        monkeypatch.setattr(RANDOM, "lower", broken)
        with pytest.raises(AssertionError, match="four_buffer raised ZeroDivisionError: planted"):
            RANDOM.difference("four_buffer", graph, expected, RANDOM.Met())


def test_a_wrong_number_is_seen() -> None:
    graph = RANDOM.Graph(steps=("relu",))
    with Context(NOOPT=1), pytest.raises(AssertionError, match="four_buffer differs by"):
        RANDOM.difference("four_buffer", graph, graph.run() * 1.01, RANDOM.Met())
