"""Verification: what is wrong is caught, slightly wrong too, and direct never is."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from graphs import Array
from tinygrad.helpers import Context

from autotune.reference import DISTRIBUTIONS, convolve, inputs
from autotune.verify import CEILING, FLOOR, Case, Verdict, bound, prepare_cases, verify
from strategies.candidate import Candidate
from strategies.graph.program import Program
from strategies.key import Policy
from strategies.shape import DTYPES, ConvShape
from strategies.transform import Matrix, cook_toom

SHAPE = ConvShape.of((3, 4, 20, 20), (6, 2, 3, 3), padding=1, groups=2)
POLICY = Policy()
Lowering = Callable[[Array, Array, ConvShape], Array]


class Scripted:
    """A program whose kernels are a function over float64 arrays; an element that it leaves NaN was not written."""

    def __init__(self, lowering: Lowering, shape: ConvShape = SHAPE) -> None:
        self.lowering, self.shape = lowering, shape
        self.y = np.zeros(shape.output_shape)

    def load(self, x: Array, w: Array) -> None:
        narrow = {"float16": np.float16}.get(self.shape.dtype, np.float32)
        self.x, self.w = x.astype(narrow).astype(np.float64), w.astype(narrow).astype(np.float64)

    def inputs(self) -> tuple[Array, Array]:
        return self.x, self.w

    def poison(self) -> None:
        self.y = np.full(self.shape.output_shape, np.nan)

    def run(self) -> float:
        computed = self.lowering(self.x, self.w, self.shape)
        written = ~np.isnan(computed) | np.isnan(convolve(self.x, self.w, self.shape))
        self.y = np.where(written, computed, self.y)
        return 1e-3

    def output(self) -> Array:
        return self.y


def float32(x: Array, w: Array, shape: ConvShape) -> Array:
    with np.errstate(invalid="ignore"):
        return convolve(x.astype(np.float32), w.astype(np.float32), shape).astype(np.float64)


@cache
def cases(shape: ConvShape = SHAPE) -> tuple[Case, ...]:
    return prepare_cases(shape, Scripted(float32, shape), seed=0)


def verdict(lowering: Lowering, policy: Policy = POLICY, shape: ConvShape = SHAPE) -> Verdict:
    return verify(Scripted(lowering, shape), cases(shape), shape, policy)


def test_the_bound() -> None:
    assert bound("float32", 0.0, POLICY) == FLOOR["float32"] == 1e-5
    assert bound("float32", 2e-6, POLICY) == 16 * 2e-6
    assert bound("float32", 1.0, POLICY) == CEILING["float32"] == 1e-4
    assert bound("float16", 0.0, POLICY) == 1e-3
    assert bound("bfloat16", 1e-3, POLICY) == 16e-3
    assert bound("float32", 2e-6, Policy(max_error=3e-7)) == 3e-7
    assert bound("float32", 0.0, Policy(max_error=1.0)) == 1e-5  # it tightens, it never loosens
    for broken in (math.inf, math.nan):  # direct itself overflows: that excuses nobody
        assert bound("float16", broken, POLICY) == 1e-3


def test_the_distributions() -> None:
    assert DISTRIBUTIONS == ("normal", "wide", "integers")
    for name in DISTRIBUTIONS:
        x, w = inputs(SHAPE, name, 1)
        assert x.shape == SHAPE.input_shape
        assert w.shape == SHAPE.weight_shape
        assert all(np.array_equal(a, b) for a, b in zip(inputs(SHAPE, name, 1), (x, w), strict=True))
        assert not np.array_equal(inputs(SHAPE, name, 2)[0], x)
    wide = np.abs(inputs(SHAPE, "wide", 0)[0])
    assert wide.max() / np.median(wide) > 50
    integers = inputs(SHAPE, "integers", 0)[0]
    assert np.array_equal(integers, integers.round())
    assert [case.direct_error for case in cases()][2] == 0.0
    with pytest.raises(ValueError, match="not in tuple"):
        inputs(SHAPE, "gaussian", 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_direct_passes(dtype: str) -> None:
    shape = ConvShape.of((2, 4, 7, 6), (6, 2, 3, 3), padding=(1, 0), groups=2, dtype=dtype)
    with Context(NOOPT=1):
        direct = Program(shape, Candidate.of("direct"), "CPU")
    found = prepare_cases(shape, direct, 0)
    assert [case.name for case in found] == list(DISTRIBUTIONS)
    result = verify(direct, found, shape, POLICY)
    assert result.fault == ""
    assert result.error <= result.bound
    loaded, _ = direct.inputs()
    assert np.array_equal(loaded, found[0].x)


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape.of((1, 2, 80), (3, 2, 40), padding=3),
        ConvShape.of((1, 2, 90), (3, 2, 5), dilation=12, stride=2),
        ConvShape.of((2, 6, 9, 30), (6, 1, 3, 5), groups=6, padding=(2, 4)),
        ConvShape.of((1, 1, 1), (1, 1, 3), padding=2),
    ],
    ids=str,
)
def test_direct_passes_on_any_kernel(shape: ConvShape) -> None:
    assert verdict(float32, shape=shape).fault == ""


@pytest.mark.parametrize(("factor", "fails"), [(0.9, False), (1.1, True)])
def test_slightly_above_the_bound(factor: float, fails: bool) -> None:
    """One element of thousands, on one distribution: the largest counts."""
    for target in range(3):
        allowed = bound("float32", cases()[target].direct_error, POLICY)

        def off(x: Array, w: Array, shape: ConvShape) -> Array:
            y = float32(x, w, shape)
            if np.array_equal(x, cases()[target].x):  # noqa: B023
                expected = cases()[target].expected  # noqa: B023
                y.flat[77] = expected.flat[77] + factor * allowed * np.abs(expected).max()  # noqa: B023
            return y

        result = verdict(off)
        assert (result.fault != "") == fails
        if fails:
            assert f"on {DISTRIBUTIONS[target]} inputs" in result.fault
            assert result.error > result.bound


def test_a_policy_that_asks_for_more() -> None:
    assert verdict(float32, Policy(max_error=1e-9)).fault.startswith("error ")


def test_an_element_that_is_not_written() -> None:
    def gap(x: Array, w: Array, shape: ConvShape) -> Array:
        y = float32(x, w, shape)
        y[-1, -1, -1, -1] = np.nan
        return y

    result = verdict(gap)
    assert result.error == math.inf
    assert "above the bound" in result.fault


def test_an_element_left_from_the_run_before() -> None:
    """A program that computes only the first time would show the right numbers but for the poison."""
    ran: list[int] = []

    def once(x: Array, w: Array, shape: ConvShape) -> Array:
        ran.append(1)
        return float32(x, w, shape) if len(ran) == 1 else np.full(shape.output_shape, np.nan)

    assert verdict(once).fault


@pytest.mark.parametrize("reach", ["image", "group", "tile", "none"])
def test_a_nan_that_spreads(reach: str) -> None:
    """Within the output tiles that read it, it may; to another image, another group or farther away, it may not."""

    def spreading(x: Array, w: Array, shape: ConvShape) -> Array:
        y = float32(x, w, shape)
        for n, o, i, j in np.argwhere(np.isnan(x)):
            if reach == "image":
                y[n - 1, 0, 0, 0] = np.inf
            elif reach == "group":
                y[n, 0 if o >= 2 else 3, i, j] = np.inf
            elif reach == "tile":
                y[n, o // 2 * 3, i + 1 + 6, j] = np.inf
            else:
                y[n, o // 2 * 3, i + 1 + 5, j - 1 - 5] = np.inf
        return y

    fault = verdict(spreading).fault
    assert bool(fault) == (reach != "none")
    if fault:
        assert fault == "a NaN in the input reached outputs that do not read it"


def winograd(m: int, precision: type) -> Lowering:
    """F(m, 3) along one axis with transforms in `precision`, as a kernel would compute it."""
    t = cook_toom(m)

    def matrix(exact: Matrix) -> Array:
        return np.array([[float(Fraction(v)) for v in row] for row in exact]).astype(precision)

    def lowering(x: Array, w: Array, shape: ConvShape) -> Array:
        (before, after), size = shape.padding[0], shape.output[0]
        tiles = -(-size // m)
        padded = np.pad(x, ((0, 0), (0, 0), (before, after + tiles * m - size)))
        windows: Array = np.stack([padded[:, :, i * m : i * m + m + 2] for i in range(tiles)], 2).astype(precision)
        xhat: Array = windows @ matrix(t.bt).T
        ghat: Array = w.astype(precision) @ matrix(t.g).T
        with np.errstate(invalid="ignore"):
            mhat = np.einsum("ncta,oca->nota", xhat.astype(np.float32), ghat.astype(np.float32))
            y: Array = mhat.astype(precision) @ matrix(t.at).T
        return y.astype(np.float64).reshape(*y.shape[:2], -1)[:, :, :size]

    return lowering


def test_half_transforms_in_tile_4_are_refused() -> None:
    """And TF32's, which keep as many digits; while float32's pass, at every tile."""
    shape = ConvShape.of((2, 32, 36), (8, 32, 3), padding=1)
    for m in (2, 4, 6):
        assert verdict(winograd(m, np.float32), shape=shape).fault == ""
    for m in (2, 4, 6):
        assert "above the bound" in verdict(winograd(m, np.float16), shape=shape).fault
    half = ConvShape.of((2, 32, 36), (8, 32, 3), padding=1, dtype="float16")
    assert "above the bound" in verdict(winograd(4, np.float16), shape=half).fault
    assert verdict(winograd(4, np.float32), shape=half).fault == ""
