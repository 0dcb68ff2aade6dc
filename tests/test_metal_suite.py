"""Every strategy on METAL, pairwise with shapes, tiles, types and tensor cores: executed, watched, against float64."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest
from metal.cases import FACTORS, NAMES, Case, covering, full, pairwise
from metal.suite import passed, run
from tinygrad.runtime import ops_metal

from strategies.registry import get_strategy
from tests.on_metal import fresh_metal, needs_metal

LOWERING_S = 10.0
"""Less than suite.py allows: single_fused's tile 6 takes longer than either, all else a fraction of this."""


@needs_metal
@pytest.mark.usefixtures(fresh_metal.__name__)
@pytest.mark.parametrize("case", pairwise(), ids=str)
def test_a_lowering_on_metal(case: Case) -> None:
    outcome = run(case, LOWERING_S)
    assert passed(outcome), outcome


LOAD = {"tile": 4, "cout_block": 64, "tile_block": 64, "depth": 4, "couts": 4, "tiles": 4, "ahead": False, "parts": 1}
BARRIER = r" *threadgroup_barrier\(mem_flags::mem_threadgroup\);\n"
THREAD = r"int lidx0 = lid\.x;"
PLANTED = {
    "the first barrier removed": ("shared_memory", f"{BARRIER}(?s:(.*))", r"\1", "fault", "uninitialised|race"),
    "the last barrier removed": ("shared_memory", f"(?s:(.*)){BARRIER}", r"\1", "fault", "race"),
    "a threadgroup array read off by one": ("shared_memory", r"\(buf4\+\(", "(buf4+(4+", "fault", "out of bounds"),
    "a buffer off by one": ("tensor_winograd", r"= gid\.y;", "= gid.y + 1;", "fault", "out of bounds"),
    "two threads take one's place": ("shared_memory", THREAD, "int lidx0 = lid.x & ~1;", "fault", "race"),
    "two lanes' places exchanged": (
        "tensor_winograd", THREAD, "int lidx0 = (lid.x & ~9) | (lid.x & 1) << 3 | (lid.x >> 3 & 1);", "wrong", "",
    ),
    "a threadgroup array too large": ("shared_memory", r"buf3\[256\]", "buf3[8193]", "error", "Threadgroup memory"),
}  # fmt: skip
"""Of a strategy's own kernel with simdgroup matrices or barriers: what is replaced by what, and what is to be found."""


@needs_metal
@pytest.mark.usefixtures(fresh_metal.__name__)
@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_planted_in_a_strategys_kernel_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    strategy, pattern, replacement, status, reason = PLANTED[name]
    planted = []

    def plant(source: str) -> str:
        if "simdgroup_multiply" not in source and "threadgroup_barrier" not in source:
            return source
        source, count = re.subn(pattern, replacement, source, count=1)
        planted.append(count)
        return source

    monkeypatch.setattr(ops_metal, "plant", plant)
    candidate = get_strategy(strategy).candidate(LOAD if strategy == "shared_memory" else {})
    outcome = run(Case(shape="8c 32", dtype="float32", tensor_cores=True, candidate=candidate))
    assert planted == [1]
    assert (outcome.status, bool(re.search(reason, outcome.reason))) == (status, True), outcome


@needs_metal
@pytest.mark.usefixtures(fresh_metal.__name__)
@pytest.mark.parametrize(
    ("strategy", "values"), [("deferred_mhat", {}), ("blocked", {"kernels": "heuristics", "tile_block": 8})]
)
def test_axes_made_by_hand_are_not_taken_for_those_of_a_tensor_core(strategy: str, values: dict[str, Any]) -> None:
    """tinygrad would use one, and compute four times the sum, or not compile it: see spare_tensor_cores."""
    candidate = get_strategy(strategy).candidate(values)
    outcome = run(Case(shape="8c 32", dtype="float32", tensor_cores=True, candidate=candidate))
    assert (outcome.status, outcome.sizes.get("matrices")) == ("ok", 0), outcome


def test_every_two_values_meet() -> None:
    rows = covering(FACTORS, random.Random(0))
    for a, b in itertools.combinations(FACTORS, 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(FACTORS[a], FACTORS[b]))


@pytest.mark.parametrize("cases", [pairwise(), list(full())], ids=["pairwise", "full"])
def test_every_value_of_every_parameter_occurs(cases: list[Case]) -> None:
    seen = {(case.candidate.strategy, *pair) for case in cases for pair in case.candidate.params}
    for item in map(get_strategy, NAMES):
        for parameter in item.parameters:
            if parameter.when is None:
                assert {(item.name, parameter.name, value) for value in parameter.choices} <= seen
