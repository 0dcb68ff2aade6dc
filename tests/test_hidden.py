"""Convolutions that a graph does not spell as one: found under the key of the one they are, and computed right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from graphs import TOLERANCE, Array, counted, examples, normal, relative
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor, dtypes
from tinygrad.dtype import Invalid
from tinygrad.helpers import Context
from tinygrad.uop.ops import AxisType, UOp

import autotune
from strategies.graph import digits, hidden
from strategies.graph.find import find_convolutions
from strategies.graph.ranges import Ranges, extent
from strategies.graph.tables import MAX_VALUES, table
from strategies.shape import ConvShape

X, W, MORE = normal(2, 4, 8, 9), normal(6, 4, 3, 3, seed=1), normal(8, 4, 3, 3, seed=2)
BIAS, LINEAR = normal(6, seed=3), normal(6 * 8 * 9, 5, seed=4)
THE_ONE = ConvShape.of((2, 4, 8, 9), (6, 4, 3, 3), padding=1)
Build = Callable[[], Tensor]


def conv() -> Tensor:
    return X.conv2d(W, BIAS, padding=1)


def shuffled() -> Tensor:
    """Pixel shuffle: two positions and four couts in one axis each."""
    y = X.conv2d(MORE, padding=1).reshape(2, 2, 2, 2, 8, 9)
    return y.permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 16, 18).relu()


def max_pooled() -> Tensor:
    y = conv().relu().pad((1, 1, 1, 1)).max_pool2d(3, stride=2)
    assert isinstance(y, Tensor)
    return y


OUTPUTS: dict[str, Build] = {
    "flattened": lambda: conv().relu().flatten(1),
    "flattened into a linear layer": lambda: conv().relu().flatten(1).linear(LINEAR),
    "merged with its channels": lambda: conv().permute(0, 2, 3, 1).reshape(2 * 8 * 9, 6).relu(),
    "padded": lambda: conv().relu().pad((1, 1, 1, 1)).contiguous(),
    "padded along one axis": lambda: conv().pad((0, 0, 1, 2)).relu().contiguous(),
    "padded with a value": lambda: conv().relu().pad((1, 1, 1, 1), value=3.0).contiguous(),
    "padded for a pooling": max_pooled,
    "axes swapped": lambda: conv().permute(0, 1, 3, 2).relu().contiguous(),
    "summed in part": lambda: conv().reshape(2, 3, 2, 72).permute(0, 2, 1, 3).reshape(2, -1).sum(1),
    "input broadcast along channels": lambda: X[:, :1].expand(2, 4, 8, 9).conv2d(W, padding=1),
    "weight scaled, as norms are folded": lambda: X.conv2d(W * BIAS.reshape(6, 1, 1, 1), BIAS, padding=1),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_becomes_of_the_output_hides_nothing(name: str) -> None:
    build = OUTPUTS[name]
    assert find_convolutions(build) == {THE_ONE: 1}
    with Context(NOOPT=1):
        expected = build().numpy()
        found: list[Array] = []
        with autotune.forced("four_buffer"):
            did = counted(lambda: found.append(build().numpy()))
    assert (did.applied, did.fallbacks) == (1, 0)
    assert relative(found[0], expected) < TOLERANCE


PADDED_BEHIND: dict[str, tuple[Build, ConvShape]] = {
    "contiguous": (
        lambda: X.conv2d(W, BIAS).relu().pad((1, 1, 1, 1)).contiguous(), ConvShape.of((2, 4, 8, 9), (6, 4, 3, 3)),
    ),
    "max pooling": (lambda: pooled(X.conv2d(W, BIAS)), ConvShape.of((2, 4, 8, 9), (6, 4, 3, 3))),
    "groups": (
        lambda: pooled(X.conv2d(W[:, :2], BIAS, groups=2)), ConvShape.of((2, 4, 8, 9), (6, 2, 3, 3), groups=2),
    ),
    "1x1": (lambda: pooled(X.conv2d(W[:, :, :1, :1], BIAS)), ConvShape.of((2, 4, 8, 9), (6, 4, 1, 1))),
}  # fmt: skip


def pooled(y: Tensor) -> Tensor:
    y = y.relu().max_pool2d(3, 2, padding=1)  # type: ignore[assignment]
    return y.contiguous()


@pytest.mark.parametrize("name", PADDED_BEHIND)
def test_padded_behind_though_it_is_not_padded_itself(name: str) -> None:
    """What pads the output gates the load of the input, which has no other gate."""
    build, shape = PADDED_BEHIND[name]
    assert find_convolutions(build) == {shape: 1}
    with Context(NOOPT=1):
        expected = build().numpy()
        found: list[Array] = []
        with autotune.forced("four_buffer" if shape.kernel == (3, 3) else "im2col"):
            did = counted(lambda: found.append(build().numpy()))
    assert (did.applied, did.fallbacks) == (1, 0)
    assert relative(found[0], expected) < TOLERANCE


@pytest.fixture
def tabulated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points each table has that is made."""
    sizes: list[int] = []

    def recording(u: UOp, grid: Mapping[UOp, list[int]]) -> list[int] | None:
        sizes.append(len(next(iter(grid.values()))))
        return table(u, grid)

    for module in (digits, hidden):
        monkeypatch.setattr(module, "table", recording)
    return sizes


