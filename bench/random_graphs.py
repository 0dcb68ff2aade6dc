"""Random tinygrad graphs with convolutions in them, computed by tinygrad alone and with a strategy at the seam.

What bench/hook.py runs by the thousand and tests/test_random_graphs.py a seeded share of. The strategies are applied
without the hook, whose rescue makes a right result of an exception: here one that a lowering raises, or that tinygrad
raises of what a lowering made, is raised.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from tinygrad import Device, Tensor, Variable

from autotune.compiler import ensure_c_compiler
from autotune.reference import Array
from strategies.candidate import Candidate, Value
from strategies.graph import seam
from strategies.graph.apply import NotApplicableError, lower
from strategies.graph.device import describe_device
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.ranges import Ranges
from strategies.key import ConvKey
from strategies.registry import get_strategy, strategies

if Device.DEFAULT == "CPU":
    ensure_c_compiler()  # the weights below are computed

FOR_GPUS: dict[str, dict[str, Value]] = {
    "shared_memory": {"cout_block": 16, "tile_block": 32, "couts": 4, "tiles": 4, "depth": 4},
    "implicit_gemm": {"cout_block": 16, "window_block": 32, "couts": 4, "windows": 4, "depth": 4},
}
"""Blocks as small as these graphs."""
DECLINING = {*FOR_GPUS, "cache_blocked"}
"""Their blocks may have no room for a convolution, or it has a Variable, which a kernel of our own is not given."""
BOUND = 1e-3
"""Of a whole graph, which may hold several convolutions: relative to its largest value."""
SHAPE = (2, 4, 8, 8)
"""Of the input, and of what every step takes and gives."""
Step = Callable[[Tensor, Tensor], Tensor]


def _weight(*shape: int) -> Tensor:
    values = np.random.default_rng(shape).normal(size=shape)
    return Tensor((values / np.prod(shape[1:]) ** 0.5).astype(np.float32)).realize()


WEIGHTS = {(cin, size): _weight(4, cin, size, size) for cin in (1, 2, 4) for size in (1, 3, 5)}
OTHER, BIAS, LINEAR = _weight(4, 4, 3, 3), _weight(4), _weight(256, 256)
WIDE, POINTWISE, NARROW, BOTH = _weight(8, 4, 3, 3), _weight(8, 8, 1, 1), _weight(4, 8, 1, 1), _weight(4, 8, 3, 3)
"""`implicit_gemm` is for sums of eight products and more, to eight couts and more."""


def _conv(x: Tensor) -> Tensor:
    return x.conv2d(WEIGHTS[4, 3], padding=1)


def _strided(x: Tensor) -> Tensor:
    return x.conv2d(WEIGHTS[4, 3], padding=1, stride=2)


def _max_pooled(x: Tensor) -> Tensor:
    y = x.pad((1, 1, 1, 1)).max_pool2d(3, stride=2)
    assert isinstance(y, Tensor)  # without return_indices
    return y


def _of_some(x: Tensor) -> Tensor:
    """The convolution of as many images as a Variable says."""
    images = Variable("images", 1, x.shape[0]).bind(2)
    return x + x.contiguous()[:images].conv2d(WEIGHTS[4, 3], padding=1).sum(0, keepdim=True)


def _scaled_by_variable(x: Tensor) -> Tensor:
    return x * (Tensor(Variable("scale", 1, 8).bind(3)).cast(x.dtype) / 4)


def _attention(x: Tensor) -> Tensor:
    """Every position asks every other; keys are a 1x1 convolution, values a 3x3 one."""
    query, key, value = (each.flatten(2) for each in (x, x.conv2d(WEIGHTS[4, 1]), _conv(x)))
    weights = (query.transpose(1, 2) @ key / 2).softmax(-1)
    return x + (value @ weights.transpose(1, 2)).reshape(*x.shape)


def _read_in_pieces(y: Tensor) -> Tensor:
    return y[:, :2].cat(y[:, 2:4].relu(), dim=1) + y[:, -4:, 1:-1, 1:].pad((1, 0, 1, 1))


STEPS: dict[str, Step] = {
    "conv 3x3": lambda x, _: _conv(x),
    "conv 3x3 unpadded": lambda x, _: x.pad((1, 1, 1, 1)).conv2d(WEIGHTS[4, 3]),
    "conv of groups": lambda x, _: x.conv2d(WEIGHTS[2, 3], padding=1, groups=2),
    "conv of groups, bias and relu": lambda x, _: x.conv2d(WEIGHTS[2, 3], BIAS, padding=1, groups=2).relu(),
    "depthwise": lambda x, _: x.conv2d(WEIGHTS[1, 3], padding=1, groups=4),
    "conv 1x1": lambda x, _: x.conv2d(WEIGHTS[4, 1]),
    "conv 5x5": lambda x, _: x.conv2d(WEIGHTS[4, 5], padding=2),
    "conv transposed": lambda x, _: x.conv_transpose2d(WEIGHTS[4, 3], padding=1),
    "conv strided": lambda x, _: _strided(x).interpolate(x.shape[2:], mode="nearest"),
    "conv strided, then padded": lambda x, _: _strided(x).relu().pad((2, 2, 2, 2)),
    "conv 1x1 strided, then padded": lambda x, _: x.conv2d(WEIGHTS[4, 1], stride=2).pad((4, 0, 1, 3)),
    "conv dilated": lambda x, _: x.conv2d(WEIGHTS[4, 3], padding=2, dilation=2),
    "conv of a channel": lambda x, _: x[:, :1].expand(*x.shape).conv2d(WEIGHTS[4, 3], padding=1),
    "conv of a computed weight": lambda x, _: x.conv2d(WEIGHTS[4, 3] * BIAS.reshape(4, 1, 1, 1), BIAS, padding=1),
    "convs of one input": lambda x, _: _conv(x).relu() + x.conv2d(OTHER, padding=1),
    "convs of one weight": lambda x, old: _conv(x) * _conv(old).sigmoid(),
    "conv and its sum": lambda x, _: (lambda y: y.relu() + y.mean((2, 3), keepdim=True))(_conv(x)),  # noqa: PLC3002
    "conv and a sum beside it": lambda x, _: _conv(x) + x.sum((1, 2), keepdim=True) / 16,
    "conv summed at once": lambda x, _: x + _conv(x).relu().sum((2, 3), keepdim=True) / 16,
    "conv of some images": lambda x, _: _of_some(x),
    "scaled by a Variable": lambda x, _: _scaled_by_variable(x),
    "conv to eight couts": lambda x, _: x.conv2d(WIDE, padding=1).relu().conv2d(NARROW),
    "conv 1x1 of eight": lambda x, _: x.cat(x.relu(), dim=1).conv2d(POINTWISE).sigmoid().conv2d(BOTH, padding=1),
    "conv to eight couts, read in pieces": lambda x, _: _read_in_pieces(x.conv2d(WIDE, padding=1)),
    "conv read in pieces": lambda x, _: _read_in_pieces(_conv(x)),
    "conv twice": lambda x, _: _conv(_conv(x).relu()),
    "convs concatenated": lambda x, _: _conv(x).cat(x.conv2d(OTHER, padding=1), dim=1).conv2d(BOTH, padding=1),
    "attention": lambda x, _: _attention(x),
    "diamond": lambda x, _: _conv(x.relu()) + x.sigmoid().conv2d(OTHER, padding=1),
    "relu": lambda x, _: x.relu(),
    "scaled": lambda x, _: x * 0.5 + 1,
    "residual": lambda x, old: x + old,
    "product": lambda x, old: x * old.sigmoid(),
    "swapped": lambda x, _: x.permute(0, 1, 3, 2),
    "flipped": lambda x, _: x.flip(2),
    "rolled": lambda x, _: x.roll(1, 3),
    "flattened and back": lambda x, _: x.flatten(1).relu().reshape(*x.shape),
    "flattened into a linear layer": lambda x, _: x.flatten(1).linear(LINEAR).reshape(*x.shape),
    "channels last and back": lambda x, _: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "shuffled": lambda x, _: x.reshape(x.shape[0], 1, 2, 2, *x.shape[2:]).permute(0, 1, 3, 2, 4, 5).reshape(*x.shape),
    "padded and cut": lambda x, _: x.pad((1, 1, 1, 1)).relu()[:, :, 1:-1, 1:-1],
    "pooled": lambda x, _: x.avg_pool2d((3, 3), stride=1, padding=1),
    "pooled, strided": lambda x, _: _max_pooled(x).pad((2, 2, 2, 2)),
    "normed": lambda x, _: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1),
    "stored": lambda x, _: x.contiguous(),
    "summed": lambda x, _: x + x.sum(1, keepdim=True) / 4,
}
NOT_DIFFERENTIATED = frozenset({"pooled, strided", "conv of some images"})
"""The gradient of a maximum jumps where two values are almost equal; tinygrad has none through a symbolic shape."""
ENDS = ("value", "input's gradient", "gradients", "assigned to what is read", "flattened", "averaged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Steps one after the other, each of what the last one and the one before it gave, and what is asked for."""

    steps: tuple[str, ...]
    end: str = "value"

    def run(self) -> Array:
        """The numbers, computed anew: on an input of its own, for it may be assigned to."""
        image = Tensor(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)).realize()
        old, new = image, _conv(image)
        for step in self.steps:
            old, new = new, STEPS[step](new, old)
        if self.end == "assigned to what is read":
            image.assign(new * 0.5 + image).realize()
            return _numbers(image)
        if "gradient" in self.end:
            wanted = (image,) if self.end == "input's gradient" else (image, WEIGHTS[4, 3])
            found = new.square().mean().gradient(*wanted)
            Tensor.realize(*found)  # in one graph
            return np.concatenate([_numbers(each).reshape(-1) for each in found])
        tails = {"flattened": lambda: new.relu().flatten(1), "averaged": lambda: new.relu().mean((2, 3))}
        return _numbers(tails.get(self.end, lambda: new)())


