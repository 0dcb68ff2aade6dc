"""One kernel of Metal source executed on arrays, without tinygrad."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np

from metal.compiler import compile_kernel
from metal.runtime import Allocation, Bound, Loaded, Size
from metal.source import describe

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
POSITIONS = "uint3 gid [[threadgroup_position_in_grid]], uint3 lid [[thread_position_in_threadgroup]]"


def execute(
    source: str, buffers: Mapping[str, np.ndarray], *, written: tuple[str, ...] = (), grid: Size = (1, 1, 1),
    local: Size = (1, 1, 1), variables: tuple[int, ...] = (), order: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What `buffers`, in the order of the kernel's parameters, hold afterwards. Those named in `written` hold their
    array before; the others were never written. Raises KernelFaultError."""
    loaded = Loaded(compile_kernel(source), describe(source), order)
    bound = {}
    for name, array in buffers.items():
        allocation = Allocation(array.nbytes)
        if name in written:
            allocation.host()[:] = memoryview(np.ascontiguousarray(array)).cast("B")
        bound[name] = Bound(allocation=allocation, offset=0, size=array.nbytes, element=array.itemsize)
    loaded.run(list(bound.values()), [ctypes.c_int32(v) for v in variables], grid, local)
    return {
        name: np.frombuffer(bytes(bound[name].allocation.host()), array.dtype).reshape(array.shape)
        for name, array in buffers.items()
    }
