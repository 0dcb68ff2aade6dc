"""The product of gathered windows, on tinygrad's PYTHON device: it executes workgroups, shared memory and barriers
anywhere. tests/opencl_programs.py has larger shapes, where there is OpenCL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from graphs import TOLERANCE, counted, examples, kernel_count, on_device, relative, slow
from hypothesis import given
from test_im2col import _is_found, any_shape
from test_shared_memory import BLOCKINGS
from tinygrad import Tensor, Variable
from tinygrad.helpers import Context
from tinygrad.uop.ops import Ops, UOp

import autotune
from autotune.reference import convolve, inputs
from autotune.verify import bound
from strategies.candidate import Candidate, Value
from strategies.graph import Conv, Lowered, Ranges, seam
from strategies.graph.apply import NotApplicableError, lower
from strategies.graph.gemm import product_store
from strategies.graph.limits import limits_of
from strategies.graph.matmul import Blocking, Operand, product
from strategies.graph.program import Program
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.registry import get_strategy
from strategies.shape import ConvShape

SMALL: dict[str, Value] = {"cout_block": 16, "window_block": 32, "couts": 4, "windows": 4, "depth": 4}


@pytest.fixture
def emulated() -> Iterator[None]:
    with on_device("PYTHON"):
        yield


@pytest.mark.parametrize("by", BLOCKINGS, ids=str)
@pytest.mark.parametrize(("along_k", "vector"), [(True, 4), (False, 1)])
def test_product_of_operands_that_are_anywhere(by: Blocking, along_k: bool, vector: int) -> None:
    """A is read transposed, B backwards."""
    batch, m, n, k = 1, by.rows, by.columns, 2 * by.depth * by.parts
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, size).astype(np.float32) for size in ((batch, m, k), (batch, k, n)))
    left, right = (UOp.placeholder(x.shape, Tensor(x).dtype, slot=slot) for slot, x in ((1, a), (2, b)))

    def transposed(item: UOp, at_k: UOp, row: UOp, e: int) -> UOp:
        return left[item, row, at_k + e] if along_k else left[item, row + e, at_k]

    operands = (
        Operand(load=transposed, along_k=along_k),
        Operand(load=lambda item, at_k, column, e: right[item, at_k, n - 1 - e - column], vector=vector),
    )
    kernel = product(batch, m, n, k, *operands, by, product_store(by.parts, batch, m, n, right.dtype), name="product")
    c = Tensor.full((by.parts, batch, m, n), float("nan"), device="PYTHON").contiguous().realize()
    found = Tensor.custom_kernel(c, *(Tensor(x, device="PYTHON") for x in (a, b)), fxn=lambda *_: kernel)[0]
    np.testing.assert_array_equal(found.numpy().sum(0), np.einsum("bmk,bkn->bmn", a, b[:, :, ::-1]))


@pytest.mark.parametrize(
    ("shape", "others"),
    [
        (ConvShape.of((2, 8, 2, 6), (8, 8, 1, 1)), {}),
        (ConvShape.of((1, 5, 3, 3), (17, 5, 1, 1)), {"weight": "inline", "ahead": True}),
        (ConvShape.of((1, 8, 5, 7), (8, 8, 1, 1), stride=2), {"weight": "inline"}),
        (ConvShape.of((1, 4, 5, 5), (8, 4, 3, 3), stride=2, padding=1), {"parts": 2}),
        slow(ConvShape.of((1, 3, 9, 9), (8, 3, 7, 7), stride=2, padding=3), {"weight": "inline", "parts": 4}),
        slow(ConvShape.of((1, 3, 9, 9), (8, 3, 7, 7), stride=2, padding=3), {}),
        slow(ConvShape.of((1, 4, 6, 5), (8, 4, 5, 5), padding=2), {"ahead": True}),
        slow(ConvShape.of((2, 4, 7, 7), (8, 4, 3, 3), padding=(0, 1, 2, 1), dilation=2), {"weight": "inline"}),
        slow(ConvShape.of((1, 8, 5, 4), (18, 4, 3, 3), padding=1, groups=2), {"depth": 8}),
        slow(ConvShape.of((2, 4, 9), (8, 4, 4), padding=2, stride=3), {}),
    ],
    ids=str,
)
def test_convolution(shape: ConvShape, others: dict[str, Value]) -> None:
    check(shape, get_strategy("implicit_gemm").candidate({**SMALL, **others}))


@pytest.mark.slow
@given(any_shape())
@examples(10)
def test_any_shape(shape: ConvShape) -> None:
    for others in ({}, {"weight": "inline", "ahead": True}):
        try:
            check(shape, get_strategy("implicit_gemm").candidate({**SMALL, **others}))
        except NotApplicableError:
            assert not _is_found(shape)


def check(shape: ConvShape, candidate: Candidate) -> None:
    errors = []
    for each in (Candidate.of("direct"), candidate):
        program = Program(shape, each, "PYTHON")
        program.load(*inputs(shape, "normal", 0))
        program.poison()
        program.run()
        errors.append(relative(program.output(), convolve(*program.inputs(), shape)))
    assert errors[1] <= bound(shape.dtype, errors[0], Policy())


def normal(*shape: int) -> Tensor:
    values = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    return Tensor(values, device="PYTHON").contiguous().realize()


def image() -> Tensor:
    return normal(1, 4, 5, 6).conv2d(normal(8, 4, 3, 3), normal(8), padding=1)


def updated() -> Tensor:
    """Assigned to what it reads elsewhere."""
    x = normal(1, 8, 5, 6)
    return x.assign(image() + x.flip(2))


def assigned() -> Tensor:
    """To its own input: workgroups must not read what others have stored."""
    x = normal(1, 8, 5, 6)
    return x.assign(x.conv2d(normal(8, 8, 3, 3), padding=1))


def projected() -> Tensor:
    y = image().relu()
    return (y.conv2d(normal(8, 8, 1, 1)) + y).relu()


def after_others() -> Tensor:
    """What comes before it and is read by others too is computed once, and a scalar is read where there is no index."""
    y = (image().relu() + normal(1, 8, 5, 6).max(1, keepdim=True)).contiguous()
    z = (y.conv2d(normal(8, 8, 1, 1)) + y).relu()
    return z.conv2d(normal(8, 8, 3, 3), stride=2) + z.sum()


GRAPHS: dict[str, tuple[int, Callable[[], Tensor]]] = {
    "bias and relu": (1, lambda: image().relu()),
    "residual": (1, lambda: (image() + normal(1, 8, 5, 6)).relu()),  # noqa: PLW0108 - anew each time
    "chain": (2, lambda: (image().relu().conv2d(normal(8, 8, 1, 1)) + normal(1, 8, 5, 6)).relu()),  # noqa: PLW0108 - likewise
    "diamond": (2, projected),
    "three in a row": (3, lambda: image().relu().conv2d(normal(8, 8, 1, 1)).relu().conv2d(normal(8, 8, 3, 3))),
    "after others": (5, after_others),
    "activated input": (1, lambda: (normal(1, 4, 5, 6) * 2).relu().conv2d(normal(8, 4, 2, 2))),
    "joined": (1, lambda: image().cat(normal(1, 8, 5, 6), dim=1).relu()),
    "summed": (2, lambda: image().relu().mean((2, 3))),
    "permuted": (1, lambda: image().permute(0, 2, 3, 1).contiguous()),
    "flattened": (2, lambda: image().reshape(1, 2, 2, 2, 5, 6).permute(0, 1, 4, 2, 5, 3).reshape(1, 2, 10, 12).relu()),
    "padded": (2, lambda: image().pad((1, 1, 1, 1)).contiguous()),
    "pooled input": (2, lambda: normal(1, 4, 8, 8).max_pool2d().conv2d(normal(8, 4, 3, 3), padding=1)),
    "assigned": (2, updated),
    "assigned to its input": (2, assigned),
    "by a variable": (2, lambda: image() * Variable("factor", 1, 8).bind(3)),
}
"""How many kernels it takes, and a graph. What is elementwise of a convolution is computed by its product."""


@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_of_a_graph(name: str, emulated: None) -> None:
    count, build = GRAPHS[name]
    with autotune.forced("implicit_gemm", **SMALL, weight="inline"):
        kernels = list[int]()
        did = counted(lambda: kernels.append(kernel_count(build())))
    assert kernels == [count]
    assert did.applied >= 1


def test_what_comes_before_is_computed_once(emulated: None) -> None:
    """Though its kernel is read by another one, and both by one more: a kernel that is made whole is read as it became,
    with what it reads."""
    candidate = get_strategy("implicit_gemm").candidate({**SMALL, "weight": "inline"})

    def strided(convs: Sequence[Conv], ranges: Ranges) -> list[Lowered | None]:
        return [lower(conv, candidate, ranges) if conv.shape and 2 in conv.shape.stride else None for conv in convs]

    def network() -> Tensor:
        y = image().relu()
        y = (y.conv2d(normal(8, 8, 3, 3), padding=1) + y).relu()
        z = y.conv2d(normal(8, 8, 3, 3), stride=2, padding=1).relu()
        return z.conv2d(normal(8, 8, 3, 3), padding=1) + y.conv2d(normal(8, 8, 1, 1), stride=2)

    expected = network().numpy()
    with seam.attached(strided):
        assert kernel_count(network()) == 5
        assert relative(network().numpy(), expected) < TOLERANCE


def after_many() -> Tensor:
    y = normal(1, 4, 5, 6).conv2d(normal(8, 4, 1, 1))
    for _ in range(9):
        y = y + normal(1, 8, 5, 6) * y.relu()
    return y


def test_no_kernel_has_more_buffers_than_the_device_allows(emulated: None) -> None:
    """tinygrad divides its own kernels, but not one that is in the graph as a call."""
    most = 8
    expected = after_many().numpy()
    with Context(MAX_KERNEL_BUFFERS=most), autotune.forced("implicit_gemm", **SMALL, weight="inline"):
        kernels = [call for call in after_many().linear_with_vars()[0].src if call.src[0].op is Ops.SINK]
        assert max(len(call.src) - 1 for call in kernels) <= most
        assert relative(after_many().numpy(), expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_in_a_graph(name: str, emulated: None) -> None:
    build = GRAPHS[name][1]
    expected = build().numpy()
    for weight in ("inline", "staged"):
        with autotune.forced("implicit_gemm", **SMALL, weight=weight):
            assert relative(build().numpy(), expected) < TOLERANCE


def test_what_is_not_a_number_stays_where_it_is_read(emulated: None) -> None:
    """What pads a block repeats a window, and what pads the sum is zero times zero."""
    x = np.random.default_rng(0).normal(size=(1, 3, 5, 5)).astype(np.float32)
    x[0, 1, 2, 3] = np.nan
    w = normal(5, 3, 3, 3)
    expected = Tensor(x).conv2d(w, stride=2, padding=1).numpy()
    for weight in ("inline", "staged"):
        with autotune.forced("implicit_gemm", **SMALL, weight=weight):
            found = Tensor(x).conv2d(w, stride=2, padding=1).numpy()
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        assert np.isnan(found).any()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_more_parts_than_there_are_chunks(emulated: None) -> None:
    shape = ConvShape.of((1, 8, 4, 4), (8, 8, 1, 1))
    for parts, fits in ((2, True), (4, False)):
        candidate = get_strategy("implicit_gemm").candidate({**SMALL, "parts": parts})
        if fits:
            Program(shape, candidate, "PYTHON", compiled=False)
        else:
            with pytest.raises(NotApplicableError):
                Program(shape, candidate, "PYTHON", compiled=False)


def test_no_shared_memory_no_strategy() -> None:
    with pytest.raises(NotApplicableError):
        Program(ConvShape.of((1, 8, 4, 4), (8, 8, 1, 1)), get_strategy("implicit_gemm").candidate(SMALL), "CPU")


@pytest.mark.parametrize(
    ("dtype", "cout", "groups", "device", "expected"),
    [
        ("float32", 16, 1, "CUDA", True), ("float32", 16, 2, "METAL", True), ("float16", 16, 1, "CUDA", False),
        ("float32", 16, 16, "CUDA", False), ("float32", 4, 1, "CUDA", False), ("float32", 16, 1, "CPU", False),
    ],
)  # fmt: skip
def test_keys_it_is_for(dtype: str, cout: int, groups: int, device: str, expected: bool) -> None:
    shape = ConvShape.of((1, 16, 8, 8), (cout, 16 // groups, 1, 1), groups=groups, dtype=dtype)
    key = ConvKey(shape=shape, device=DeviceSpec(device=device))
    assert get_strategy("implicit_gemm").applies(key) is expected


def test_presets_are_of_the_key() -> None:
    """Few workgroups divide the sum, many do not; what a preset asks for there is, also on METAL."""
    item, device = get_strategy("implicit_gemm"), DeviceSpec(device="CUDA", cores=132)
    shapes = (ConvShape.of((32, 256, 56, 56), (64, 256, 1, 1)), ConvShape.of((1, 2048, 7, 7), (512, 2048, 1, 1)))
    many, few = ([item.bound(c) for c in item.good(ConvKey(shape=shape, device=device))] for shape in shapes)
    assert many[0].parts == 1
    assert few[0].parts > 1
    least = limits_of("METAL").threadgroup_bytes
    for params in (*many, *few):
        assert params.blocking.fault() is None
        assert least is not None
        assert params.blocking.shared_bytes <= least
