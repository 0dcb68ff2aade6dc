"""How many kernels every strategy makes. Nothing is timed, and but for the sources nothing is compiled."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from graphs import WINOGRAD, kernel_count, kernels
from tinygrad import Tensor
from tinygrad.helpers import Context

import autotune
from strategies.graph.program import CompiledKernel

EXACT, RAGGED = 32, 30
"""An output that tiles of 2, 4 and 6 ... the second is no multiple of 4, the first none of 6."""

COUNTS = [  # strategy, parameters, kernels where tiles cover the output exactly, and where they do not
    ("direct", {}, 1, 1),
    ("tensor_winograd", {}, 4, 4),
    ("four_buffer", {"tile": 4}, 4, 5),
    ("four_buffer", {"tile": 2}, 4, 4),
    ("four_buffer", {"tile": 6}, 5, 4),
    ("four_buffer", {"tile": 4, "output": "staged"}, 5, 5),
    ("four_buffer", {"tile": 4, "output": "inline"}, 4, 4),
    ("hybrid_grid", {"tile": 4}, 4, 5),
    ("deferred_mhat", {"tile": 4, "form": "nested"}, 3, 4),
    ("deferred_mhat", {"tile": 4, "form": "unrolled"}, 3, 4),
    ("inline_transforms", {"tile": 4}, 2, 3),
    ("single_fused", {"tile": 4, "form": "nested"}, 1, 1),
    ("single_fused", {"tile": 2, "form": "unrolled"}, 1, 1),
    ("single_fused", {"tile": 4, "output": "staged"}, 2, 2),
    ("blocked", {"tile": 4}, 4, 5),
]


def conv(size: int = EXACT, channels: int = 16) -> Tensor:
    return Tensor.empty(1, channels, size, size).conv2d(Tensor.empty(channels, channels, 3, 3), padding=1)


@pytest.mark.parametrize(("strategy", "params", "exact", "ragged"), COUNTS)
def test_of_one_convolution(strategy: str, params: dict[str, int], exact: int, ragged: int) -> None:
    with autotune.forced(strategy, **params):
        assert kernel_count(conv(EXACT)) == exact
        assert kernel_count(conv(RAGGED)) == ragged


@pytest.mark.parametrize(("strategy", "params", "exact", "ragged"), COUNTS)
def test_an_epilogue_adds_none(strategy: str, params: dict[str, int], exact: int, ragged: int) -> None:
    def build(size: int) -> Tensor:
        return ((conv(size) + Tensor.empty(16, 1, 1)).relu() + Tensor.empty(1, 16, size, size)).tanh()

    with autotune.forced(strategy, **params):
        assert kernel_count(build(EXACT)) == exact
        assert kernel_count(build(RAGGED)) == ragged


def chain(length: int, size: int = EXACT) -> Tensor:
    y = Tensor.empty(1, 8, size, size)
    for _ in range(length):
        y = y.conv2d(Tensor.empty(8, 8, 3, 3), padding=1).relu()
    return y


@pytest.mark.parametrize("strategy", WINOGRAD)
def test_a_chain_is_the_sum_of_its_parts(strategy: str) -> None:
    """No output transform inside the next input transform: as many kernels, and as many operations, as apart."""
    with autotune.forced(strategy):
        assert kernel_count(chain(3)) == 3 * kernel_count(chain(1))
        assert kernel_count(chain(3, RAGGED)) == 3 * kernel_count(chain(1, RAGGED))


@pytest.mark.parametrize("strategy", ["four_buffer", "tensor_winograd"])
def test_a_chain_computes_nothing_twice(strategy: str) -> None:
    with Context(NOOPT=1), autotune.forced(strategy):
        apart = sum(kernel.ops for kernel in kernels(chain(1, 12)))
        assert sum(kernel.ops for kernel in kernels(chain(2, 12))) <= 2.1 * apart


@pytest.mark.parametrize("strategy", WINOGRAD)
def test_a_residual_block(strategy: str) -> None:
    def block(x: Tensor, w: Tensor) -> Tensor:
        return (x.conv2d(w, padding=1).relu().conv2d(w, padding=1) + x).relu()

    with autotune.forced(strategy):
        count = kernel_count(block(Tensor.empty(1, 8, 16, 16), Tensor.empty(8, 8, 3, 3)))
        alone = kernel_count(conv(16, 8))
    shared = 1 if strategy not in ("inline_transforms", "single_fused") else 0  # GHAT, of the same weight
    assert count in (2 * alone, 2 * alone - shared)


def test_twenty_convolutions_schedule_linearly() -> None:
    """Each further one adds the same: the time of the real thing is printed by bench/."""
    with autotune.forced("hybrid_grid"):
        assert [kernel_count(chain(n)) for n in (1, 5, 20)] == [4, 20, 80]


def tokens(kernel: CompiledKernel) -> Counter[str]:
    """A kernel's source up to the names and the order of its variables and the order of what a sum or product takes."""
    source = re.sub(r"\b(data|val|alu|cast|gidx|Lidx|Ridx)\d+(_\d+)?\b", r"\1\2", kernel.source)
    return Counter(re.findall(r"[A-Za-z_][A-Za-z_0-9]*|[0-9.]+f?|[^\s]", source))


def arithmetic(kernel: CompiledKernel) -> Counter[str]:
    """How often it multiplies by which constant (0 is what a gate yields): its matrices, without the indexing."""
    return Counter(found for found in re.findall(r"[0-9]+\.[0-9]+f", kernel.source) if float(found[:-1]))


@pytest.mark.parametrize(("size", "channels", "batch"), [(16, 8, 1), (14, 4, 2)])
def test_tensor_winograd_is_the_users_own_wino(size: int, channels: int, batch: int) -> None:
    """Kernel by kernel as from `WINO=1`, the product and the output token by token.

    The input's and the filter's transform may come at their indexes by a term more or less.
    """

    def build() -> Tensor:
        x, w = Tensor.empty(batch, channels, size, size), Tensor.empty(channels, channels, 3, 3)
        return x.conv2d(w, padding=1)

    with Context(WINO=1):
        theirs = {kernel.name: kernel for kernel in kernels(build())}
    with autotune.forced("tensor_winograd"):
        in_order = kernels(build())
    ours = {kernel.name: kernel for kernel in in_order}
    assert len(ours) == len(theirs) == 4
    assert ours.keys() == theirs.keys()
    for name, kernel in ours.items():
        assert kernel.bytes == theirs[name].bytes
        assert abs(kernel.ops - theirs[name].ops) <= 0.02 * theirs[name].ops
        assert arithmetic(kernel) == arithmetic(theirs[name]), name
    for kernel in in_order[2:]:
        assert tokens(kernel) == tokens(theirs[kernel.name])
