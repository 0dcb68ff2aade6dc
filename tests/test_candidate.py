"""Candidates and their parameters: plain JSON, one spelling per lowering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from any_value import candidates as any_candidates
from graphs import candidates, examples
from hypothesis import given

from strategies.candidate import Candidate, CandidateFormatError
from strategies.parameter import ParameterError, bind, canonical, param, parameters_of
from strategies.registry import get_strategy


@dataclass(frozen=True)
class Params:
    tile: int = param(4, (2, 4, 6), "outputs per tile")
    blocked: bool = param(False, (False, True))
    block: int = param(8, (4, 8), when=lambda chosen: bool(chosen["blocked"]))


def test_digests_are_settled_and_order_does_not_matter() -> None:
    assert Candidate.of("four_buffer", tile=4, output="auto").digest == "9768723547397a9e"
    assert Candidate.of("a", x=1, y=2) == Candidate.of("a", y=2, x=1)
    assert Candidate.of("a", x=1).digest != Candidate.of("a", x=2).digest != Candidate.of("b", x=2).digest
    assert str(Candidate.of("a", y="b", x=True)) == "a(x=True, y=b)"
    assert str(Candidate.of("direct")) == "direct"


@given(any_candidates)
@examples(50)
def test_json_and_back(candidate: Candidate) -> None:
    assert Candidate.from_json(candidate.to_json()) == candidate


@pytest.mark.parametrize(
    "data",
    [
        None, [], "direct", {}, {"strategy": None}, {"strategy": 1}, {"strategy": "a", "params": [1]},
        {"strategy": "a", "params": {"tile": None}}, {"strategy": "a", "params": {"tile": [4]}},
        {"strategy": "a", "params": {"tile": 4.0}}, {"strategy": "a", "kernel_options": []},
        {"strategy": "a", "kernel_options": {"product": "x"}}, {"strategy": "a", "kernel_options": {"product": [1]}},
        {"strategy": "a", "kernel_options": {"product": ["abc"]}},
    ],
)  # fmt: skip
def test_json_that_is_no_candidate(data: Any) -> None:
    with pytest.raises(CandidateFormatError):
        Candidate.from_json(data)


def test_parameters_carry_their_search_space() -> None:
    tile, blocked, block = parameters_of(Params)
    assert (tile.name, tile.default, tile.choices, tile.about) == ("tile", 4, (2, 4, 6), "outputs per tile")
    assert tile.active({})
    assert blocked.choices == (False, True)
    assert not block.active({"blocked": False})
    assert block.active({"blocked": True})


def test_a_default_outside_its_space() -> None:
    with pytest.raises(ParameterError, match="not among"):
        param(3, (2, 4))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tile": 3}, "tile must be one of"), ({"tile": True}, "tile must be one of"), ({"tile": "4"}, "tile must"),
        ({"tile": 4.0}, "tile must be one of"), ({"blocked": 0}, "blocked must be one of"), ({"x": 1}, "no parameter"),
        ({"tile": 10**30}, "tile must be one of"), ({"tile": [4]}, "tile must be one of"),
    ],
)  # fmt: skip
def test_values_outside_the_space(values: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        bind(Params, values)


def test_one_spelling_per_lowering() -> None:
    assert canonical(Params, {}) == {"tile": 4, "blocked": False}
    assert canonical(Params, {"block": 4}) == {"tile": 4, "blocked": False}  # it means nothing without blocks
    assert canonical(Params, {"blocked": True, "block": 4}) == {"tile": 4, "blocked": True, "block": 4}


@given(candidates())
@examples(30)
def test_a_candidate_of_a_strategy_binds_again(candidate: Candidate) -> None:
    item = get_strategy(candidate.strategy)
    assert item.candidate(dict(candidate.params)) == candidate
    bound = item.bound(Candidate.from_json(candidate.to_json()))
    assert all(getattr(bound, name) == value for name, value in candidate.params)