def _numbers(tensor: Tensor) -> Array:
    numbers: Array = tensor.numpy()
    return numbers


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    steps = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6))
    end = draw(st.sampled_from(ENDS))
    return Graph(steps=tuple(steps), end="value" if "gradient" in end and NOT_DIFFERENTIATED & {*steps} else end)


MIXED = "in turn"
"""In place of a strategy's name: each convolution of a graph has the next of those that apply to it."""


@dataclass(slots=True)
class Met:
    """What strategies did, of all graphs that they were applied to."""

    convolutions: int = 0
    applied: Counter[str] = field(default_factory=Counter)
    """Convolutions that each has rewritten."""
    declined: list[str] = field(default_factory=list)
    """What a strategy of kernels of our own does not take, though it is for its key: left to tinygrad."""


def names_on(device: str) -> list[str]:
    """The strategies that there are for the device, and MIXED."""
    left_out = {"tensor_cores", "tensor_cores_tf32"}  # these graphs are in float32, and nobody allows them TF32
    left_out |= FOR_GPUS.keys() if device == "CPU" else set()
    return [*(item.name for item in strategies() if item.lower is not None and item.name not in left_out), MIXED]


def candidate(name: str) -> Candidate:
    """The strategy with its default parameters; blocks as small as these graphs where it would not apply else."""
    return get_strategy(name).candidate(FOR_GPUS.get(name))


