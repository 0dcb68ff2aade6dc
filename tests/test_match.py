"""Which convolutions are found in a graph, whatever wrote them, and what is left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from graphs import WINOGRAD, counted, kernel_count, normal
from tinygrad import Tensor, Variable, dtypes, nn
from tinygrad.helpers import Context
from tinygrad.uop.ops import AxisType, UOp

import autotune
from autotune.models import resnet18
from strategies.graph.find import find_convolutions
from strategies.graph.match import _axes
from strategies.graph.rebuild import expression
from strategies.shape import ConvShape

X, W = (2, 4, 8, 9), (6, 4, 3, 3)
PADDED = ConvShape.of(X, W, padding=1)
Build = Callable[[], Tensor]


def e(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor.empty(*shape, dtype=getattr(dtypes, dtype))


def einsum(x: Tensor, w: Tensor) -> Tensor:
    """A convolution that nobody called one: windows, then a product."""
    return Tensor.einsum("ncpqab,ocab->nopq", x._pool((3, 3), 1, 1), w)


def max_pool(x: Tensor, *, stride: int = 1, padding: int = 1) -> Tensor:
    y = x.max_pool2d((3, 3), stride=stride, padding=padding)
    assert isinstance(y, Tensor)  # without return_indices
    return y


FOUND: dict[str, tuple[Build, ConvShape]] = {
    "padded": (lambda: e(*X).conv2d(e(*W), padding=1), PADDED),
    "not padded": (lambda: e(*X).conv2d(e(*W)), ConvShape.of(X, W)),
    "padding per side": (
        lambda: e(*X).conv2d(e(*W), padding=(0, 1, 2, 0)),
        ConvShape.of(X, W, padding=(0, 1, 2, 0)),
    ),
    "groups": (lambda: e(*X).conv2d(e(6, 2, 3, 3), groups=2), ConvShape.of(X, (6, 2, 3, 3), groups=2)),
    "depthwise": (lambda: e(*X).conv2d(e(4, 1, 3, 3), groups=4), ConvShape.of(X, (4, 1, 3, 3), groups=4)),
    "1-D": (lambda: e(2, 4, 9).conv2d(e(6, 4, 3), padding=1), ConvShape.of((2, 4, 9), (6, 4, 3), padding=1)),
    "1x3": (lambda: e(*X).conv2d(e(6, 4, 1, 3)), ConvShape.of(X, (6, 4, 1, 3)).canonical()),
    "3x5": (lambda: e(*X).conv2d(e(6, 4, 3, 5)), ConvShape.of(X, (6, 4, 3, 5))),
    "float16": (
        lambda: e(*X, dtype="float16").conv2d(e(*W, dtype="float16"), padding=1),
        ConvShape.of(X, W, padding=1, dtype="float16"),
    ),
    "bfloat16": (
        lambda: e(*X, dtype="bfloat16").conv2d(e(*W, dtype="bfloat16"), padding=1),
        ConvShape.of(X, W, padding=1, dtype="bfloat16"),
    ),
    "summed in float16": (
        lambda: e(*X, dtype="float16").conv2d(e(*W, dtype="float16"), padding=1, dtype=dtypes.float16),
        ConvShape.of(X, W, padding=1, dtype="float16", acc_dtype="float16"),
    ),
    "activation before": (lambda: (e(*X).relu() * 2).conv2d(e(*W), padding=1), PADDED),
    "epilogue": (lambda: (e(*X).conv2d(e(*W), e(6), padding=1).relu() + e(2, 6, 8, 9)).sigmoid() * 2, PADDED),
    "channels last": (lambda: e(2, 8, 9, 4).permute(0, 3, 1, 2).conv2d(e(*W), padding=1), PADDED),
    "flipped input": (lambda: e(*X).flip((2, 3)).conv2d(e(*W), padding=1), PADDED),
    "flipped weight": (lambda: e(*X).conv2d(e(*W).flip((2, 3)), padding=1), PADDED),
    "shrunk": (lambda: e(2, 4, 12, 12)[:, :, 2:10, :9].conv2d(e(*W), padding=1), PADDED),
    "an image for all": (
        lambda: e(1, 4, 8, 9).expand(*X).conv2d(e(*W), padding=1),
        ConvShape.of((1, 4, 8, 9), W, padding=1),
    ),
    "transposed": (
        lambda: e(*X).conv_transpose2d(e(4, 6, 3, 3)),
        ConvShape.of(X, W, padding=2),
    ),
    "windows and a product": (lambda: einsum(e(*X), e(*W)), ConvShape.of(X, W)),
    "nn.Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding="same")(e(*X)), PADDED),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    build, shape = FOUND[name]
    assert find_convolutions(build) == {shape: 1}
    with autotune.forced("four_buffer"):
        did = counted(lambda: kernel_count(build()))
    assert (did.convolutions, did.applied) == (1, 1)


def of(x: tuple[int, ...], w: tuple[int, ...], **options: Any) -> ConvShape:
    return ConvShape.of(x, w, **options).canonical()


PLAIN: dict[str, tuple[Build, ConvShape]] = {
    "stride 2": (lambda: e(*X).conv2d(e(*W), padding=1, stride=2), of(X, W, padding=1, stride=2)),
    "dilation 2": (lambda: e(*X).conv2d(e(*W), padding=2, dilation=2), of(X, W, padding=2, dilation=2)),
    "5x5": (lambda: e(*X).conv2d(e(6, 4, 5, 5)), of(X, (6, 4, 5, 5))),
    "7x7 stride 2": (
        lambda: e(1, 3, 24, 24).conv2d(e(8, 3, 7, 7), padding=3, stride=2),
        of((1, 3, 24, 24), (8, 3, 7, 7), padding=3, stride=2),
    ),
    "depthwise stride 2": (
        lambda: e(*X).conv2d(e(4, 1, 3, 3), groups=4, stride=2, padding=1),
        of(X, (4, 1, 3, 3), groups=4, stride=2, padding=1),
    ),
    "stride 2 of what was computed": (
        lambda: e(*X).conv2d(e(4, 4, 1, 1)).relu().conv2d(e(*W), padding=1, stride=2),
        of(X, W, padding=1, stride=2),
    ),
    "dilation 2 of what was computed": (
        lambda: e(*X).conv2d(e(4, 4, 1, 1)).relu().conv2d(e(*W), padding=2, dilation=2),
        of(X, W, padding=2, dilation=2),
    ),
    "padded behind": (  # the zeros that are put round the output are computed in the same loops
        lambda: max_pool(e(*X).conv2d(e(6, 4, 5, 5), padding=2).relu().pad((1, 1, 1, 1)), stride=2, padding=0),
        of(X, (6, 4, 5, 5), padding=3),
    ),
    "not padded, stride 2, padded behind": (
        lambda: max_pool(e(2, 4, 9, 11).conv2d(e(*W), e(6), stride=2).relu(), stride=2),
        of((2, 4, 9, 11), W, stride=2),
    ),
    "1x1, padded behind": (
        lambda: e(*X).conv2d(e(6, 4, 1, 1), e(6)).relu().pad((1, 1, 1, 1)).contiguous(), of(X, (6, 4, 1, 1)),
    ),
    "1x1": (lambda: e(*X).conv2d(e(6, 4, 1, 1)), of(X, (6, 4, 1, 1))),
    "1x1 stride 2": (lambda: e(*X).conv2d(e(6, 4, 1, 1), stride=2), of(X, (6, 4, 1, 1), stride=2)),
    "1x1 stride 2 of what was computed": (
        lambda: e(*X).relu().contiguous().conv2d(e(6, 4, 1, 1), stride=2), of(X, (6, 4, 1, 1), stride=2),
    ),
    "1x1 stride 2 along one axis": (
        lambda: e(*X).conv2d(e(6, 4, 1, 1), stride=(1, 2)), of(X, (6, 4, 1, 1), stride=(1, 2)),
    ),
    "1x1 of a part": (lambda: e(2, 4, 8, 27)[:, :, :, :9].conv2d(e(6, 4, 1, 1)), of(X, (6, 4, 1, 1))),
    "1x1 padded": (lambda: e(*X).conv2d(e(6, 4, 1, 1), padding=1), of(X, (6, 4, 1, 1), padding=1)),
    "1x1 of groups": (lambda: e(*X).conv2d(e(6, 2, 1, 1), groups=2), of(X, (6, 2, 1, 1), groups=2)),
    "1x1 with activation and epilogue": (
        lambda: (e(*X) * e(1, 4, 1, 1)).relu().conv2d(e(6, 4, 1, 1), e(6)) + e(2, 6, 8, 9),
        of(X, (6, 4, 1, 1)),
    ),
    "1x1 as a sum": (lambda: (e(2, 1, 4, 8, 9) * e(1, 6, 4, 1, 1)).sum(2), of(X, (6, 4, 1, 1))),
    "1x1 float16": (
        lambda: e(*X, dtype="float16").conv2d(e(6, 4, 1, 1, dtype="float16")), of(X, (6, 4, 1, 1), dtype="float16"),
    ),
}  # fmt: skip
"""Found, keyed and tuned; no Winograd."""


@pytest.mark.parametrize("name", PLAIN)
def test_convolutions_without_winograd_are_found(name: str) -> None:
    build, shape = PLAIN[name]
    found = find_convolutions(build)
    assert found.pop(shape) == 1
    assert all(other.kernel == (1, 1) for other in found)  # those that a case has besides


def test_every_convolution_of_resnet18_is_found() -> None:
    model, x = resnet18()
    found = find_convolutions(lambda: model(x))
    assert sum(found.values()) == 20
    kernels = Counter({shape.kernel: 0 for shape in found})
    for shape, count in found.items():
        kernels[shape.kernel] += count
    assert kernels == {(7, 7): 1, (3, 3): 16, (1, 1): 3}
    assert sum(shape.stride == (2, 2) for shape in found) == 7


@pytest.mark.parametrize(("bound", "strides"), [(1, [2]), (2, [])])
def test_a_gate_of_strided_windows(bound: int, strides: list[int]) -> None:
    """`2*f + k < 1` is written `f + k < 1`, which is the same. `f + k < 2` is not `2*f + k < 2`: what is read at a
    position would depend on the output that reads it."""
    f, k = UOp.range(4, 0, AxisType.WEAK), UOp.range(3, 1, AxisType.REDUCE)
    activation = (f + k < bound).where((f * 2 + k).cast(dtypes.float32), UOp.const(0.0))
    assert [axis.stride for axis in _axes(expression(activation), k.cast(dtypes.float32), (k,))] == strides


LEFT: dict[str, Build] = {
    "stride 2": lambda: e(*X).conv2d(e(*W), padding=1, stride=2),
    "dilation 2": lambda: e(*X).conv2d(e(*W), padding=1, dilation=2),
    "1x1": lambda: e(*X).conv2d(e(6, 4, 1, 1)),
    "5x5": lambda: e(*X).conv2d(e(6, 4, 5, 5)),
    "2x2": lambda: e(*X).conv2d(e(6, 4, 2, 2)),
    "1x1 of three channels": lambda: e(2, 3, 8, 9).conv2d(e(3, 3, 1, 1)),
    "one output": lambda: e(2, 4, 3, 3).conv2d(e(*W)),
    "windows that touch": lambda: e(2, 4, 9, 9).conv2d(e(*W), stride=3),
    "3-D": lambda: e(1, 2, 5, 5, 5).conv2d(e(3, 2, 3, 3, 3)),
    "integers": lambda: e(*X, dtype="int32").conv2d(e(*W, dtype="int32"), padding=1),
    "bytes": lambda: e(*X, dtype="uint8").conv2d(e(*W, dtype="uint8"), padding=1),
    "float64": lambda: e(*X, dtype="float64").conv2d(e(*W, dtype="float64"), padding=1),
    "matmul": lambda: e(3, 3) @ e(3, 3),
    "matmul of a transposed": lambda: e(9, 8).T @ e(9, 3),
    "matmul over images": lambda: e(2, 8, 9, 4) @ e(4, 6),
    "1x1, channels last": lambda: e(2, 8, 9, 4).permute(0, 3, 1, 2).conv2d(e(6, 4, 1, 1)),
    "1x1 in one dimension": lambda: e(2, 4, 9).conv2d(e(6, 4, 1)),
    "matmul of heads": lambda: e(2, 8, 3, 4).transpose(1, 2) @ e(2, 3, 4, 8),
    "matmul of nine": lambda: e(2, 8, 9) @ e(9, 3),
    "batched matmul": lambda: e(3, 3, 3) @ e(3, 3, 3),
    "outer product": lambda: e(3, 1) * e(1, 3),
    "linear": lambda: e(3, 9).linear(e(9, 3), e(3)),
    "average pooling": lambda: e(*X).avg_pool2d((3, 3), stride=1),
    "max pooling": lambda: max_pool(e(*X)),
    "cumulative sum": lambda: e(3, 9).cumsum(1),
    "softmax": lambda: e(3, 9).softmax(),
    "attention": lambda: e(1, 2, 3, 4).scaled_dot_product_attention(e(1, 2, 3, 4), e(1, 2, 3, 4)),
    "layer norm": lambda: e(3, 9).layernorm(),
    "windows summed twice": lambda: (e(1, 1, 8, 8)._pool((3, 3), 1, 1) * e(3, 3)).sum() * 2,
    "a window times itself": lambda: (e(1, 1, 8, 8)._pool((3, 3), 1, 1).square()).sum((-1, -2)),
}  # fmt: skip


PRODUCTS = (
    "linear", "outer product", "1x1, channels last", "1x1 in one dimension", "attention", "average pooling",
    "max pooling", "cumulative sum", "softmax", "layer norm",
)  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    """Not only the number of kernels: the very same schedule."""
    build = LEFT[name]

    def schedule() -> list[bytes]:
        return [call.src[0].key for call in build().schedule_linear().src]

    plain, forced = schedule(), list[bytes]()
    for strategy in ("four_buffer", "single_fused", "tensor_winograd"):
        with autotune.forced(strategy):
            did = counted(lambda: forced.extend(schedule()))
        assert (did.hits, did.fallbacks) == (0, 0)
        assert forced == plain
        forced.clear()


@pytest.mark.parametrize("name", [name for name in LEFT if "matmul" in name or name in PRODUCTS])
def test_a_product_of_matrices_is_no_convolution(name: str) -> None:
    """However its flat index may look, for any sizes."""
    assert not find_convolutions(LEFT[name])


@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_a_square_product_is_no_convolution(size: int) -> None:
    assert not find_convolutions(lambda: e(size, size) @ e(size, size))
    assert not find_convolutions(lambda: e(size, size) @ e(size, size).T)


def test_a_symbolic_batch_is_left_alone() -> None:
    batch = Variable("batch", 1, 8).bind(3)
    x, w = normal(8, 4, 8, 9), normal(*W, seed=1)
    plain = x[:3].conv2d(w, padding=1).sum((1, 2, 3)).numpy()
    found: list[Tensor] = []
    with autotune.forced("four_buffer"):
        did = counted(lambda: found.append(x[:batch].conv2d(w, padding=1).sum((1, 2, 3)).sum().realize()))
    assert (did.hits, did.fallbacks) == (0, 0)
    assert abs(found[0].item() - plain.sum()) < 1e-3


def test_a_sharded_tensor_keeps_its_numbers() -> None:
    devices = ("CPU:0", "CPU:1")
    x, w = normal(4, 4, 8, 9), normal(*W, seed=1)
    plain = x.conv2d(w, padding=1).relu().numpy()
    for strategy in WINOGRAD:
        with autotune.forced(strategy):
            y = x.shard(devices, axis=0).conv2d(w.shard(devices), padding=1).relu().numpy()
        assert abs(y - plain).max() < 1e-4 * abs(plain).max(), strategy


def test_several_in_one_graph() -> None:
    x, w = e(1, 4, 8, 8), e(4, 4, 3, 3)
    shape = ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), padding=1)

    def chain() -> Tensor:
        y = x.conv2d(w, padding=1).relu()
        z = y.conv2d(w, padding=1) + y
        return z.conv2d(e(2, 4, 5, 5)) + x.conv2d(e(2, 4, 5, 5))

    assert find_convolutions(chain) == Counter({shape: 2, ConvShape.of((1, 4, 8, 8), (2, 4, 5, 5)): 2})
    with autotune.forced("hybrid_grid"):
        did = counted(lambda: kernel_count(chain()))
    assert (did.convolutions, did.applied, did.misses) == (4, 2, 2)


def test_in_the_graph_of_a_gradient() -> None:
    """There removable STAGEs hide the operands. The input's own gradient is the convolution with the flipped filter."""
    x, w = normal(1, 4, 8, 8), normal(4, 4, 3, 3, seed=1)
    dx, dw = x.conv2d(w, padding=1).square().sum().gradient(x, w)
    found = find_convolutions(lambda: dx.contiguous().sum() + dw.contiguous().sum())
    assert found[ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), padding=1)] == 2


def test_user_wino_is_left_alone() -> None:
    x, w = e(1, 4, 8, 8), e(4, 4, 3, 3)
    with Context(WINO=1):
        plain = kernel_count(x.conv2d(w, padding=1))
        with autotune.forced("single_fused"):
            did = counted(lambda: x.conv2d(w, padding=1).schedule_linear())
            assert did.applied == 0
            assert kernel_count(x.conv2d(w, padding=1)) == plain
