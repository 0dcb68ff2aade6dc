"""The strategies on tensor cores, on tinygrad's PYTHON device, which executes NVIDIA's instructions for them anywhere.

In bfloat16, as half needs Python 3.12 there and is the same graph, and in TF32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import examples, kernel_count, on_device, relative, slow
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Device, Tensor, Variable, dtypes
from tinygrad.codegen import full_rewrite_to_sink
from tinygrad.codegen.late.linearizer import linearize
from tinygrad.device import Compiler
from tinygrad.runtime.support import compiler_cuda
from tinygrad.uop.ops import UOp

import autotune
from autotune.reference import convolve, inputs
from autotune.verify import bound
from strategies.candidate import Candidate
from strategies.graph.apply import NotApplicableError
from strategies.graph.gemm import product_store
from strategies.graph.program import Program
from strategies.graph.tensor_matmul import Operand, Tiling, arranged, as_multiplied, tensor_core, tensor_matmul
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.registry import get_strategy
from strategies.shape import ConvShape

TF32 = 8
"""Numbers that an instruction multiplies in TF32, and the group of a tiling for it."""
SMALL = {"cout_block": 32, "window_block": 32, "depth": 16, "couts": 16, "windows": 16}


@pytest.fixture
def nvidia() -> Iterator[None]:
    """tinygrad's PYTHON device with the tensor cores of compute capability 8.0."""
    with on_device("PYTHON::sm_80"):
        yield


