"""The strategy for GPUs, on tinygrad's PYTHON device: it executes workgroups, shared memory and barriers anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from graphs import TOLERANCE, counted, on_device, relative, slow
from test_winowrite import GRAPHS, TENSORS
from tinygrad import Tensor

import autotune
from autotune.reference import convolve, inputs
from autotune.verify import bound
from strategies.candidate import Candidate, Value
from strategies.graph.apply import NotApplicableError
from strategies.graph.matmul import Blocking, matmul
from strategies.graph.program import Program
from strategies.key import Policy
from strategies.registry import get_strategy
from strategies.shape import ConvShape

SMALL = {"cout_block": 16, "tile_block": 32, "couts": 4, "tiles": 4, "depth": 4}


@pytest.fixture
def emulated() -> Iterator[None]:
    with on_device("PYTHON"):
        yield


BLOCKINGS = [
    Blocking(rows=16, columns=32, depth=4, thread_rows=4, thread_columns=4),
    Blocking(rows=32, columns=64, depth=4, thread_rows=4, thread_columns=4),  # two warps down, two across
    Blocking(rows=16, columns=32, depth=4, thread_rows=4, thread_columns=4, ahead=True, parts=2),
]
BLOCKS = [(2, 1, 2, 3), (1, 1, 1, 1), (2, 1, 2, 6)]


@pytest.mark.parametrize(("by", "blocks"), list(zip(BLOCKINGS, BLOCKS, strict=True)), ids=str)
def test_matmul(by: Blocking, blocks: tuple[int, int, int, int]) -> None:
    assert by.fault() is None
    batch, m, n, k = (count * size for count, size in zip(blocks, (1, by.rows, by.columns, by.depth), strict=True))
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, size).astype(np.float32) for size in ((batch, k, m), (batch, k, n)))
    c = Tensor.full((by.parts, batch, m, n), float("nan"), device="PYTHON").contiguous().realize()
    operands = [Tensor(x, device="PYTHON") for x in (a, b)]
    result = Tensor.custom_kernel(c, *operands, fxn=lambda *_: matmul(batch, m, n, k, by))[0]
    np.testing.assert_array_equal(result.numpy().sum(0), np.einsum("bkm,bkn->bmn", a, b))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rows": 24}, "warps"), ({"columns": 48}, "warps"), ({"depth": 1}, "copying"),
        ({"rows": 512, "columns": 256, "depth": 64}, "1024"),
    ],
)  # fmt: skip
def test_blockings_that_cannot_be(change: dict[str, int], why: str) -> None:
    fault = Blocking(**{"rows": 16, "columns": 32, "depth": 4, "thread_rows": 4, "thread_columns": 4, **change}).fault()
    assert fault is not None
    assert why in fault


@pytest.mark.parametrize(
    ("shape", "tile", "others"),
    [
        (ConvShape.of((1, 4, 4, 4), (5, 4, 3, 3), padding=1), 4, {}),
        (ConvShape.of((2, 8, 5, 3), (6, 4, 3, 3), padding=(0, 1, 2, 1), groups=2), 2, {"output": "staged"}),
        (ConvShape.of((2, 16, 9), (4, 16, 3), padding=(1, 2)), 6, {"ahead": True, "parts": 2}),
        slow(ConvShape.of((1, 4, 6, 6), (4, 4, 3, 3), padding=1, dtype="float16"), 4, {"output": "staged"}),
    ],
    ids=str,
)
def test_convolution(shape: ConvShape, tile: int, others: dict[str, Value]) -> None:
    errors = []
    for candidate in (Candidate.of("direct"), get_strategy("shared_memory").candidate(
        {**SMALL, "tile": tile, **others}
    )):  # fmt: skip
        program = Program(shape, candidate, "PYTHON")
        program.load(*inputs(shape, "normal", 0))
        program.poison()
        program.run()
        errors.append(relative(program.output(), convolve(*program.inputs(), shape)))
    assert errors[1] <= bound(shape.dtype, errors[0], Policy())


@pytest.mark.parametrize("name", ["pooled", *map(slow, ("reduced", "output permuted", "shared input", "diamond"))])
def test_in_a_graph(name: str, emulated: None) -> None:
    """The kernel that consumes the convolution is spread over threads: whatever it is, and whatever reads it."""
    tensors = [t.to("PYTHON").realize() for t in TENSORS]
    expected, found = GRAPHS[name][1](*TENSORS).numpy(), []
    with autotune.forced("shared_memory", **SMALL):
        did = counted(lambda: found.append(GRAPHS[name][1](*tensors).numpy()))
    assert (did.applied, did.fallbacks) == (GRAPHS[name][0], 0)
    assert relative(found[0], expected) < TOLERANCE


def test_no_shared_memory_no_strategy() -> None:
    shape = ConvShape.of((1, 4, 8, 8), (5, 4, 3, 3), padding=1)
    with pytest.raises(NotApplicableError):
        Program(shape, get_strategy("shared_memory").candidate(SMALL), "CPU")


def test_channels_that_do_not_divide_into_chunks() -> None:
    shape = ConvShape.of((1, 6, 8, 8), (5, 6, 3, 3), padding=1)
    with pytest.raises(NotApplicableError):
        Program(shape, get_strategy("shared_memory").candidate(SMALL), "PYTHON")


def test_more_groups_than_a_grid_has_room_for(emulated: None) -> None:
    """Scheduled only. Each point of each group is a product of its own: 16 of 4,096 groups are one too many."""
    candidate = get_strategy("shared_memory").candidate({**SMALL, "tile": 2})
    for groups, fits in ((4095, True), (4096, False)):
        shape = ConvShape.of((1, 4 * groups, 4, 4), (16 * groups, 4, 3, 3), padding=1, groups=groups)
        with nullcontext() if fits else pytest.raises(NotApplicableError):
            Program(shape, candidate, "PYTHON", compiled=False)