def test_the_merged_loops_of_a_product_of_matrices_are_not_tabulated(tabulated: list[int]) -> None:
    def build() -> Tensor:
        return (Tensor.empty(1024, 8) @ Tensor.empty(8, 1024)).reshape(-1) + Tensor.empty(1 << 20)

    assert not find_convolutions(build)
    assert not tabulated


def test_a_long_range_is_not_tabulated(tabulated: list[int]) -> None:
    """Whatever it is cut into, and whatever gates it."""

    def build() -> Tensor:
        y = (Tensor.empty(512, 8) @ Tensor.empty(8, 512)).flip(1).reshape(-1)
        return y.pad((3, 3)).contiguous()

    assert not find_convolutions(build)
    assert all(size <= MAX_VALUES for size in tabulated)


@pytest.mark.parametrize(
    ("cut", "sizes"),
    [
        (lambda r: [r // 20, r // 4 % 5, r % 4], [3, 5, 4]),
        (lambda r: [r % 20 // 4, r % 4, r // 20], [5, 4, 3]),
        (lambda r: [r // 10, r], [6, 10]),
        (lambda r: [r // 20, r // 10 % 2, r % 20], [3, 2, 10]),
        (lambda r: [(r * -1 + 59) // 20, (r * -1 + 59) % 20], [3, 20]),
        (lambda r: [r // 20, r % 4], []),
        (lambda r: [r // 20, r // 10], []),
        (lambda r: [r // 7, r % 7], []),
        (lambda r: [r // 20, r // 10, r], []),
        (lambda r: [r // 20, r % 10, r // 4 % 5], []),
    ],
)
def test_the_digits_of_a_flat_range(
    cut: Callable[[UOp], list[UOp]], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by numbers or by a table: the same."""
    r = UOp.range(60, 0, AxisType.WEAK)
    product = UOp.usum(*(piece * 100**n for n, piece in enumerate(cut(r))))

    def found() -> list[int]:
        ranges = Ranges(1)
        return [extent(each) for digit in digits.digits(r, product) for each in digit.fresh(ranges)]

    assert sorted(found()) == sorted(sizes)
    monkeypatch.setattr(digits, "_place", lambda *_: None)
    assert sorted(found()) == sorted(sizes)


def test_a_choice_by_what_is_not_known_is_not_known() -> None:
    r = UOp.range(4, 0, AxisType.WEAK)
    nothing = UOp.const(Invalid)
    condition = (r < 2).where(r < 1, nothing)
    assert table(condition.where(r + 1, r + 2), {r: [0, 1, 2, 3]}) == [1, 3, None, None]


def test_pixels_shuffled() -> None:
    assert find_convolutions(shuffled) == {ConvShape.of((2, 4, 8, 9), (8, 4, 3, 3), padding=1): 1}
    with Context(NOOPT=1):
        expected = shuffled().numpy()
        with autotune.forced("four_buffer"):
            assert relative(shuffled().numpy(), expected) < TOLERANCE


def test_a_depthwise_convolution_before_a_pointwise_one() -> None:
    def build() -> Tensor:
        return X.conv2d(normal(4, 1, 3, 3, seed=5), padding=1, groups=4).conv2d(normal(6, 4, 1, 1, seed=6))

    depthwise = ConvShape.of((2, 4, 8, 9), (4, 1, 3, 3), padding=1, groups=4)
    assert find_convolutions(build) == {depthwise: 1, ConvShape.of((2, 4, 8, 9), (6, 4, 1, 1)): 1}


# Gradients


def input_gradient(x: Tensor, w: Tensor, *, within: Tensor | None = None, **options: Any) -> Tensor:
    """Of a loss whose gradient by the output is not constant; by `within`, of which x is made, or by x itself."""
    [dx] = x.conv2d(w, **options).square().sum().gradient(x if within is None else within)
    return dx


def test_an_input_gradient_is_the_convolution_with_the_flipped_filter() -> None:
    inner = ConvShape.of((2, 6, 8, 9), (4, 6, 3, 3), padding=1)
    assert find_convolutions(lambda: input_gradient(X.relu(), W, padding=1, within=X)) == {THE_ONE: 1, inner: 1}
    # of an input that is nobody's output tinygrad computes the padding's gradient too
    outer = ConvShape.of((2, 6, 8, 9), (4, 6, 3, 3), padding=2)
    assert find_convolutions(lambda: input_gradient(X, W, padding=1)) == {THE_ONE: 1, outer: 1}
    assert find_convolutions(lambda: input_gradient(X, W))[ConvShape.of((2, 6, 6, 7), (4, 6, 3, 3), padding=2)] == 1


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Input, weight, padding per side and groups, of three taps along one axis at least, stride 1."""
    groups = draw(st.sampled_from((1, 1, 2)))
    dims = draw(st.sampled_from((2, 2, 1)))
    kernel = [draw(st.sampled_from((3, 3, 1, 2))) for _ in range(dims)]
    kernel[draw(st.integers(0, dims - 1))] = 3
    padding = tuple(draw(st.integers(0, 2)) for _ in range(2 * dims))
    spatial = tuple(taps + draw(st.integers(1, 5)) for taps in kernel)
    few = st.integers(1, 3)
    cin, cout = groups * draw(few), groups * draw(few)
    return (draw(few), cin, *spatial), (cout, cin // groups, *kernel), padding, groups


@examples(6)
@given(given_=convolutions(), strategy=st.sampled_from(("hybrid_grid", "single_fused", "blocked")))
def test_gradients_of_random_convolutions(
    given_: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int], strategy: str
) -> None:
    size, weight, padding, groups = given_
    x, w = normal(*size), normal(*weight, seed=1)
    with Context(NOOPT=1):
        expected = input_gradient(x, w, padding=padding, groups=groups).numpy()
        with autotune.forced(strategy):
            found: list[Array] = []
            did = counted(lambda: found.append(input_gradient(x, w, padding=padding, groups=groups).numpy()))
    assert did.fallbacks == 0
    assert relative(found[0], expected) < TOLERANCE


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"stride": 2, "padding": 1}])
def test_gradients_that_are_no_such_convolution_keep_their_numbers(options: dict[str, int]) -> None:
    with Context(NOOPT=1):
        expected = input_gradient(X, W, **options).numpy()
        with autotune.forced("single_fused"):
            assert relative(input_gradient(X, W, **options).numpy(), expected) < TOLERANCE


def test_gradients_through_residual_blocks() -> None:
    """The activation's mask, which is data, is read where the gradient is: it is no part of what sorts the windows."""
    x, v, w = normal(2, 4, 9, 11), normal(4, 4, 3, 3, seed=1), normal(4, 4, 3, 3, seed=2)

    def gradients() -> list[Tensor]:
        inner = x.conv2d(v, padding=1).relu() + x
        outer = inner.conv2d(w, padding=1).relu() + inner
        return outer.square().mean().gradient(x, v, w)

    def computed() -> list[Array]:
        together = gradients()
        Tensor.realize(*together)
        return [gradient.numpy() for gradient in together]

    found: list[Array] = []
    with Context(NOOPT=1):
        expected = computed()
        with autotune.forced("four_buffer"):
            did = counted(lambda: found.extend(computed()))
    assert (did.convolutions, did.hits) == (6, 4)  # two forward, two of inputs; those of weights have no three taps
    assert all(relative(a, b) < TOLERANCE for a, b in zip(found, expected, strict=True))


def test_the_gradient_of_a_half() -> None:
    x, w = X.cast(dtypes.float16).realize(), (W * 0.1).cast(dtypes.float16).realize()
    with Context(NOOPT=1):
        expected = input_gradient(x, w, padding=1).numpy().astype(np.float64)
        found: list[Array] = []
        with autotune.forced("hybrid_grid"):
            did = counted(lambda: found.append(input_gradient(x, w, padding=1).numpy()))
    assert did.applied >= 1
    assert relative(found[0].astype(np.float64), expected) < 2e-3


@examples(6)
@given(
    pads=st.tuples(*[st.integers(0, 2)] * 4), order=st.permutations(range(4)),
    merge=st.sampled_from((None, 1, 2, 3)), strategy=st.sampled_from(("four_buffer", "single_fused")),
)  # fmt: skip
def test_outputs_moved_at_random(
    pads: tuple[int, ...], order: list[int], merge: int | None, strategy: str
) -> None:  # fmt: skip
    """Padded, permuted, two axes merged, in one kernel with the convolution or not: the same numbers."""

    def build() -> Tensor:
        y = conv().pad(pads).permute(*order)
        if merge is not None:
            y = y.reshape(*y.shape[: merge - 1], y.shape[merge - 1] * y.shape[merge], *y.shape[merge + 1 :])
        return y.relu().contiguous()

    with Context(NOOPT=1):
        expected = build().numpy()
        with autotune.forced(strategy):
            found: list[Array] = []
            did = counted(lambda: found.append(build().numpy()))
    assert did.fallbacks == 0
    assert relative(found[0], expected) < TOLERANCE
