"""What tinygrad finds as `tinygrad.runtime.ops_metal` where the stand-in is installed: the names of the real module.

The renderer is tinygrad's own, unmodified. Only what talks to Apple's libraries is replaced.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from typing import Any

from tinygrad.device import Compiled, CompileError, Compiler, LRUAllocator, Program
from tinygrad.dtype import DType
from tinygrad.engine.jit import GraphRunner
from tinygrad.helpers import prod
from tinygrad.renderer.cstyle import MetalRenderer

from metal.compiler import MetalSourceError, compile_kernel
from metal.runtime import Allocation, Bound, Loaded
from metal.source import describe

NAME = "Apple stand-in"
MAX_THREADGROUP_BYTES = 32 << 10

plant: Callable[[str], str] = lambda source: source  # noqa: E731 - tests put a fault into what is compiled
"""Applied to every source before it is compiled."""


def setting(name: str, default: str = "") -> str:
    """One of the stand-in's settings, read each time: `METAL_STAND_IN_<NAME>`.

    ARCH: the GPU family. ORDER: of threads (see Loaded). REFUSE: `compile:REGEX` or `pipeline:REGEX`, kernels whose
    source it matches are refused there. THREADS: how many a threadgroup may have. VIRTUAL=1: a virtual machine.
    """
    return os.environ.get(f"METAL_STAND_IN_{name}", default)


def from_ns_str(text: str) -> str:
    return text


class SystemDevice:
    """As much of an MTLDevice as anyone asks for."""

    def name(self) -> str:
        return "Apple Paravirtual device" if setting("VIRTUAL") else NAME


class MetalCompiler(Compiler):
    def __init__(self) -> None:
        super().__init__(None)  # never cached: what is planted and what is refused is no part of the source

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (MetalCompiler, ())

    def compile(self, src: str) -> bytes:
        if _refused("compile", src):
            raise CompileError("program_source:1:1: error: refused, as the test asked for")
        src = plant(src)
        try:
            library = compile_kernel(src)
        except MetalSourceError as error:
            raise CompileError(str(error)) from None
        text = src.encode()
        return len(text).to_bytes(8, "little") + text + library


class MetalBuffer:
    def __init__(self, buf: Allocation, size: int, offset: int = 0) -> None:
        self.buf, self.size, self.offset = buf, size, offset


class MetalAllocator(LRUAllocator):
    def _alloc(self, size: int, options: Any) -> MetalBuffer:
        if options.external_ptr:
            raise NotImplementedError("the stand-in watches its own memory only")
        return MetalBuffer(Allocation(size), size)

    def _free(self, opaque: MetalBuffer, options: Any) -> None:
        opaque.buf.free()

    def free(self, opaque: MetalBuffer, size: int, options: Any = None) -> None:
        opaque.buf.forget()  # before it is kept for reuse
        super().free(opaque, size, options)

    def _as_buffer(self, src: MetalBuffer) -> memoryview:
        return src.buf.host()[src.offset : src.offset + src.size]

    def _copyin(self, dest: MetalBuffer, src: memoryview) -> None:
        self._as_buffer(dest)[:] = src.cast("B")

    def _copyout(self, dest: memoryview, src: MetalBuffer) -> None:
        dest.cast("B")[:] = self._as_buffer(src)

    def _transfer(self, dest: MetalBuffer, src: MetalBuffer, sz: int, src_dev: Any, dest_dev: Any) -> None:
        self._as_buffer(dest)[:sz] = self._as_buffer(src)[:sz]

    def _offset(self, buf: MetalBuffer, size: int, offset: int) -> MetalBuffer:
        return MetalBuffer(buf.buf, size, buf.offset + offset)


class MetalProgram(Program):
    def __init__(self, dev: MetalDevice, obj: Any) -> None:
        self.dev, self.name, self.signature = dev, obj.name, obj.signature
        length = int.from_bytes(obj.lib[:8], "little")
        source, library = obj.lib[8 : 8 + length].decode(), obj.lib[8 + length :]
        kernel = describe(source)
        if _refused("pipeline", source):
            raise RuntimeError("Compiler encountered an internal error, as the test asked for")
        needed = sum(size for _, size in kernel.arrays)
        if needed > MAX_THREADGROUP_BYTES:
            raise RuntimeError(
                f"Threadgroup memory size ({needed}) exceeds the maximum threadgroup memory allowed "
                f"({MAX_THREADGROUP_BYTES})"
            )
        self.max_total_threads = int(setting("THREADS", "1024"))
        self._loaded = Loaded(library, kernel)

    def __call__(
        self, *bufs: MetalBuffer, global_size: tuple[int, int, int] = (1, 1, 1),
        local_size: tuple[int, int, int] = (1, 1, 1), vals: tuple[int, ...] = (), wait: bool = False, **_: Any,
    ) -> float | None:  # fmt: skip
        if prod(local_size) > self.max_total_threads:
            raise RuntimeError(f"local size {local_size} bigger than {self.max_total_threads}")
        dtypes: list[DType] = [dtype for _, _, dtype, _ in self.signature]
        bound = [
            Bound(allocation=b.buf, offset=b.offset, size=b.size, element=dtype.itemsize)
            for b, dtype in zip(bufs, dtypes, strict=False)
        ]
        variables = [
            getattr(ctypes, f"c_int{dtype.itemsize * 8}")(value)
            for value, dtype in zip(vals, dtypes[len(bufs) :], strict=True)
        ]
        self._loaded.order = int(setting("ORDER", "0"))
        begun = time.perf_counter()
        self._loaded.run(bound, variables, _triple(global_size), _triple(local_size))
        return time.perf_counter() - begun if wait else None


class MetalGraph(GraphRunner):
    """The calls one after the other, as METAL's indirect command buffer has a barrier between any two."""

    def __call__(self, input_uops: Any, var_vals: dict[str, int], wait: bool = False) -> float | None:
        begun = time.perf_counter()
        dims = {j: (groups, threads) for j, groups, threads in self.updated_launch_dims(var_vals)}
        for j, ((_, program, bufs, device_vars), runtime) in enumerate(zip(self.calls, self.runtimes, strict=True)):
            held = list(bufs)
            for position, index in self.uop_replace[j]:
                held[position] = input_uops[index].buffer
            base = program.arg.launch_dims(dict.fromkeys(self.vars, 0))
            chosen = dims.get(j, base)
            runtime(
                *[b.ensure_allocated()._buf for b in (held[i] for i in program.arg.globals)],
                global_size=chosen[0], local_size=chosen[1], vals=program.arg.vals({**var_vals, **device_vars}),
            )  # fmt: skip
        return time.perf_counter() - begun if wait else None


class MetalDevice(Compiled):
    simulated = "the METAL stand-in of the tests"
    """What tells this from a GPU: see strategies/graph/device.py."""

    def __init__(self, device: str) -> None:
        self.sysdevice = SystemDevice()
        graph = None if "virtual" in from_ns_str(self.sysdevice.name()).lower() else MetalGraph
        super().__init__(
            device, MetalAllocator(self), [MetalRenderer], MetalProgram, graph, arch=setting("ARCH", "Apple9")
        )


def _refused(stage: str, source: str) -> bool:
    where, _, pattern = setting("REFUSE").partition(":")
    return where == stage and re.search(pattern, source) is not None


def _triple(size: tuple[int, ...]) -> tuple[int, int, int]:
    if len(size) != 3 or any(int(s) != s or s < 1 for s in size):
        raise RuntimeError(f"expected a size of three whole numbers, found {size}")
    return (int(size[0]), int(size[1]), int(size[2]))
