"""Every lowering computes the convolution, to the verification bound, in whatever graph it stands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphs import FACTOR, TOLERANCE, WINOGRAD, Array, candidates, conv_shapes, counted, examples, normal, relative
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor
from tinygrad.helpers import Context

import autotune
from autotune.reference import convolve, inputs
from autotune.verify import bound
from strategies.candidate import Candidate
from strategies.graph.apply import NotApplicableError
from strategies.graph.program import Program
from strategies.key import Policy
from strategies.registry import get_strategy
from strategies.shape import ConvShape

DIRECT = Candidate.of("direct")
SMALL = {
    "float32": ConvShape.of((2, 4, 5, 7), (6, 2, 3, 3), padding=(0, 1, 2, 1), groups=2),
    "float16": ConvShape.of((3, 5, 9), (4, 5, 3), padding=(1, 2), dtype="float16"),
    "bfloat16": ConvShape.of((1, 3, 10), (3, 1, 3), padding=(2, 0), groups=3, dtype="bfloat16"),
}


CORES = (2, 6, 16)
"""Of a processor: with that many threads its kernels are divided among."""


def errors(program: Program, shape: ConvShape) -> list[float]:
    """The error on normal, large-range and integer-valued inputs."""
    found = []
    for distribution in ("normal", "wide", "integers"):
        program.load(*inputs(shape, distribution, 0))
        program.poison()
        program.run()
        found.append(relative(program.output(), convolve(*program.inputs(), shape)))
    return found


def check(shape: ConvShape, candidate: Candidate) -> None:
    found, direct = errors(Program(shape, candidate, "CPU"), shape), errors(Program(shape, DIRECT, "CPU"), shape)
    for mine, plain in zip(found, direct, strict=True):
        assert mine <= bound(shape.dtype, plain, Policy()), f"{candidate} on {shape}"


EVERY = [
    Candidate.of(name, **values)
    for name in WINOGRAD
    for values in (
        [dict(get_strategy(name).candidate({"tile": tile}).params) for tile in (2, 4, 6)]
        if name != "tensor_winograd"
        else [{}]
    )
]


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("candidate", EVERY, ids=lambda c: f"{c.strategy}-{dict(c.params).get('tile', 4)}")
def test_every_strategy_tile_and_dtype(candidate: Candidate, dtype: str) -> None:
    with Context(NOOPT=1):  # tinygrad's optimisations make single_fused, tile 4, a matter of a minute
        check(SMALL[dtype], candidate)


@given(conv_shapes(), candidates(), st.integers(0, 9), st.sampled_from(CORES))
@examples(8)
def test_any_shape_with_any_parameters(shape: ConvShape, candidate: Candidate, turn: int, cores: int) -> None:
    optimised = turn == 9 and candidate.strategy != "single_fused"
    with Context(NOOPT=int(not optimised), NUM_CPU_THREADS=cores):
        try:
            check(shape, candidate)
        except NotApplicableError:
            assert candidate.strategy == "tensor_winograd"


@pytest.mark.parametrize("cores", [4, 12, 16])
@pytest.mark.parametrize("candidate", [Candidate.of("im2col"), Candidate.of("blocked", cores="all")], ids=str)
def test_divided_among_cores(candidate: Candidate, cores: int) -> None:
    """A row of the image divides the threads: tinygrad splits a range that is read so."""
    chosen = get_strategy(candidate.strategy).candidate(dict(candidate.params))
    with Context(NUM_CPU_THREADS=cores, NOOPT=1):
        check(ConvShape.of((2, 4, 8, 8), (4, 4, 3, 3), padding=1), chosen)


@pytest.mark.parametrize("parameter", ["xhat", "ghat", "mhat", "product"])
def test_every_layout_of_blocked(parameter: str) -> None:
    shape = ConvShape.of((2, 3, 9), (5, 3, 3), padding=1)
    item = get_strategy("blocked")
    [choices] = [p.choices for p in item.parameters if p.name == parameter]
    for choice in choices:
        with Context(NOOPT=1):
            check(shape, item.candidate({parameter: choice, "cout_block": 2, "tile_block": 4, "channel_block": 1}))


X, W, V = (2, 4, 7, 6), (4, 4, 3, 3), (3, 4, 3, 3)
BIAS = np.random.default_rng(7).normal(size=4).astype(np.float32)

# How many convolutions are rewritten. The ones with 0 are left alone: summed along an axis that only the weight knows,
# of stride 2, or read at an offset.
GRAPHS: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "activation": (1, lambda x, w, v: (x * 2 + 1).relu().conv2d(w, padding=1)),
    "activation that is not 0 at 0": (1, lambda x, w, v: x.exp().conv2d(w, padding=(2, 0, 1, 3))),
    "epilogue": (1, lambda x, w, v: (x.conv2d(w, Tensor(BIAS), padding=1).relu() + x).sigmoid()),
    "reduced": (1, lambda x, w, v: x.conv2d(w, padding=1).mean((2, 3))),
    "softmax": (1, lambda x, w, v: x.conv2d(w, padding=1).softmax(1)),
    "pooled": (1, lambda x, w, v: x.conv2d(w, padding=1).avg_pool2d((2, 2))),
    "permuted": (1, lambda x, w, v: x.permute(0, 1, 3, 2).conv2d(w.permute(1, 0, 3, 2), padding=1)),
    "flipped": (1, lambda x, w, v: x.flip((1, 2, 3)).conv2d(w.flip((0, 2)))),
    "shrunk": (1, lambda x, w, v: x[1:, :, 1:6, 2:].conv2d(w[1:], padding=1)),
    "broadcast": (1, lambda x, w, v: x[:1, :1].expand(2, 4, 7, 6).contiguous().conv2d(w, padding=1)),
    "a channel broadcast": (1, lambda x, w, v: x[:, :1].expand(2, 4, 7, 6).conv2d(w, padding=1)),
    "repeated": (1, lambda x, w, v: x.repeat((1, 1, 2, 1)).conv2d(w, padding=1)),
    "strided": (1, lambda x, w, v: x[:, :, ::2].conv2d(w, padding=1)),
    "padded before": (1, lambda x, w, v: x.pad((1, 2, 0, 1)).conv2d(w, padding=1)),
    "padded with ones": (1, lambda x, w, v: x.pad((1, 1, 1, 1), value=1.0).conv2d(w)),
    "reflected": (1, lambda x, w, v: x.pad((1, 1, 1, 1), mode="reflect").conv2d(w)),
    "upsampled": (1, lambda x, w, v: x.interpolate((14, 12), mode="nearest").conv2d(w, padding=1)),
    "pixels shuffled": (1, lambda x, w, v: x.conv2d(w).reshape(2, 1, 2, 2, 5, 4).permute(0, 1, 4, 2, 5, 3)),
    "channels last": (1, lambda x, w, v: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).conv2d(w)),
    "output permuted": (1, lambda x, w, v: x.conv2d(w, padding=1).permute(0, 2, 3, 1).contiguous()),
    "output shrunk": (1, lambda x, w, v: x.conv2d(w, padding=1)[:, 1:3, 1:5]),
    "every second output": (0, lambda x, w, v: x.conv2d(w, padding=1)[:, :, ::2, ::2]),
    "output padded": (1, lambda x, w, v: x.conv2d(w).pad((1, 0, 0, 2))),
    "concatenated input": (1, lambda x, w, v: Tensor.cat(x[:, :1], x[:, 2:4], x[:, :1], dim=1).conv2d(w, padding=1)),
    "concatenated output": (2, lambda x, w, v: Tensor.cat(x.conv2d(w), x.conv2d(v), dim=1)),
    "shared input": (2, lambda x, w, v: x.conv2d(w, padding=1)[:, :3] * x.conv2d(v, padding=1)),
    "shared weight": (2, lambda x, w, v: x.conv2d(w, padding=1) + x.flip(2).conv2d(w, padding=1)),
    "weight of itself": (1, lambda x, w, v: x[:1].conv2d(x[:, :, :3, :3], padding=1)),
    "chain": (2, lambda x, w, v: x.conv2d(w, padding=1).relu().conv2d(v, padding=1)),
    "residual": (2, lambda x, w, v: (x.conv2d(w, padding=1).relu().conv2d(w, padding=1) + x).relu()),
    "diamond": (3, lambda x, w, v: (y := x.conv2d(w, padding=1)).relu().conv2d(v) + y.sigmoid().conv2d(v)),
    "normalised": (1, lambda x, w, v: (x - x.mean(1, keepdim=True)).conv2d(w, padding=1)),
    "masked": (1, lambda x, w, v: (x > 0).where(x, 0).conv2d(w, padding=1)),
    "gate of ours and theirs": (1, lambda x, w, v: (x.pad((1, 1, 1, 1)) > 0).where(1.0, 2.0).conv2d(w)),
    "dropped on the way": (1, lambda x, w, v: (x * (Tensor.arange(6) % 2)).conv2d(w, padding=1)),
    "weight made on the way": (1, lambda x, w, v: x.conv2d(w * w.square().sum((1, 2, 3), keepdim=True).rsqrt())),
    "two 1-D": (2, lambda x, w, v: x.conv2d(w[:, :, :1], padding=(1, 1, 0, 0)).conv2d(w[:, :, :, :1])),
    "times": (1, lambda x, w, v: x.conv2d(w, padding=1) * x.conv2d(w, padding=1)),
}  # fmt: skip
TENSORS = [normal(*size, seed=seed) for seed, size in enumerate((X, W, V))]


def alone(name: str) -> Array:
    with Context(NOOPT=1):
        return GRAPHS[name][1](*TENSORS).numpy()


@pytest.mark.parametrize("name", GRAPHS)
def test_in_a_graph(name: str) -> None:
    """Each strategy takes its turn over the graphs; with AUTOTUNE_EXAMPLES all of them meet all."""
    turn = list(GRAPHS).index(name)
    names = WINOGRAD if FACTOR > 1 else [WINOGRAD[turn % len(WINOGRAD)]]
    expected = alone(name)
    for strategy in names:
        found: list[Array] = []
        with Context(NOOPT=1), autotune.forced(strategy):
            did = counted(lambda: found.append(GRAPHS[name][1](*TENSORS).numpy()))  # noqa: B023
        assert (did.applied, did.fallbacks) == (GRAPHS[name][0], 0), strategy
        assert relative(found[0], expected) < TOLERANCE, strategy


@given(st.data())
@examples(3)
def test_random_graphs(data: st.DataObject) -> None:
    """Chains, branches and views of random length, under any candidate, against tinygrad alone."""
    steps = data.draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=5))
    steps = ["conv", *steps]
    candidate = data.draw(candidates())

    def build() -> Tensor:
        old, new = TENSORS[0], TENSORS[0]
        for step in steps:
            old, new = new, STEPS[step](new, old)
        return new

    with Context(NOOPT=1):
        expected = build().numpy()
        with autotune.forced(candidate.strategy, **dict(candidate.params)):
            found: list[Array] = []
            did = counted(lambda: found.append(build().numpy()))
    assert did.fallbacks == 0
    assert did.applied >= 1
    assert relative(found[0], expected) < 10 * TOLERANCE, (steps, candidate)


def conv(x: Tensor, groups: int = 1, stride: int = 1) -> Tensor:
    return x.conv2d(TENSORS[1][:, : 4 // groups] / 6, padding=1, groups=groups, stride=stride)


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conv": lambda x, old: conv(x),
    "grouped": lambda x, old: conv(x, groups=2),
    "strided": lambda x, old: conv(x, stride=2).interpolate((7, 6), mode="nearest"),
    "relu": lambda x, old: x.relu(),
    "residual": lambda x, old: x + old if x.shape == old.shape else x,
    "flip": lambda x, old: x.flip((2, 3)),
    "channels": lambda x, old: x.flip(1) * 0.5,
    "norm": lambda x, old: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1),
    "pool": lambda x, old: x.avg_pool2d((3, 3), stride=1, padding=1),
    "contiguous": lambda x, old: x.contiguous(),
    "halves": lambda x, old: Tensor.cat(x[:, 2:], x[:, :2], dim=1),
    "roll": lambda x, old: x.roll(1, 3),
    "two": lambda x, old: conv(x) * conv(old).sigmoid() if old.shape == x.shape else x,
}


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_big_and_small_values(scale: float) -> None:
    """The transforms multiply by at most some hundreds: what is far from overflow stays far from it."""
    x, w = (normal(1, 4, 8, 8) * scale).realize(), normal(4, 4, 3, 3, seed=1)
    plain = x.conv2d(w, padding=1).numpy().astype(np.float64) / scale
    with autotune.forced("hybrid_grid", tile=4):
        found = x.conv2d(w, padding=1).numpy().astype(np.float64) / scale
    assert relative(found, plain) < TOLERANCE
