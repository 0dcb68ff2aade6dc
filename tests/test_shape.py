"""Shapes: what makes one, what does not, and when two of them are the same computation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from any_value import shapes
from graphs import conv_shapes, examples
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor, dtypes

from autotune.reference import convolve
from strategies.graph.find import find_convolutions
from strategies.graph.program import convolution
from strategies.shape import MAX_DIM, ConvShape, ShapeError, windows_share

RESNET = ConvShape.of((1, 64, 56, 56), (64, 64, 3, 3), padding=1)


def test_the_three_ways_to_write_padding() -> None:
    sides = [(2, 3), (0, 1)]
    flat = ConvShape.of((1, 4, 9, 8), (4, 4, 3, 3), padding=(0, 1, 2, 3))  # tinygrad's: last dimension first
    assert ConvShape.of((1, 4, 9, 8), (4, 4, 3, 3), padding=sides) == flat
    assert flat.padding == ((2, 3), (0, 1))
    assert ConvShape.of((1, 4, 9, 8), (4, 4, 3, 3), padding=(2, 1)).padding == ((2, 2), (1, 1))
    assert RESNET.padding == ((1, 1), (1, 1))
    assert ConvShape.of((1, 4, 9), (4, 4, 3), padding=(1, 2)).padding == ((1, 2),)


@given(shapes())
@examples(50)
def test_output_is_tinygrads(shape: ConvShape) -> None:
    x, w = Tensor.empty(*shape.input_shape), Tensor.empty(*shape.weight_shape)
    assert convolution(x, w, shape).shape == shape.output_shape
    assert shape.macs == np.prod(shape.output_shape) * np.prod(shape.weight_shape[1:])


@given(shapes())
@examples(50)
def test_json_and_back(shape: ConvShape) -> None:
    assert ConvShape.from_json(shape.to_json()) == shape


@given(shapes())
@examples(100)
def test_canonical_is_a_shape_of_the_same_work(shape: ConvShape) -> None:
    canonical = shape.canonical()
    assert canonical.canonical() == canonical
    assert canonical.macs == shape.macs
    assert np.prod(canonical.output_shape) == np.prod(shape.output_shape)
    assert (canonical.dtype, canonical.acc_dtype, canonical.groups) == (shape.dtype, shape.acc_dtype, shape.groups)


@given(conv_shapes(), st.integers(1, 2), st.booleans())
@examples(25)
def test_a_graph_shows_the_canonical_shape(shape: ConvShape, stride: int, summed_in_own_dtype: bool) -> None:
    """What `tune` is told and what the hook sees have one key, or a winner would never be applied."""
    sizes = tuple(size + stride for size in shape.spatial)
    asked = ConvShape(
        batch=shape.batch, cin=shape.cin, cout=shape.cout, groups=shape.groups, spatial=sizes, kernel=shape.kernel,
        padding=shape.padding, stride=(stride,) * len(sizes), dtype=shape.dtype,
        acc_dtype=shape.dtype if summed_in_own_dtype else "float32",
    )  # fmt: skip
    dtype = getattr(dtypes, asked.dtype)

    def build() -> Tensor:
        x, w = Tensor.empty(*asked.input_shape, dtype=dtype), Tensor.empty(*asked.weight_shape, dtype=dtype)
        return convolution(x, w, asked)

    found = list(find_convolutions(build))
    if any(windows_share(size, taps, stride, 1) for taps, size in zip(asked.kernel, asked.output, strict=True)):
        # tinygrad may simplify what is read at stride 2 beyond recognition; nothing but direct applies to it anyway
        assert found == [asked.canonical()] or (stride == 2 and not found)


def test_an_input_that_no_output_reads() -> None:
    shape = ConvShape.of((1, 1, 1), (1, 1, 2), padding=((2, 0),), stride=3)
    assert shape.output == (1,)
    assert shape.canonical().output == (1,)
    assert shape.canonical().canonical() == shape.canonical()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
@examples(300)
def test_windows_that_share_an_element(size: int, taps: int, stride: int, dilation: int) -> None:
    windows = [{out * stride + tap * dilation for tap in range(taps)} for out in range(size)]
    assert windows_share(size, taps, stride, dilation) == any(a & b for a, b in itertools.combinations(windows, 2))


def test_a_batch_too_large_to_fold_stays_apart() -> None:
    shape = ConvShape.of((MAX_DIM, 1, 2, 3), (1, 1, 1, 3))
    assert shape.canonical() == shape


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"input_shape": (1, 3, 8, 8), "weight_shape": (4, 4, 3, 3)}, "input has 3 channels, weight expects 4"),
        ({"input_shape": (1, 3, 8, 8), "weight_shape": (4, 3, 3)}, "same number of dimensions"),
        ({"input_shape": (1, 3), "weight_shape": (4, 3)}, "same number of dimensions"),
        ({"input_shape": (1, 1, 2, 2, 2), "weight_shape": (1, 1, 1, 1, 1)}, "same number of dimensions"),
        ({"input_shape": (0, 3, 8, 8), "weight_shape": (4, 3, 3, 3)}, "between 1 and"),
        ({"input_shape": (1, 3, 8, -8), "weight_shape": (4, 3, 3, 3)}, "between 1 and"),
        ({"input_shape": (1, 3, 8, 8), "weight_shape": (4, 3, 9, 3)}, "does not fit"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 2, 3, 3), "groups": 3}, "groups must divide"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "groups": 0}, "groups must divide"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "groups": True}, "whole number"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "padding": -1}, "padding must be 0 or more"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "padding": (1, 2, 3)}, "padding takes 1, 2 or 4"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "padding": 1.5}, "whole number"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "stride": 0}, "between 1 and"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "stride": (1, 1, 1)}, "takes one number or 2"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "dilation": 4}, "does not fit"),
        ({"input_shape": (1, 4, 8, 8), "weight_shape": (4, 4, 3, 3), "dtype": "int8"}, "dtype must be one of"),
        ({"input_shape": "1x4x8x8", "weight_shape": (4, 4, 3, 3)}, "list of whole numbers"),
        ({"input_shape": (1, 1, MAX_DIM, MAX_DIM), "weight_shape": (1, 1, 3, 3)}, "more than"),
    ],
)  # fmt: skip
def test_what_is_no_convolution(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ShapeError, match=said) as caught:
        ConvShape.of(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "1x", "1xax3", "1,2,3", "1.5x2x3", "٣x3x3x"])
def test_text_that_is_no_shape(text: str) -> None:
    with pytest.raises(ShapeError, match="must look like 1x64x56x56"):
        ConvShape.parse(text, "4x4x3x3")


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1}, {"padding": [1, 1]}, {"kernel": "33"}, {"cin": 64.0}, {"stride": [True, 1]}, {"batch": "1"},
        {"spatial": None}, {"dtype": 32},
    ],
)  # fmt: skip
def test_json_that_is_no_shape(changes: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        ConvShape.from_json({**RESNET.to_json(), **changes})
    with pytest.raises(ShapeError):
        ConvShape.from_json(changes)


def test_printed_as_it_is_written() -> None:
    assert str(RESNET) == "1x64x56x56 64x64x3x3 padding 1"
    every = ConvShape.of((1, 4, 9, 9), (4, 2, 3, 3), padding=(0, 1, 2, 3), stride=2, dilation=(1, 2), groups=2,
                         dtype="float16")  # fmt: skip
    assert str(every) == "1x4x9x9 4x2x3x3 padding 2,3,0,1 stride 2 dilation 1,2 groups 2 float16"
    assert ConvShape.parse("1x64x56x56", "64X64x3x3", padding=1) == RESNET


def test_the_reference_by_its_definition() -> None:
    """autotune.reference, that everything else is held against, held against seven nested loops."""
    shape = ConvShape.of((2, 4, 7, 6), (6, 2, 3, 2), padding=((1, 0), (2, 1)), stride=(2, 1), dilation=(1, 2), groups=2)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)))
    expected = np.zeros(shape.output_shape)
    for n, o, i, j in itertools.product(*map(range, shape.output_shape)):
        for c, a, b in itertools.product(range(2), range(3), range(2)):
            expected[n, o, i, j] += padded[n, o // 3 * 2 + c, 2 * i + a, j + 2 * b] * w[o, c, a, b]
    assert np.allclose(convolve(x, w, shape), expected, rtol=1e-13, atol=1e-13)
