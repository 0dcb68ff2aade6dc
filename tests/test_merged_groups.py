"""Grouped convolutions whose groups and outputs tinygrad has merged into one loop, as a bias or an activation makes it.

They are found under the key of the layer's own shape, computed right by every strategy, and their kernels have the
loops of the layer alone, so that options found for it fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import TOLERANCE, WINOGRAD, Array, counted, examples, kernel_count, normal, relative
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor
from tinygrad.helpers import Context
from values import a_winner

import autotune
from autotune import bundle
from autotune.reference import convolve
from strategies.candidate import Candidate, KernelOptions
from strategies.graph.device import describe_device
from strategies.graph.find import find_convolutions
from strategies.graph.kernels import tunable_kernels
from strategies.key import ConvKey
from strategies.shape import ConvShape

SHAPES = {
    "two groups": ConvShape.of((2, 4, 8, 8), (6, 2, 3, 3), padding=1, groups=2),
    "odd sizes": ConvShape.of((3, 6, 7, 9), (9, 2, 3, 3), padding=(1, 0, 2, 1), groups=3),
    "depthwise with a multiplier": ConvShape.of((2, 4, 8, 9), (8, 1, 3, 3), padding=1, groups=4),
    "stride 2": ConvShape.of((2, 4, 9, 8), (6, 2, 3, 3), padding=1, stride=2, groups=2),
    "1x1": ConvShape.of((2, 4, 8, 9), (6, 2, 1, 1), groups=2),
    "1x1 stride 2": ConvShape.of((2, 4, 8, 9), (6, 2, 1, 1), groups=2, stride=2),
    "dilated": ConvShape.of((2, 4, 8, 9), (6, 2, 3, 3), padding=2, dilation=2, groups=2),
    "1-D": ConvShape.of((2, 4, 9), (6, 2, 3), padding=1, groups=2),
}


class Layer:
    """A grouped convolution with its operands, and what may follow it, in tinygrad and in float64."""

    def __init__(self, shape: ConvShape) -> None:
        self.shape = shape
        self.x, self.w = normal(*shape.input_shape), normal(*shape.weight_shape, seed=1)
        self.bias = normal(shape.cout, seed=2)
        self.old = normal(*shape.output_shape, seed=3)

    def conv(self, x: Tensor, *, bias: bool = True) -> Tensor:
        shape = self.shape
        flat = tuple(side for sides in reversed(shape.padding) for side in sides)
        options = {"padding": flat, "stride": shape.stride, "dilation": shape.dilation, "groups": shape.groups}
        return x.conv2d(self.w, self.bias if bias else None, **options)  # type: ignore[arg-type]

    def reference(self, *, bias: bool = True) -> Array:
        x, w, b = (t.numpy().astype(np.float64) for t in (self.x, self.w, self.bias))
        result = convolve(x, w, self.shape)
        return result + b.reshape(1, -1, *[1] * len(self.shape.kernel)) if bias else result


def used_twice(y: Tensor) -> Tensor:
    return y.relu() + y.sum() / 64


TAILS: dict[str, tuple[Callable[[Layer], Tensor], Callable[[Layer], Array]]] = {
    "bias": (lambda it: it.conv(it.x).contiguous(), lambda it: it.reference()),
    "relu": (
        lambda it: it.conv(it.x, bias=False).relu(), lambda it: np.maximum(it.reference(bias=False), 0),
    ),
    "bias, relu": (lambda it: it.conv(it.x).relu(), lambda it: np.maximum(it.reference(), 0)),
    "residual": (
        lambda it: (it.conv(it.x) + it.old).relu(), lambda it: np.maximum(it.reference() + it.old.numpy(), 0),
    ),
    "flattened": (
        lambda it: it.conv(it.x).relu().flatten(1).contiguous(),
        lambda it: np.maximum(it.reference(), 0).reshape(it.shape.batch, -1),
    ),
    "used twice": (
        lambda it: used_twice(it.conv(it.x)),
        lambda it: np.maximum(it.reference(), 0) + it.reference().sum() / 64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", SHAPES)
def test_its_key_is_the_layers(name: str, tail: str) -> None:
    layer = Layer(SHAPES[name])
    build, _ = TAILS[tail]
    hidden = (name, tail) == ("1x1", "flattened")  # positions in one row: nothing tells it from a product of matrices
    assert find_convolutions(lambda: build(layer)) == ({} if hidden else {layer.shape.canonical(): 1})


@pytest.mark.parametrize("strategy", WINOGRAD)
@pytest.mark.parametrize(
    ("name", "tail"), [("odd sizes", "residual"), ("depthwise with a multiplier", "used twice"), ("1-D", "bias, relu")]
)
def test_every_strategy_computes_it(name: str, tail: str, strategy: str) -> None:
    layer = Layer(SHAPES[name])
    build, reference = TAILS[tail]
    with Context(NOOPT=1), autotune.forced(strategy):
        found: list[Array] = []
        did = counted(lambda: found.append(build(layer).numpy()))
    assert (did.applied, did.fallbacks) == (1, 0)
    assert relative(found[0].astype(np.float64), reference(layer)) < TOLERANCE


def test_what_follows_stays_in_its_kernel() -> None:
    """A loop that one kernel alone has is divided there: as many kernels as without what follows."""
    layer = Layer(SHAPES["two groups"])
    for strategy in ("four_buffer", "single_fused"):
        with autotune.forced(strategy):
            assert kernel_count(layer.conv(layer.x).relu()) == kernel_count(layer.conv(layer.x, bias=False))


def test_several_in_a_row_with_other_groups() -> None:
    x, one, two = normal(1, 4, 8, 8), normal(6, 2, 3, 3, seed=1), normal(9, 2, 3, 3, seed=2)

    def build() -> Tensor:
        y = x.conv2d(one, normal(6, seed=3), padding=1, groups=2).relu()
        return y.conv2d(two, normal(9, seed=4), padding=1, groups=3).relu()

    assert find_convolutions(build) == {
        ConvShape.of((1, 4, 8, 8), (6, 2, 3, 3), padding=1, groups=2): 1,
        ConvShape.of((1, 6, 8, 8), (9, 2, 3, 3), padding=1, groups=3): 1,
    }
    with Context(NOOPT=1):
        expected = build().numpy()
        with autotune.forced("four_buffer"):
            assert relative(build().numpy(), expected) < TOLERANCE


def test_two_in_one_kernel_whose_groups_differ() -> None:
    """Their loop is divided for neither: both are computed all the same."""
    x, one, two = normal(1, 6, 8, 8), normal(12, 3, 3, 3, seed=1), normal(12, 2, 3, 3, seed=2)

    def build() -> Tensor:
        return (x.conv2d(one, padding=1, groups=2) + x.conv2d(two, padding=1, groups=3)).relu()

    with Context(NOOPT=1):
        expected = build().numpy()
        with autotune.forced("hybrid_grid"):
            found: list[Array] = []
            did = counted(lambda: found.append(build().numpy()))
    assert (did.applied, did.fallbacks) == (2, 0)
    assert relative(found[0], expected) < TOLERANCE


@pytest.mark.parametrize("groups", [(2, 3), (3, 2), (2, 1), (4, 6), (2, 2)])
def test_two_in_one_kernel_keep_their_keys(groups: tuple[int, ...]) -> None:
    """Dividing a loop for one would leave the other what is left of two loops for its groups."""
    x, bias = normal(1, 12, 10, 10), normal(1, 12, 1, 1, seed=1)
    weights = [normal(12, 12 // each, 3, 3, seed=each) for each in groups]

    def build() -> Tensor:
        first, second = (x.conv2d(w, groups=each) for w, each in zip(weights, groups, strict=True))
        return (first + second + bias).relu()

    shapes = [ConvShape.of((1, 12, 10, 10), (12, 12 // each, 3, 3), groups=each) for each in groups]
    assert find_convolutions(build) == Counter(shapes)


def test_one_that_is_left_alone_keeps_its_kernel(tmp_path: Path) -> None:
    """Of a graph in which another convolution is replaced."""
    x, w = normal(1, 6, 12, 12), normal(8, 3, 3, 3, seed=1)
    more, bias = normal(5, 8, 3, 3, seed=2), normal(8, seed=3)

    def schedule() -> list[bytes]:
        y = x.conv2d(w, bias, groups=2).relu().conv2d(more)
        return [call.src[0].key for call in y.schedule_linear().src]

    plain = schedule()
    key = ConvKey(shape=ConvShape.of((1, 8, 10, 10), (5, 8, 3, 3)), device=describe_device("CPU"))
    winner = replace(a_winner(key, decided_at=1.0, state="verified"), candidate=Candidate.of("blocked"))
    path = tmp_path / "winners.json"
    bundle.write(path, [winner])
    tuned: list[bytes] = []
    with autotune.tuned(str(path)):
        did = counted(lambda: tuned.extend(schedule()))
    assert (did.applied, did.misses) == (1, 1)
    assert set(plain) & set(tuned) == {plain[0]}


BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "a norm of other groups": lambda y: (
        (y.reshape(2, 3, -1) - y.reshape(2, 3, -1).mean(-1, keepdim=True)).reshape(y.shape) * 2
    ),
    "a part of its channels": lambda y: y[:, 1:10].relu(),
    "two put together": lambda y: y.cat(y.relu(), dim=1),
}


@pytest.mark.parametrize("name", BEHIND)
def test_no_key_where_its_groups_are_not_to_be_told(name: str) -> None:
    """Rather than one of as many groups as it has outputs, with the input's channels several times."""
    layer = Layer(ConvShape.of((2, 12, 10, 10), (12, 6, 3, 3), groups=2))
    found = find_convolutions(lambda: BEHIND[name](layer.conv(layer.x)).contiguous())
    assert all(shape == layer.shape for shape in found)


