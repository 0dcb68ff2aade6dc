"""Kernel options, captured and put back: the same source, without a search."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tinygrad import Context, TinyJit
from tinygrad.codegen.opt import Opt, OptOps
from tinygrad.uop.ops import Ops

from strategies.candidate import Candidate
from strategies.graph.kernels import tunable_kernels
from strategies.graph.options import beam_choices
from strategies.graph.program import Program, convolution, operands, schedule
from strategies.registry import get_strategy
from strategies.shape import ConvShape

SMALL = ConvShape.of((1, 4, 10, 10), (4, 4, 3, 3), padding=1)


@pytest.fixture
def small_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """BEAM over a few options instead of some hundred."""
    few = [Opt(OptOps.UPCAST, 0, 2), Opt(OptOps.UPCAST, 1, 2), Opt(OptOps.UNROLL, 0, 2)]
    monkeypatch.setattr("tinygrad.codegen.opt.search.actions", few)


@pytest.mark.parametrize("wino", [0, 1])
def test_what_beam_chose_is_replayed_byte_by_byte(wino: int, small_search: None) -> None:
    """Of tinygrad's own kernels, by the digest of each; through JSON, as bench/beam.py keeps it."""
    direct = Candidate.of("direct")
    with Context(WINO=wino, CACHELEVEL=0, PARALLEL=0):
        found = list(beam_choices(schedule(convolution(*operands(SMALL, "CPU"), SMALL), direct), 1))
        options = json.loads(json.dumps({choice.ast: choice.options for choice in found}))
        replayed = Program(SMALL, direct, "CPU", options=options)
        plain = Program(SMALL, direct, "CPU")
    assert not replayed.unmatched
    assert [k.source for k in replayed.kernels] == [choice.source for choice in found]
    assert [k.source for k in replayed.kernels] != [k.source for k in plain.kernels]


def test_bench_models_replays_what_a_jit_captures(monkeypatch: pytest.MonkeyPatch, small_search: None) -> None:
    """The captured kernels, not only those of the first call, have the options found for them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    replayed = importlib.import_module("models").replayed
    x, w = operands(SMALL, "CPU")
    build = lambda: convolution(x, w, SMALL).relu()  # noqa: E731
    with Context(NOOPT=1, CACHELEVEL=0, PARALLEL=0):
        [choice] = beam_choices(build().schedule_linear(), 1)
        chosen = {choice.ast: {"options": json.loads(json.dumps(choice.options))}}
        met = Counter[str]()
        with replayed(chosen, met):
            jit = TinyJit(lambda: build().realize())
            for _ in range(3):
                jit()
    assert met == {"searched": 1}
    captured = jit.captured
    assert captured is not None
    sources = [str(u.src[2].arg) for u in captured.linear.toposort() if u.op is Ops.PROGRAM]
    assert sources == [choice.source]


SHAPES = {
    "3x3": SMALL,
    "stride 2": ConvShape.of((1, 4, 10, 10), (4, 4, 3, 3), padding=1, stride=2),
    "depthwise": ConvShape.of((1, 4, 10, 10), (4, 1, 3, 3), padding=1, groups=4),
    "1x1": ConvShape.of((2, 4, 6, 6), (4, 4, 1, 1)),
}
TILE_2 = {"tile": 2}
REPLAYED = [(name, Candidate.of("direct")) for name in SHAPES] + [
    ("3x3", get_strategy(strategy).candidate(values))
    for strategy, values in (
        ("four_buffer", TILE_2), ("deferred_mhat", TILE_2), ("blocked", {**TILE_2, "cout_block": 2, "tile_block": 4}),
    )
]  # fmt: skip


@pytest.mark.parametrize(("name", "candidate"), REPLAYED, ids=lambda value: str(value).split("(")[0])
def test_options_of_a_candidate_are_replayed_byte_by_byte(name: str, candidate: Candidate) -> None:
    """What a search chose for each kernel alone, in the candidate, as JSON, in a program: no search, not even under
    BEAM, and the very source."""
    shape, chosen, sources = SHAPES[name], [], {}
    for kernel in tunable_kernels(shape, candidate, "CPU"):
        others = [o for o in kernel.more(()) if o != kernel.default]
        options = others[-1] if others else kernel.default  # one core has no threads to choose
        chosen.append((kernel.role, kernel.chosen(options)))
        sources[kernel.role] = kernel.source(options)
    tuned = Candidate.from_json(json.loads(json.dumps(replace(candidate, kernel_options=tuple(chosen)).to_json())))
    with Context(BEAM=2, PARALLEL=0):  # a search would not end here, and would not choose these
        program = Program(shape, tuned, "CPU")
    assert {k.role: k.source for k in program.kernels} == sources


def test_options_that_no_kernel_has_are_named() -> None:
    assert Program(SMALL, Candidate.of("direct"), "CPU", options={"0" * 16: []}).unmatched == {"0" * 16}
