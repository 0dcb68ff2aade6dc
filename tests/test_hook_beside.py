"""The hook next to what else a program may use: WINO, half precision, kernels of its own, BEAM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, counted, relative
from hooked import (
    ROOT,
    SHAPE,
    W,
    X,
    conv,
    count,
    put_back,  # noqa: F401 - fixtures
)
from tinygrad import Tensor, UOp, dtypes
from tinygrad.helpers import Context
from tinygrad.uop.ops import KernelInfo

import autotune


def test_the_users_own_winograd() -> None:
    with Context(WINO=1, NOOPT=1):
        expected = conv().numpy()
        with autotune.forced("single_fused"):
            did = counted(count)
            assert np.array_equal(conv().numpy(), expected)
        assert did.applied == 0


def test_half_next_to_it() -> None:
    x, w = X.cast(dtypes.float16), W.cast(dtypes.float16)
    with Context(NOOPT=1):
        expected = x.conv2d(w, padding=1).relu().numpy()
        with autotune.forced("hybrid_grid"):
            found = x.conv2d(w, padding=1).relu().numpy()
    assert found.dtype == np.float16
    assert relative(found.astype(np.float64), expected.astype(np.float64)) < 1e-3


def test_a_kernel_of_the_users_own_next_to_it() -> None:
    def twice(out: UOp, a: UOp) -> UOp:
        i = UOp.range(a.numel(), 0)
        doubled: UOp = out.flatten()[i].store(a.flatten()[i] * 2).end(i).sink(arg=KernelInfo(name="twice"))
        return doubled

    def run() -> Tensor:
        out = Tensor.empty(*SHAPE.output_shape)
        return Tensor.custom_kernel(out, conv().contiguous(), fxn=twice)[0].conv2d(W)

    with Context(NOOPT=1):
        expected = (conv() * 2).contiguous().conv2d(W).numpy()
        assert relative(run().numpy(), expected) < 1e-4
        with autotune.forced("four_buffer"):
            found: list[Array] = []
            did = counted(lambda: found.append(run().numpy()))
    assert did.applied == 2
    assert relative(found[0], expected) < 1e-4


@pytest.mark.slow
def test_beam_next_to_it(tmp_path: Path) -> None:
    """A user's BEAM goes on searching, over our kernels too."""
    environment = {
        **os.environ,
        "CACHEDB": str(tmp_path / "cache.db"),
        "BEAM": "1",
        "DEV": "CPU",
        "PARALLEL": "0",
        "PYTHONPATH": str(ROOT),
    }
    program = """
import numpy as np, autotune
from autotune.compiler import ensure_c_compiler
ensure_c_compiler()
if __name__ == "__main__":
    from tinygrad import Tensor
    Tensor.manual_seed(0)
    x, w = Tensor.randn(1, 2, 6, 6).realize(), Tensor.randn(2, 2, 3, 3).realize()
    y = x.conv2d(w).numpy()
    with autotune.forced("inline_transforms"):
        z = x.conv2d(w).relu().numpy()
    assert abs(np.maximum(y, 0) - z).max() < 1e-4, (y, z)
    print(autotune.stats().applied)
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
