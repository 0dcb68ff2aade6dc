"""Winograd's transform matrices, exact, for any tile F(m, r).

Cook-Toom with the point at infinity, as in Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks"
(arXiv:1509.09308), section 4, and Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd
Convolution for DNNs" (arXiv:1803.10986), section 3, for the choice of points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

Matrix = tuple[tuple[Fraction, ...], ...]

HALF = Fraction(1, 2)
POINTS: dict[int, tuple[Fraction, ...]] = {
    # F(m, 3) takes m + 1 finite points; small ones, in pairs of both signs, keep the matrices' entries near 1
    2: tuple(map(Fraction, (0, 1, -1))),
    4: tuple(map(Fraction, (0, 1, -1, 2, -2))),
    6: (*map(Fraction, (0, 1, -1, 2, -2)), HALF, -HALF),
}
TILES = tuple(POINTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """The three matrices of F(m, r): y = At [(G g) * (Bt d)], for d of m + r - 1 inputs, g of r taps, y of m outputs.

    `at` is m x n, `g` is n x r, `bt` is n x n, with n = m + r - 1 products (`alpha` in the literature).
    """

    m: int
    r: int
    at: Matrix
    g: Matrix
    bt: Matrix

    @property
    def products(self) -> int:
        return self.m + self.r - 1


@cache
def cook_toom(m: int, r: int = 3) -> Transform:
    """F(m, r) from the points of POINTS; the denominators of their differences are all in `g`.

    Raises KeyError for a tile without points.
    """
    points = POINTS[m][: m + r - 2]
    n = m + r - 1
    infinity = n - 1
    at = tuple(tuple(p**i for p in points) + (Fraction(int(i == m - 1)),) for i in range(m))
    g = tuple(
        tuple(p**k / _denominator(points, j) for k in range(r)) for j, p in enumerate(points)
    ) + (tuple(Fraction(int(k == r - 1)) for k in range(r)),)  # fmt: skip
    bt = tuple(
        _coefficients(tuple(q for i, q in enumerate(points) if i != j)) + (Fraction(0),) for j in range(infinity)
    ) + (_coefficients(points),)  # fmt: skip
    return Transform(m=m, r=r, at=at, g=g, bt=bt)


def _denominator(points: tuple[Fraction, ...], j: int) -> Fraction:
    """The Lagrange denominator of point j."""
    return math.prod((points[j] - q for i, q in enumerate(points) if i != j), start=Fraction(1))


def _coefficients(roots: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """The coefficients, lowest first, of the monic polynomial with these roots."""
    result: tuple[Fraction, ...] = (Fraction(1),)
    for root in roots:
        shifted = (Fraction(0), *result)
        scaled = (*(root * c for c in result), Fraction(0))
        result = tuple(a - b for a, b in zip(shifted, scaled, strict=True))
    return result