@pytest.mark.parametrize(
    ("by", "blocks"),
    [
        (Tiling(rows=16, columns=16, depth=16, warp_rows=16, warp_columns=16), (1, 1, 1, 2)),
        slow(Tiling(rows=32, columns=64, depth=32, warp_rows=16, warp_columns=32), (1, 2, 1, 1)),  # two warps each way
        slow(Tiling(rows=16, columns=32, depth=32, warp_rows=16, warp_columns=16, parts=2), (2, 1, 2, 3)),
        (Tiling(rows=16, columns=16, depth=16, warp_rows=16, warp_columns=16, stages=3), (1, 1, 1, 5)),
        slow(Tiling(rows=16, columns=32, depth=32, warp_rows=16, warp_columns=16, parts=2, stages=4), (1, 1, 1, 2)),
        slow(Tiling(rows=16, columns=16, depth=16, warp_rows=16, warp_columns=16, stages=4), (1, 1, 1, 1)),
        (Tiling(rows=32, columns=32, depth=16, warp_rows=16, warp_columns=32, stages=3, group=TF32), (1, 1, 1, 3)),
        slow(Tiling(rows=16, columns=16, depth=16, warp_rows=16, warp_columns=16, group=TF32), (2, 1, 2, 2)),
        slow(Tiling(rows=16, columns=32, depth=32, warp_rows=16, warp_columns=16, parts=2, group=TF32), (1, 2, 1, 1)),
    ],
    ids=str,
)
def test_matmul(by: Tiling, blocks: tuple[int, int, int, int], nvidia: None) -> None:
    assert by.fault() is None
    batch, m, n, steps = (count * size for count, size in zip(blocks, (1, by.rows, by.columns, 1), strict=True))
    dtype = dtypes.float32 if by.group == TF32 else dtypes.bfloat16
    core, k = tensor_core("PYTHON", dtype, by.group), steps * by.parts * by.depth
    assert core is not None
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, size).astype(np.float32) for size in ((batch, k, m), (batch, k, n)))

    def operand(rows: int) -> Operand:
        def group(item: UOp, step: UOp, index: UOp, row: UOp) -> UOp:
            return (item * (k // by.group) + step * by.groups + index) * rows + row

        return Operand(size=batch * k * rows, group=group)

    c = Tensor.full((by.parts, batch, m, n), float("nan"), device="PYTHON").contiguous().realize()
    left, right = (x.reshape(batch, k // by.group, by.group, -1).transpose(0, 1, 3, 2) for x in (a, b))
    rows, numbers = arranged(*np.indices((m, by.group)), by.item_bytes)
    packed = (left[:, :, rows, numbers].flatten(), right.flatten())
    operands = [Tensor(x, device="PYTHON").cast(dtype).realize() for x in packed]
    store = product_store(by.parts, batch, m, n, dtypes.float32)
    kernel = tensor_matmul(
        batch, m, n, steps, operand(m), operand(n), by, store, core=core, device="PYTHON", name="product"
    )
    result = Tensor.custom_kernel(c, *operands, fxn=lambda *_: kernel)[0]
    np.testing.assert_array_equal(result.numpy().sum(0), np.einsum("bkm,bkn->bmn", a, b))


class Unbuilt(Compiler):
    """In place of NVIDIA's compiler, which is not everywhere: the source is what the test is about."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()


@pytest.mark.parametrize(("stages", "group"), [(2, 16), (3, 16), (5, 16), (2, TF32), (4, TF32)])
def test_copies_in_cuda(stages: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than two stages copies are only started, those of a later step while this one is multiplied; a step has
    one barrier and waits for what was begun longest ago."""
    monkeypatch.setattr(compiler_cuda, "NVRTCCompiler", Unbuilt)
    depth = 2 * group
    by = Tiling(rows=16, columns=32, depth=depth, warp_rows=16, warp_columns=16, stages=stages, group=group)
    with on_device("NULL:CUDA:sm_80"):
        core = tensor_core("NULL", dtypes.float32 if group == TF32 else dtypes.float16, group)
        assert core is not None
        operand = Operand(size=4096, group=lambda _item, step, index, row: (step * 2 + index) * 32 + row)
        store = product_store(1, 1, 16, 32, dtypes.float32)
        kernel = tensor_matmul(1, 16, 32, 8, operand, operand, by, store, core=core, device="NULL", name="product")
        renderer = Device["NULL"].renderer
        source = renderer.render(linearize(full_rewrite_to_sink(kernel, renderer)))
    begin, loop = source[: source.rindex("for (")], source[source.rindex("for (") :]
    parts = [part.count("cp.async.cg") for part in (begin, loop)]
    vectors = 2 * 16 * 2 // by.threads + 2 * 32 * 2 // by.threads
    assert parts == ([0, 0] if stages == 2 else [vectors * (stages - 1), vectors])
    assert loop.count("__syncthreads") == 1
    assert ("m16n8k8.row.col.f32.tf32.tf32.f32" if group == TF32 else "m16n8k16.row.col.f32.f16.f16.f32") in source
    if stages > 2:
        told = [loop.index(word) for word in ("cp.async.cg", "commit_group", "wait_group", "__syncthreads")]
        assert told == sorted(told)
        assert f"wait_group {stages - 2};" in begin
        assert f"wait_group {stages - 2};" in loop


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rows": 24}, "divide"), ({"warp_rows": 8}, "multiple"), ({"depth": 8}, "multiple"),
        ({"rows": 16, "columns": 256, "warp_rows": 16, "warp_columns": 16}, "copying"),
        ({"rows": 256, "columns": 256, "warp_rows": 16, "warp_columns": 16}, "1024"),
    ],
)  # fmt: skip
def test_tilings_that_cannot_be(change: dict[str, int], why: str) -> None:
    fault = Tiling(**{"rows": 32, "columns": 32, "depth": 16, "warp_rows": 16, "warp_columns": 16, **change}).fault()
    assert fault is not None
    assert why in fault


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        (ConvShape.of((1, 8, 4, 3), (8, 8, 2, 2), padding=(0, 1), dtype="bfloat16"), 1),
        slow(ConvShape.of((1, 8, 4, 4), (8, 8, 3, 3), padding=1, dtype="bfloat16"), 1),
        slow(ConvShape.of((1, 16, 6, 6), (20, 16, 3, 3), padding=1, dtype="bfloat16"), 3),
        slow(ConvShape.of((2, 20, 5, 3), (16, 10, 3, 3), padding=(0, 1, 2, 1), groups=2, dtype="bfloat16"), 1),
        slow(ConvShape.of((1, 8, 9, 8), (8, 8, 3, 3), padding=1, stride=2, dtype="bfloat16"), 9),
        slow(ConvShape.of((1, 8, 9, 8), (8, 8, 4, 3), stride=(3, 1), dtype="bfloat16"), 1),
        slow(ConvShape.of((2, 16, 5, 5), (8, 16, 1, 1), dtype="bfloat16"), 1),
        slow(ConvShape.of((1, 8, 9, 8), (8, 8, 1, 1), stride=2, dtype="bfloat16"), 1),
        slow(ConvShape.of((1, 8, 12), (8, 8, 5), padding=2, dilation=2, dtype="bfloat16"), 1),
        (ConvShape.of((1, 8, 4, 3), (8, 8, 2, 2), padding=(0, 1)), 1),
        slow(ConvShape.of((1, 12, 6, 6), (20, 12, 3, 3), padding=1), 3),
        slow(ConvShape.of((2, 20, 5, 3), (16, 10, 3, 3), padding=(0, 1, 2, 1), groups=2), 1),
        slow(ConvShape.of((1, 8, 9, 8), (8, 8, 3, 3), padding=1, stride=2), 9),
    ],
    ids=str,
)
def test_convolution(shape: ConvShape, parts: int, nvidia: None) -> None:
    errors, tf32 = [], shape.dtype == "float32"
    strategy = get_strategy("tensor_cores_tf32" if tf32 else "tensor_cores")
    for candidate in (Candidate.of("direct"), strategy.candidate({**SMALL, "parts": parts})):
        program = Program(shape, candidate, "PYTHON")
        program.load(*inputs(shape, "normal", 0))
        program.poison()
        program.run()
        errors.append(relative(program.output(), convolve(*program.inputs(), shape)))
    assert errors[1] <= bound(shape.dtype, errors[0], Policy(allow_tf32=tf32))
    assert not tf32 or errors[1] > bound(shape.dtype, errors[0], Policy()) / 10  # what it is allowed, it uses
    assert any("WMMA" in str(call.src[0]) for call in program.linear.src)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=1, max_size=8))
