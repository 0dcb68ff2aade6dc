"""The transform matrices, in exact arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from graphs import examples
from hypothesis import given
from hypothesis import strategies as st

from strategies.transform import TILES, Matrix, cook_toom

rationals = st.fractions(min_value=-100, max_value=100, max_denominator=50)


def product(matrix: Matrix, vector: Sequence[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


def kron(left: Matrix, right: Matrix) -> Matrix:
    return tuple(tuple(a * b for a in row for b in other) for row in left for other in right)


def test_the_tiles_that_there_are() -> None:
    assert TILES == (2, 4, 6)
    with pytest.raises(KeyError):
        cook_toom(3)


@pytest.mark.parametrize("m", TILES)
def test_shapes_and_exactness(m: int) -> None:
    t = cook_toom(m)
    n = m + 2
    assert (t.m, t.r, t.products) == (m, 3, n)
    for matrix, rows, columns in ((t.at, m, n), (t.g, n, 3), (t.bt, n, n)):
        assert len(matrix) == rows
        assert {len(row) for row in matrix} == {columns}
        assert all(type(value) is Fraction for row in matrix for value in row)


@pytest.mark.parametrize("m", TILES)
def test_the_identity_holds_symbolically(m: int) -> None:
    """sum over a of at[i, a] g[a, k] bt[a, j] is 1 where j = i + k, else 0: the bilinear form is the convolution."""
    t = cook_toom(m)
    for i, k, j in itertools.product(range(m), range(3), range(m + 2)):
        assert sum(t.at[i][a] * t.g[a][k] * t.bt[a][j] for a in range(t.products)) == int(j == i + k)


@pytest.mark.parametrize("m", TILES)
@given(data=st.data())
@examples(5)
def test_1d_over_random_rationals(m: int, data: st.DataObject) -> None:
    t = cook_toom(m)
    d = data.draw(st.lists(rationals, min_size=m + 2, max_size=m + 2))
    g = data.draw(st.lists(rationals, min_size=3, max_size=3))
    products = [a * b for a, b in zip(product(t.g, g), product(t.bt, d), strict=True)]
    assert product(t.at, products) == [sum(d[i + k] * g[k] for k in range(3)) for i in range(m)]


@pytest.mark.parametrize("m", TILES)
@given(data=st.data())
@examples(2)
def test_2d_by_kron_over_random_rationals(m: int, data: st.DataObject) -> None:
    t = cook_toom(m)
    n = m + 2
    d = data.draw(st.lists(rationals, min_size=n * n, max_size=n * n))
    g = data.draw(st.lists(rationals, min_size=9, max_size=9))
    ghat, xhat = product(kron(t.g, t.g), g), product(kron(t.bt, t.bt), d)
    y = product(kron(t.at, t.at), [a * b for a, b in zip(ghat, xhat, strict=True)])
    taps = list(itertools.product(range(3), repeat=2))
    assert y == [
        sum(d[(i + a) * n + j + b] * g[3 * a + b] for a, b in taps)
        for i, j in itertools.product(range(m), repeat=2)
    ]  # fmt: skip


@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_of_the_literature(m: int) -> None:
    """F(2, 3) and F(4, 3) of Lavin & Gray, up to the order of the points and a factor shared between g and bt."""
    paper = {
        2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        4: ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
    }[m]  # fmt: skip
    for mine, theirs in zip(cook_toom(m).bt, paper, strict=True):
        ratios = {a / b for a, b in zip(mine, theirs, strict=True) if b}
        assert len(ratios) == 1
        assert [a == 0 for a in mine] == [b == 0 for b in theirs]


@pytest.mark.parametrize("m", TILES)
def test_every_entry_is_a_float_exactly_or_nearly(m: int) -> None:
    t = cook_toom(m)
    assert all(math.isclose(float(v), v, rel_tol=1e-16) for matrix in (t.at, t.g, t.bt) for row in matrix for v in row)
    assert all(float(v) == v for matrix in (t.at, t.bt) for row in matrix for v in row)
