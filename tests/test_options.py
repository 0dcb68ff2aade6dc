"""Kernel options, captured and put back: the same source, without a search."""

from __future__ import annotations

import json

import pytest
from tinygrad import Context
from tinygrad.codegen.opt import Opt, OptOps

from strategies.candidate import Candidate
from strategies.graph.options import beam_choices
from strategies.graph.program import Program, convolution, operands, schedule
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


def test_options_that_no_kernel_has_are_named() -> None:
    assert Program(SMALL, Candidate.of("direct"), "CPU", options={"0" * 16: []}).unmatched == {"0" * 16}
