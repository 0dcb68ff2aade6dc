"""Every strategy on METAL, pairwise with shapes, tiles, types and tensor cores: executed, watched, against float64."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from metal.cases import FACTORS, Case, covering, full, pairwise
from metal.suite import passed, run

from strategies.registry import get_strategy, strategies
from tests.on_metal import fresh_metal, needs_metal


@needs_metal
@pytest.mark.usefixtures(fresh_metal.__name__)
@pytest.mark.parametrize("case", pairwise(), ids=str)
def test_a_lowering_on_metal(case: Case) -> None:
    outcome = run(case)
    assert passed(outcome), outcome


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
    for item in strategies():
        for parameter in item.parameters:
            if parameter.when is None:
                assert {(item.name, parameter.name, value) for value in parameter.choices} <= seen
