"""`im2col` computes any convolution: of any kernel, stride, dilation and groups, and whatever stands around it."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import TOLERANCE, Array, candidates, counted, examples, kernel_count, normal, relative
from hypothesis import given
from hypothesis import strategies as st
from test_winowrite import CORES, GRAPHS, TENSORS, alone, check
from tinygrad import Tensor
from tinygrad.helpers import Context

import autotune
from strategies.candidate import Candidate
from strategies.graph.apply import NotApplicableError
from strategies.graph.program import Program
from strategies.key import ConvKey, DeviceSpec
from strategies.registry import get_strategy
from strategies.shape import DTYPES, ConvShape, ShapeError, windows_share

ONES_TWOS = st.sampled_from((1, 1, 2, 3))


@st.composite
def any_shape(draw: st.DrawFn) -> ConvShape:
    """1-D and 2-D, of any kernel, stride, dilation, padding and groups."""
    dims, groups = draw(st.sampled_from((2, 2, 1))), draw(ONES_TWOS)
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(dims))
    try:
        return ConvShape(
            batch=draw(ONES_TWOS), cin=groups * draw(ONES_TWOS), cout=groups * draw(st.integers(1, 9)), groups=groups,
            spatial=tuple(draw(st.integers(1, 12)) + taps for taps in kernel), kernel=kernel,
            stride=tuple(draw(ONES_TWOS) for _ in kernel),
            dilation=tuple(draw(st.sampled_from((1, 1, 2))) for _ in kernel),
            padding=tuple((draw(st.integers(0, 2)) + taps, draw(st.integers(0, 2))) for taps in kernel),
            dtype=draw(st.sampled_from(DTYPES)),
        )  # fmt: skip
    except ShapeError as error:
        raise AssertionError(str(error)) from error


@given(any_shape(), candidates(("im2col",)), st.sampled_from(CORES))
@examples(15)
def test_any_shape_with_any_parameters(shape: ConvShape, candidate: Candidate, cores: int) -> None:
    with Context(NUM_CPU_THREADS=cores):
        try:
            check(shape, candidate)
        except NotApplicableError:
            assert not _is_found(shape)


def _is_found(shape: ConvShape) -> bool:
    """Whether tinygrad's graph of it shows a convolution surely, and not a product of matrices: windows overlap."""
    one = shape.canonical()
    axes = zip(one.output, one.kernel, one.stride, one.dilation, strict=True)
    return all(windows_share(*axis) for axis in axes)


@pytest.mark.parametrize("name", GRAPHS)
def test_in_a_graph(name: str) -> None:
    expected, found = alone(name), list[Array]()
    with Context(NOOPT=1), autotune.forced("im2col", cout_block=2, window_block=8):
        did = counted(lambda: found.append(GRAPHS[name][1](*TENSORS).numpy()))
    assert did.applied >= GRAPHS[name][0] + (name == "every second output")
    assert did.fallbacks == 0
    assert relative(found[0], expected) < TOLERANCE


@pytest.mark.parametrize(
    ("values", "count"),
    [({}, 3), ({"columns": "inline"}, 2), ({"weight": "staged"}, 4), ({"columns": "inline", "weight": "staged"}, 3)],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_kernels(values: dict[str, str], count: int, stride: int) -> None:
    def build() -> Tensor:
        y = Tensor.empty(1, 8, 15, 15).conv2d(Tensor.empty(16, 8, 5, 5), Tensor.empty(16), stride=stride, padding=2)
        return y.relu() + Tensor.empty(*y.shape)

    assert kernel_count(build()) == 1
    with autotune.forced("im2col", **values):
        assert kernel_count(build()) == count  # what follows elementwise is computed where the sums are read


def test_gradients_are_tinygrads() -> None:
    def gradients() -> list[Array]:
        x, w = normal(2, 4, 9, 9), normal(6, 4, 3, 3, seed=1)
        loss = x.conv2d(w, stride=2, padding=1).relu().square().sum()
        return [gradient.numpy() for gradient in loss.gradient(x, w)]

    expected = gradients()
    with autotune.forced("im2col"):
        found = gradients()
    assert len(found) == 2
    assert all(relative(mine, theirs) < TOLERANCE for mine, theirs in zip(found, expected, strict=True))


def test_what_is_not_a_number_stays_where_it_is_read() -> None:
    """What pads a block repeats a window, and what pads the input is gated: neither lets anything through."""
    x = np.random.default_rng(0).normal(size=(1, 3, 9, 9)).astype(np.float32)
    x[0, 1, 4, 5] = np.nan
    w = normal(5, 3, 3, 3, seed=1)
    expected = Tensor(x).conv2d(w, stride=2, padding=1).numpy()
    with autotune.forced("im2col"):
        found = Tensor(x).conv2d(w, stride=2, padding=1).numpy()
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found).any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cores", ["one", "all"])
def test_the_first_preset_of_each_kind(cores: str) -> None:
    """Compiled as a tuner would, with vectors and threads."""
    for shape in (
        ConvShape.of((1, 16, 14, 14), (32, 16, 1, 1)),
        ConvShape.of((1, 3, 32, 32), (16, 3, 7, 7), stride=2, padding=3),
        ConvShape.of((1, 8, 16, 16), (8, 1, 3, 3), padding=1, groups=8),
    ):
        key = ConvKey(shape=shape, device=DeviceSpec(device="CPU"))
        preset = get_strategy("im2col").good(key)[0]
        with Context(NOOPT=0):
            check(shape, get_strategy("im2col").candidate({**dict(preset.params), "cores": cores}))


def test_columns_that_are_too_large_are_not_made() -> None:
    def schedule() -> None:
        kernel_count(Tensor.empty(32, 64, 112, 112).conv2d(Tensor.empty(64, 64, 3, 3), padding=1))

    with autotune.forced("im2col"):
        assert counted(schedule).fallbacks == 1
    with autotune.forced("im2col", columns="inline"):
        assert counted(schedule).applied == 1


def test_blocks_are_no_larger_than_what_there_is() -> None:
    """Nothing is computed over and over to fill one."""
    shape = ConvShape.of((1, 4, 3, 3), (3, 4, 2, 2))
    program = Program(shape, get_strategy("im2col").candidate({"cout_block": 16, "window_block": 64}), "CPU")
    aligned = 256
    assert program.workspace_bytes == aligned * -(-4 * 16 * 4 // aligned) + aligned * -(-4 * 3 * 4 // aligned)


def test_the_workspace_is_the_columns_and_the_sums() -> None:
    shape = ConvShape.of((1, 4, 8, 8), (8, 4, 3, 3), padding=1)
    program = Program(shape, get_strategy("im2col").candidate({"window_block": 16}), "CPU")
    assert program.workspace_bytes == 4 * (4 * 9 * 64 + 8 * 64)
