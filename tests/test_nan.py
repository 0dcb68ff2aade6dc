"""NaN and infinity outside what a convolution may read never reach its output."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import TOLERANCE, WINOGRAD, Array, normal, relative
from tinygrad import Tensor
from tinygrad.helpers import Context

import autotune

N, CIN, COUT, H, W = 3, 3, 5, 7, 9  # no multiple of any tile or block
PLAIN = normal(N, CIN, H, W).numpy()
WEIGHT = normal(COUT, CIN, 3, 3, seed=1)


def surrounded(values: Array, poison: float) -> Tensor:
    """A view of `values` that lie in a larger buffer of `poison`."""
    large = np.full([size + 3 for size in values.shape], poison, np.float32)
    inner = tuple(slice(1, 1 + size) for size in values.shape)
    large[inner] = values
    return Tensor(large).contiguous().realize()[inner]


@pytest.mark.parametrize(
    ("strategy", "poison"), [*((name, np.nan) for name in WINOGRAD), ("four_buffer", np.inf), ("single_fused", -np.inf)]
)
def test_what_the_views_skip(strategy: str, poison: float) -> None:
    """Neither padding, nor a tile beyond the edge, nor what fills up a block of couts or tiles reads it."""
    expected = Tensor(PLAIN).conv2d(WEIGHT, padding=(1, 2, 0, 1)).numpy()
    x, w = surrounded(PLAIN, poison), surrounded(WEIGHT.numpy(), poison)
    with Context(NOOPT=1), autotune.forced(strategy):
        found = x.conv2d(w, padding=(1, 2, 0, 1)).numpy()
    assert relative(found, expected) < TOLERANCE


@pytest.mark.parametrize("strategy", WINOGRAD)
def test_another_image_and_another_group(strategy: str) -> None:
    x = normal(N, 4, H, W, seed=2).numpy()
    w = normal(4, 2, 3, 3, seed=3)
    clean = Tensor(x).conv2d(w, padding=1, groups=2).numpy()
    x[1, 2:] = np.nan
    x[0, 0, 0, 0] = np.inf
    with Context(NOOPT=1), autotune.forced(strategy):
        found = Tensor(x).conv2d(w, padding=1, groups=2).numpy()
    assert not np.isfinite(found[1, 2:]).any()
    assert relative(found[1, :2], clean[1, :2]) < TOLERANCE
    assert relative(found[2], clean[2]) < TOLERANCE
    assert relative(found[0, 2:], clean[0, 2:]) < TOLERANCE
    # the corner: what reads it, and with it at most the rest of its tile of 6
    assert not np.isfinite(found[0, :2, :2, :2]).any()
    assert relative(found[0, :2, 6:], clean[0, :2, 6:]) < TOLERANCE
    assert relative(found[0, :2, :, 6:], clean[0, :2, :, 6:]) < TOLERANCE


@pytest.mark.parametrize("strategy", ["blocked", "four_buffer"])
def test_an_activation_that_is_nan_outside(strategy: str) -> None:
    """log(0) is never taken: padding and the edge are beside the activation, not under it."""
    x = Tensor(np.abs(PLAIN) + 1)
    expected = x.log().conv2d(WEIGHT, padding=2).numpy()
    with Context(NOOPT=1), autotune.forced(strategy):
        found = x.log().conv2d(WEIGHT, padding=2).numpy()
    assert relative(found, expected) < TOLERANCE
