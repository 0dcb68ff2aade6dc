"""What tests of the lowerings share: inputs, how many kernels a graph takes, and how much Hypothesis tries.

AUTOTUNE_EXAMPLES=20 runs each Hypothesis test of these files on 20 times the examples, and on others each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, dtypes
from tinygrad.engine.realize import compile_linear
from tinygrad.helpers import DEV, db_connection
from tinygrad.uop.ops import Ops

import autotune
from strategies.candidate import Candidate
from strategies.graph.program import CompiledKernel, _kernel
from strategies.registry import get_strategy, strategies
from strategies.shape import DTYPES, ConvShape, ShapeError

Array = np.ndarray[Any, Any]

DEV.value = "CPU"
"""Whatever else this machine has: these tests are of graphs and of what is computed, not of devices."""


def slow(*values: object) -> object:
    """A case of a parametrized test that runs with --slow alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """tinygrad's choice of device within a block; `PYTHON::sm_80` is its emulation of one with tensor cores."""
    before, DEV.value = DEV.value, name
    try:
        yield
    finally:
        DEV.value = before


db_connection()  # tinygrad's cache of compiled kernels belongs to the thread that opens it: to this one
Device["CPU"]  # and opening a device compiles: no thread of a test is the first that needs it

FACTOR = int(os.environ.get("AUTOTUNE_EXAMPLES", "1"))
FOR_GPUS = frozenset({"shared_memory", "tensor_cores", "tensor_cores_tf32", "implicit_gemm"})
WINOGRAD = tuple(
    item.name for item in strategies() if item.lower is not None and item.name not in FOR_GPUS | {"im2col"}
)
"""Those that any device can run; test_shared_memory.py, test_tensor_cores.py and test_implicit_gemm.py have those for
GPUs, test_im2col.py the one for CPUs that is for convolutions of any kind."""
TOLERANCE = 1e-4
"""float32 against float32, relative to the largest value: the ceiling of the verification bound."""


def examples(count: int) -> settings:
    return settings(
        max_examples=count * FACTOR, deadline=None, derandomize=FACTOR == 1, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> Tensor:
    """A realized tensor of its own."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Tensor(values).cast(getattr(dtypes, dtype)).contiguous().realize()


def kernel_count(y: Tensor) -> int:
    """Kernels that computing `y` takes; nothing is compiled."""
    return sum(call.src[0].op is Ops.SINK for call in y.linear_with_vars()[0].src)


def kernels(y: Tensor) -> list[CompiledKernel]:
    """The kernels that computing `y` takes, compiled, in order."""
    return [_kernel(call, "") for call in compile_linear(y.schedule_linear()).src if call.src[0].op is Ops.PROGRAM]


def relative(found: Array, expected: Array) -> float:
    """max|found - expected| / max|expected|, infinite where one of them is not finite."""
    if found.size == 0:
        return 0.0
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def counted(run: Callable[[], object]) -> autotune.Stats:
    """What the hook did within `run`."""
    before = autotune.stats()
    run()
    after = autotune.stats()
    names = [f.name for f in fields(autotune.Stats)]
    return autotune.Stats(**{name: getattr(after, name) - getattr(before, name) for name in names})


@st.composite
def conv_shapes(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> ConvShape:
    """Shapes that some Winograd applies to: 1-D and 2-D, batches, groups, depthwise, odd, tiny, padded per side."""
    dims = draw(st.sampled_from((2, 2, 1)))
    along = draw(st.integers(0, dims - 1))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    few = st.integers(1, 3)
    side = st.tuples(st.integers(0, 2), st.integers(0, 2))
    kernel = tuple(3 if axis == along else draw(st.sampled_from((3, 3, 1, 2, 5))) for axis in range(dims))
    spatial = [draw(st.integers(1, 9)) for _ in range(dims)]
    padding = [draw(side) for _ in range(dims)]
    for axis, taps in enumerate(kernel):
        least = taps + 1 if axis == along else taps
        spatial[axis] = max(spatial[axis], least - sum(padding[axis]))
    try:
        return ConvShape(
            batch=draw(few), cin=groups * draw(few), cout=groups * draw(few), groups=groups, spatial=tuple(spatial),
            kernel=kernel, padding=tuple(padding), dtype=draw(st.sampled_from(dtypes)),
        )  # fmt: skip
    except ShapeError as error:  # the numbers above always make a convolution
        raise AssertionError(str(error)) from error


@st.composite
def candidates(draw: st.DrawFn, names: tuple[str, ...] = WINOGRAD) -> Candidate:
    """Any strategy with any of its parameters."""
    item = get_strategy(draw(st.sampled_from(names)))
    return item.candidate({p.name: draw(st.sampled_from(p.choices)) for p in item.parameters})
