"""The model of what measured candidates say of others."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import SPACE, time_of

from autotune.surrogate import MAX_POINTS, NOISE, Point, Surrogate
from strategies.candidate import Candidate

EVERYTHING = list(SPACE)


def point(candidate: Candidate, distance: float = 0.0) -> Point:
    return Point(candidate=candidate, value=math.log(time_of(candidate) / 7e-3), distance=distance)


def test_it_knows_what_it_was_told_and_is_less_sure_of_the_rest() -> None:
    told = EVERYTHING[::9]
    model = Surrogate([point(c) for c in told])
    mean, deviation = model.predict(told)
    assert np.allclose(mean, [point(c).value for c in told], atol=5 * NOISE)
    others = [c for c in EVERYTHING if c not in told]
    assert model.predict(others)[1].mean() > 2 * deviation.mean()


def test_it_learns_which_choices_matter() -> None:
    """The layout does, cout_block less; `fused` is told apart from `staged`."""
    mean, _ = Surrogate([point(c) for c in EVERYTHING[::5]]).predict(EVERYTHING)
    truth = [point(c).value for c in EVERYTHING]
    assert np.corrcoef(mean, truth)[0, 1] > 0.9


def test_what_is_far_away_says_less() -> None:
    near, far = (Surrogate([point(EVERYTHING[20], d), point(EVERYTHING[200], d)]) for d in (0.0, 3.0))
    assert near.predict([EVERYTHING[20]])[1][0] < far.predict([EVERYTHING[20]])[1][0]


def test_what_has_never_been_seen_is_no_fault() -> None:
    model = Surrogate([point(EVERYTHING[0])])
    mean, deviation = model.predict([Candidate.of("of_tomorrow", tile=9), Candidate.of("direct")])
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
    with pytest.raises(ValueError, match="at least one"):
        Surrogate([])


def test_weights_can_be_kept() -> None:
    points = [point(c) for c in EVERYTHING[::10]]
    learned = Surrogate(points)
    again = Surrogate(points, learned.weights)
    assert np.allclose(learned.predict(EVERYTHING)[0], again.predict(EVERYTHING)[0])


def test_there_is_no_end_of_points() -> None:
    values = np.random.default_rng(0).normal(size=MAX_POINTS + 50)
    many = [Point(candidate=EVERYTHING[i % 200], value=float(v)) for i, v in enumerate(values)]
    assert np.isfinite(Surrogate(many, {}).predict(EVERYTHING)[0]).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(EVERYTHING), st.floats(-4, 5), st.floats(0, 6)), min_size=1, max_size=12))
def test_whatever_it_is_told_it_answers(told: list[tuple[Candidate, float, float]]) -> None:
    """The same candidate twice, contradictions, one value only: the covariance stays positive definite."""
    model = Surrogate([Point(candidate=c, value=v, distance=d) for c, v, d in told])
    mean, deviation = model.predict(EVERYTHING[:50])
    assert np.isfinite(mean).all()
    assert (deviation >= 0).all()
    assert (model.expected_improvement(EVERYTHING[:50], 0.0) >= 0).all()