def test_a_depthwise_convolution_of_shuffled_channels() -> None:
    """Its input is read through divisions too, and each of its groups is one."""
    x, w = normal(2, 3, 4, 8, 8), normal(12, 1, 3, 3, seed=1)
    shape = ConvShape.of((2, 12, 8, 8), (12, 1, 3, 3), groups=12)
    assert find_convolutions(lambda: x.transpose(1, 2).reshape(2, 12, 8, 8).conv2d(w, groups=12).relu()) == {shape: 1}


@pytest.mark.parametrize("name", ["two groups", "depthwise with a multiplier", "stride 2"])
def test_gradients(name: str) -> None:
    layer = Layer(SHAPES[name])

    def gradients() -> list[Array]:
        loss = (layer.conv(layer.x).relu() * layer.old).sum()
        return [each.numpy() for each in loss.gradient(layer.x, layer.w, layer.bias)]

    with Context(NOOPT=1):
        expected = gradients()
        with autotune.forced("four_buffer"):
            found: list[list[Array]] = []
            did = counted(lambda: found.append(gradients()))
    assert did.fallbacks == 0
    assert all(relative(a, b) < TOLERANCE for a, b in zip(found[0], expected, strict=True))


@pytest.mark.parametrize("name", ["two groups", "1x1"])
def test_options_found_for_the_layer_fit(name: str, tmp_path: Path) -> None:
    layer = Layer(SHAPES[name])
    shape = layer.shape.canonical()
    with Context(NOOPT=1):
        [kernel] = tunable_kernels(shape, Candidate.of("direct"), "CPU")
        winner = a_winner(ConvKey(shape=shape, device=describe_device("CPU")), decided_at=1.0, state="verified")
    options = KernelOptions(axes=kernel.axes, options=(("UPCAST", 2, 3),))
    candidate = Candidate(strategy="direct", kernel_options=(("convolution", options),))
    path = tmp_path / "winners.json"
    bundle.write(path, [replace(winner, candidate=candidate)])
    with Context(NOOPT=1), autotune.tuned(str(path)):
        found: list[Array] = []
        did = counted(lambda: found.append(layer.conv(layer.x).relu().numpy()))
    assert (did.applied, did.kernels_with_options, did.option_fallbacks) == (1, 1, 0)
    assert relative(found[0].astype(np.float64), np.maximum(layer.reference(), 0)) < TOLERANCE


@examples(8)
@given(
    groups=st.integers(1, 4), couts=st.integers(1, 4), cin=st.integers(1, 3), batch=st.integers(1, 3),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)), taps=st.sampled_from((1, 3, 5)),
    stride=st.integers(1, 2), tail=st.sampled_from(sorted(TAILS)), strategy=st.sampled_from(WINOGRAD),
)  # fmt: skip
def test_at_random(
    groups: int, couts: int, cin: int, batch: int, size: tuple[int, int], taps: int, stride: int, tail: str,
    strategy: str,
) -> None:  # fmt: skip
    layer = Layer(
        ConvShape.of(
            (batch, groups * cin, *size), (groups * couts, cin, taps, taps), padding=taps // 2, stride=stride,
            groups=groups,
        )
    )  # fmt: skip
    build, reference = TAILS[tail]
    with Context(NOOPT=1), autotune.forced(strategy):
        found: list[Array] = []
        did = counted(lambda: found.append(build(layer).numpy()))
    assert did.fallbacks == 0
    assert relative(found[0].astype(np.float64), reference(layer)) < TOLERANCE