@contextmanager
def lowered(name: str, met: Met) -> Iterator[None]:
    """One strategy, or several in turn, on every convolution that it applies to, within the block; whatever goes wrong
    is raised."""
    turns = itertools.count()

    def rewriter(convs: Sequence[Conv], ranges: Ranges) -> list[Lowered | None]:
        return [one(conv, ranges) for conv in convs]

    def one(conv: Conv, ranges: Ranges) -> Lowered | None:
        met.convolutions += 1
        if conv.shape is None:
            return None
        key = ConvKey(shape=conv.shape, device=describe_device(conv.device, surroundings=False))
        names = [each for each in names_on(key.device.device) if each != MIXED] if name == MIXED else [name]
        names = [each for each in names if get_strategy(each).applies(key)]
        if not names:
            return None
        chosen = names[next(turns) % len(names)]
        try:
            new = lower(conv, candidate(chosen), ranges)
        except NotApplicableError as error:
            if chosen not in DECLINING:
                raise
            met.declined.append(str(error))
            return None
        met.applied[chosen] += new is not None
        return new

    with seam.attached(rewriter):
        yield


def difference(name: str, graph: Graph, expected: Array, met: Met) -> float:
    """How far from `expected` the graph is with this strategy, relative to the largest value.

    Raises AssertionError if that is more than BOUND, or whatever was raised, with the strategy's name and the graph.
    """
    try:
        with lowered(name, met):
            found = graph.run()
    except Exception as error:
        raise AssertionError(f"{name} raised {type(error).__name__}: {error} on {graph}") from error
    assert np.isfinite(found).all(), f"{name}: not finite on {graph}"
    far = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
    assert far <= BOUND, f"{name} differs by {far:.1e} on {graph}"
    return far