@examples(100)
def test_rounding_to_tf32(numbers: list[float]) -> None:
    """To the nearest number with 10 digits after the first, which no other is nearer to; again, it stays."""
    with on_device("PYTHON"):
        once, again = (rounded(rounded(numbers) if twice else numbers) for twice in (False, True))
    given_, bits = np.array(numbers, np.float32), once.view(np.uint32)
    assert not (bits & 0x1FFF).any()
    for step in (-0x2000, 0x2000):
        with np.errstate(over="ignore", invalid="ignore"):
            other = (bits + np.uint32(step % 2**32)).view(np.float32).astype(np.float64)
            here, there = (np.abs(x - given_.astype(np.float64)) for x in (once.astype(np.float64), other))
        assert (np.isinf(once) | ~np.isfinite(other) | (here <= there)).all()
    np.testing.assert_array_equal(once, again)


def test_tf32_of_what_is_no_number() -> None:
    with on_device("PYTHON"):
        found = rounded([float("nan"), float("inf"), -float("inf"), np.uint32(0x7FFFFFFF).view(np.float32)])
    np.testing.assert_array_equal(found, [np.nan, np.inf, -np.inf, np.nan])


def rounded(numbers: Sequence[float] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = Tensor(np.array(numbers, np.float32)).realize()
    found: np.ndarray[Any, Any] = Tensor(as_multiplied(x.uop, dtypes.float32)).numpy()
    return found


def normal(*shape: int) -> Tensor:
    values = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    return Tensor(values, device="PYTHON").cast(dtypes.bfloat16).realize()


def image() -> Tensor:
    return normal(1, 8, 4, 5).conv2d(normal(12, 8, 3, 3), normal(12), padding=1)


def strided() -> Tensor:
    """Its loops are those of what consumes it: padded, they are not its own, and it gets some of its own."""
    return normal(1, 8, 6, 6).conv2d(normal(8, 8, 3, 3), stride=2)


def updated() -> Tensor:
    """Assigned to what it reads elsewhere: its kernel has a CONTIGUOUS in it."""
    x = normal(1, 12, 4, 5)
    return x.assign(image() + x.flip(2))


def diamond(y: Tensor) -> Tensor:
    return (y.conv2d(normal(12, 12, 1, 1)) + y).relu()


GRAPHS: dict[str, tuple[int, Callable[[], Tensor]]] = {
    "bias and relu": (3, lambda: image().relu()),
    "residual": (3, lambda: (image() + normal(1, 12, 4, 5)).relu()),  # noqa: PLW0108 - anew each time
    "chain": (6, lambda: (image().relu().conv2d(normal(12, 12, 1, 1)) + normal(1, 12, 4, 5)).relu()),  # noqa: PLW0108 - likewise
    "diamond": (6, lambda: diamond(image().relu())),
    "three in a row": (9, lambda: image().relu().conv2d(normal(12, 12, 1, 1)).relu().conv2d(normal(8, 12, 1, 1))),
    "wider": (3, lambda: image().float() * 1.5),
    "joined": (3, lambda: image().cat(normal(1, 12, 4, 5), dim=1).relu()),
    "summed": (4, lambda: image().relu().mean((2, 3))),
    "permuted": (3, lambda: image().permute(0, 2, 3, 1).contiguous()),
    "padded": (4, lambda: image().pad((1, 1, 1, 1)).contiguous()),
    "padded, stride 2": (4, lambda: strided().pad((1, 1, 1, 1)).contiguous()),
    "beside a sum": (4, lambda: image() + normal(1, 12, 4, 5, 3).sum(-1)),
    "assigned": (4, updated),
    "by a variable": (4, lambda: image() * Variable("factor", 1, 8).bind(3)),
}
"""How many kernels it takes, and a graph. What is elementwise of a convolution is computed by its product."""


@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_of_a_graph(name: str, nvidia: None) -> None:
    count, build = GRAPHS[name]
    with autotune.forced("tensor_cores", **SMALL):
        assert kernel_count(build()) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_in_a_graph(name: str, nvidia: None) -> None:
    build = GRAPHS[name][1]
    expected = build().float().numpy()
    with autotune.forced("tensor_cores", **SMALL):
        found = build().float().numpy()
    roundings = 2 if name == "three in a row" else 1  # to bfloat16, of what others are computed from; more or less
    assert relative(found, expected) < 2**-7 * roundings


@pytest.mark.parametrize(
    ("change", "parts"),
    [({"dtype": "float32"}, 1), ({"dilation": 2, "stride": 2, "dtype": "bfloat16"}, 1), ({"dtype": "bfloat16"}, 4)],
)
def test_what_it_is_not_for(change: dict[str, object], parts: int, nvidia: None) -> None:
    shape = ConvShape.of((1, 8, 9, 9), (8, 8, 3, 3), **change)
    with pytest.raises(NotApplicableError):
        Program(shape, get_strategy("tensor_cores").candidate({**SMALL, "parts": parts}), "PYTHON", compiled=False)


def test_more_stages_than_there_is_shared_memory_for(nvidia: None) -> None:
    shape = ConvShape.of((1, 128, 16, 16), (128, 128, 1, 1), dtype="bfloat16")
    for stages, fits in ((3, True), (4, False)):
        candidate = get_strategy("tensor_cores").candidate({"stages": stages})
        with nullcontext() if fits else pytest.raises(NotApplicableError):
            Program(shape, candidate, "PYTHON", compiled=False)


def test_more_windows_than_a_grid_has_room_for(nvidia: None) -> None:
    """Scheduled only: what could be computed would be too large for a launch."""
    candidate = get_strategy("tensor_cores").candidate({**SMALL, "parts": 1})
    columns = SMALL["window_block"]
    height = 65536 * columns // 1024
    for rows, fits in ((height - 2 * columns, True), (height, False)):
        shape = ConvShape.of((1, 8, rows, 1024), (8, 8, 1, 1), dtype="bfloat16")
        with nullcontext() if fits else pytest.raises(NotApplicableError):
            Program(shape, candidate, "PYTHON", compiled=False)


def test_no_tensor_cores_no_strategy() -> None:
    shape = ConvShape.of((1, 8, 4, 4), (8, 8, 3, 3), padding=1, dtype="bfloat16")
    with pytest.raises(NotApplicableError):
        Program(shape, get_strategy("tensor_cores").candidate(SMALL), "PYTHON", compiled=False)


@pytest.mark.parametrize(
    ("dtype", "channels", "device", "expected"),
    [
        ("float16", 16, "CUDA", "tensor_cores"), ("bfloat16", 16, "CUDA", "tensor_cores"),
        ("float32", 16, "CUDA", "tensor_cores_tf32"), ("float32", 16, "METAL", None),
        ("float16", 4, "CUDA", None), ("float32", 4, "CUDA", None), ("float16", 16, "CPU", None),
    ],
)  # fmt: skip
def test_keys_they_are_for(dtype: str, channels: int, device: str, expected: str | None) -> None:
    """float32 only where the caller allows TF32."""
    shape = ConvShape.of((1, channels, 8, 8), (16, channels, 3, 3), padding=1, dtype=dtype)
    key = ConvKey(shape=shape, device=DeviceSpec(device=device), policy=Policy(allow_tf32=True))
    names = ("tensor_cores", "tensor_cores_tf32")
    assert [name for name in names if get_strategy(name).applies(key)] == [name for name in names if name == expected]
    assert not get_strategy("tensor_cores_tf32").applies(replace(key, policy=Policy()))


@pytest.mark.parametrize(("name", "dtype"), [("tensor_cores", "float16"), ("tensor_cores_tf32", "float32")])
def test_presets_are_of_the_key(name: str, dtype: str) -> None:
    """Few workgroups divide the sum, many do not; what a preset asks for there is."""
    item, device = get_strategy(name), DeviceSpec(device="CUDA", cores=132)
    shapes = (ConvShape.of((n, 256, h, h), (256, 256, 3, 3), padding=1, dtype=dtype) for n, h in ((8, 56), (1, 14)))
    many, few = ([item.bound(c) for c in item.good(ConvKey(shape=shape, device=device))] for shape in shapes)
    assert many[0].parts == 1
    assert few[0].parts > 1
    for params in (*many, *few):
        assert params.tiling.fault() is None
        assert 9 * 256 // params.depth % params.parts == 0
