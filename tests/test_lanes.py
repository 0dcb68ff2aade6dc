"""Transforms in lanes, and the kernel that holds all of a convolution in the cache: in whatever graph they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from graphs import (
    TOLERANCE,
    Array,
    candidates,
    conv_shapes,
    counted,
    examples,
    kernel_count,
    kernels,
    normal,
    relative,
    slow,
)
from hypothesis import given
from test_winowrite import GRAPHS, TENSORS, alone, check
from tinygrad import Tensor, Variable
from tinygrad.dtype import Invalid
from tinygrad.helpers import Context
from tinygrad.uop.ops import UOp

import autotune
from strategies.candidate import Candidate, Value
from strategies.graph.apply import NotApplicableError
from strategies.graph.program import Program
from strategies.key import ConvKey, DeviceSpec
from strategies.registry import get_strategy
from strategies.shape import ConvShape

LANES: Mapping[str, Value] = {"output": "lanes", "xhat_by": "lanes", "ghat_by": "lanes"}
WAYS: Mapping[str, tuple[str, Mapping[str, Value]]] = {
    "lanes of tiles": ("blocked", {**LANES, "tile_block": 4}),
    "lanes of couts": ("blocked", {**LANES, "mhat": "GOTAto", "ghat": "AGOCo", "tile": 2}),
    "in the cache": ("cache_blocked", {"tile_block": 4, "cout_block": 4, "together": 2}),
    "weight inline": ("cache_blocked", {"weight": "inline", "lanes": "couts", "tile": 2, "cout_block": 4}),
}


SUMMED = ("dropped on the way",)
"""Graphs in which what the convolution reads is itself a sum, of which a kernel of our own makes nothing."""


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("way", ["lanes of tiles", slow("lanes of couts"), "in the cache", slow("weight inline")])
def test_in_a_graph(name: str, way: str) -> None:
    strategy, params = WAYS[way]
    found: list[Array] = []
    with Context(NOOPT=1), autotune.forced(strategy, **params):
        did = counted(lambda: found.append(GRAPHS[name][1](*TENSORS).numpy()))
    left = strategy == "cache_blocked" and name in SUMMED
    assert (did.applied, did.fallbacks) == ((0, 1) if left else (GRAPHS[name][0], 0))
    assert relative(found[0], alone(name)) < TOLERANCE


@given(conv_shapes(), candidates(("blocked", "cache_blocked")))
@examples(12)
def test_any_shape_with_any_parameters(shape: ConvShape, candidate: Candidate) -> None:
    with Context(NOOPT=1):
        check(shape, candidate)


def image() -> Tensor:
    return normal(2, 4, 7, 6).conv2d(normal(8, 4, 3, 3, seed=1), normal(8, seed=2), padding=1)


CONSUMERS: dict[str, tuple[int, int, Callable[[], Tensor]]] = {
    "bias and relu": (4, 2, lambda: image().relu()),
    "residual": (4, 2, lambda: (image() + normal(2, 8, 7, 6, seed=3)).relu()),  # noqa: PLW0108 - anew each time
    "joined": (4, 2, lambda: image().cat(normal(2, 8, 7, 6, seed=3), dim=1).relu()),
    "permuted": (4, 2, lambda: image().permute(0, 2, 3, 1).contiguous()),
    "wider": (4, 2, lambda: image().cast("float64") * 1.5),
    "summed": (5, 3, lambda: image().relu().mean((2, 3))),
    "by a variable": (5, 3, lambda: image() * Variable("factor", 1, 8).bind(3)),
}
"""How many kernels there are with `blocked` and with `cache_blocked`. What is elementwise of the convolution is
computed where its output is; else it is stored first."""


@pytest.mark.parametrize("name", CONSUMERS)
def test_kernels_of_what_consumes_it(name: str) -> None:
    blocked, in_cache, build = CONSUMERS[name]
    for way, count in (("lanes of tiles", blocked), ("in the cache", in_cache), ("weight inline", in_cache - 1)):
        strategy, params = WAYS[way]
        with autotune.forced(strategy, **params):
            assert kernel_count(build()) == count, way


@pytest.mark.parametrize("way", WAYS)
def test_what_it_reads_is_overwritten(way: str) -> None:
    """The whole convolution is computed before any of it is stored: outputs are read again by their neighbours."""
    strategy, params = WAYS[way]
    start, w = normal(1, 4, 8, 8).numpy(), normal(4, 4, 3, 3, seed=1)

    def run() -> Array:
        x = Tensor(start).contiguous().realize()
        x.assign(x.conv2d(w, padding=1) + x).realize()
        return x.numpy()

    expected = run()
    with autotune.forced(strategy, **params):
        assert relative(run(), expected) < TOLERANCE


@pytest.mark.parametrize("way", WAYS)
def test_what_only_pads_a_block_is_not_stored(way: str) -> None:
    """Nor added twice to what is there: 9 tiles fill two blocks of 8, three of 4."""
    strategy, params = WAYS[way]
    start, x, w = normal(1, 5, 12, 12, seed=4).numpy(), normal(1, 3, 12, 12), normal(5, 3, 3, 3, seed=1)

    def run() -> Array:
        y = Tensor(start).contiguous().realize()
        y.assign(y + x.conv2d(w, padding=1)).realize()
        return y.numpy()

    expected = run()
    with autotune.forced(strategy, **params):
        assert relative(run(), expected) < TOLERANCE


def test_vectors_of_the_transforms() -> None:
    """The loops that compute have no condition and no division in them, which a compiler makes no vectors of."""
    x, w = normal(1, 4, 14, 14), normal(8, 4, 3, 3, seed=1)
    with autotune.forced("blocked", **{**LANES, "tile_block": 16, "ghat": "AGOCo"}):
        sources = [kernel.source for kernel in kernels(x.conv2d(w, padding=1))]
    for source in (sources[0], sources[1], sources[-1]):
        loops = [part for part in source.split("for (") if "buf0" in part]
        [computing] = [loop for loop in loops if loop.count("buf0+") + loop.count("buf0[") > 4 and "?" not in loop][:1]
        assert "/" not in computing
        assert "%" not in computing


def test_workspace_is_of_a_few_blocks() -> None:
    """Not of the image: that is what the kernel is for."""
    shape = ConvShape.of((4, 8, 32, 32), (8, 8, 3, 3), padding=1)
    bytes_of = {
        name: Program(shape, get_strategy(name).candidate(), "CPU").workspace_bytes
        for name in ("blocked", "cache_blocked")
    }
    assert bytes_of["cache_blocked"] < bytes_of["blocked"] / 10


def test_keys_it_is_for() -> None:
    item = get_strategy("cache_blocked")
    for device, kernel, expected in (("CPU", 3, True), ("CPU", 1, False), ("CUDA", 3, False)):
        shape = ConvShape.of((1, 4, 8, 8), (4, 4, kernel, kernel))
        assert item.applies(ConvKey(shape=shape, device=DeviceSpec(device=device))) is expected


def test_a_sum_in_what_it_reads() -> None:
    """A kernel of our own cannot compute it: the convolution is left to tinygrad."""
    x, w = normal(1, 3, 8, 8), normal(4, 3, 3, 3, seed=1)
    with pytest.raises(NotApplicableError):
        Program(ConvShape.of((1, 3, 8, 8), (4, 3, 1, 1)), get_strategy("cache_blocked").candidate(), "CPU")
    with autotune.forced("cache_blocked"):
        found = (x - x.mean(1, keepdim=True)).conv2d(w, padding=1).numpy()
    np.testing.assert_allclose(found, (x - x.mean(1, keepdim=True)).conv2d(w, padding=1).numpy(), atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [
    ConvShape.of((1, 6, 9, 9), (6, 1, 3, 3), padding=1, groups=6),
    ConvShape.of((2, 1, 10, 7), (4, 1, 3, 3)),
    ConvShape.of((1, 3, 9, 9), (4, 3, 3, 3), padding=1, stride=(1, 2)),
], ids=str)  # fmt: skip
def test_axes_that_are_not_there(way: str, shape: ConvShape) -> None:
    """Depthwise, of one channel, and with an axis that is a plain sum."""
    strategy, params = WAYS[way]
    with Context(NOOPT=1):
        check(shape, get_strategy(strategy).candidate(dict(params)))


def test_what_is_invalid_is_left_as_it_was() -> None:
    """tinygrad stores nothing where a value is Invalid: nor does a kernel of ours in the place of its own."""
    start, x, w = normal(1, 4, 8, 8, seed=3).numpy(), normal(1, 4, 8, 8), normal(4, 4, 3, 3, seed=1)
    mask = Tensor(np.arange(64).reshape(8, 8) % 3 > 0)

    def run() -> Array:
        y = Tensor(start).contiguous().realize()
        y.assign(mask.where(x.conv2d(w, padding=1), Tensor(UOp.const(Invalid)).cast("float32"))).realize()
        return y.numpy()

    expected = run()
    assert (expected == start).any()
    for strategy, params in WAYS.values():
        with autotune.forced(strategy, **params):
            assert relative(run(), expected) < TOLERANCE


def test_more_buffers_than_a_kernel_may_have() -> None:
    parts, w = [normal(1, 1, 8, 8, seed=n) for n in range(40)], normal(4, 40, 3, 3, seed=1)
    build = lambda: Tensor.cat(*parts, dim=1).conv2d(w, padding=1)  # noqa: E731
    expected = build().numpy()
    with autotune.forced("cache_blocked"):
        assert relative(build().numpy(), expected) < TOLERANCE


def test_a_padded_output_is_stored_once() -> None:
    x, w = normal(1, 4, 10, 10), normal(4, 4, 3, 3, seed=1)
    with autotune.forced("cache_blocked"):
        assert kernel_count(x.conv2d(w).pad((1, 0, 0, 2)).contiguous()) == 3
