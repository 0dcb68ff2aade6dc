"""What a device allows a kernel: checked when it is rendered, before its compiler sees it, and when it is loaded and
given memory, before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tinygrad import Device
from tinygrad.device import Buffer
from tinygrad.dtype import AddrSpace
from tinygrad.engine.realize import get_call_arg_uops, get_runtime
from tinygrad.uop.ops import Ops, UOp


class KernelLimitError(RuntimeError):
    """A kernel beyond what its device allows. The message names the kernel and the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one kernel. None: not known, or nothing that could be reached.

    `parameters` counts buffers and variables, `threads` those of a threadgroup (a CUDA block), `threadgroup_bytes` the
    memory they share. `source_bytes` and `register_bytes`, the arrays that every thread holds for itself, are budgets
    of ours and far beyond what can be fast: a compiler that is given more can take minutes or worse.
    """

    parameters: int | None = None
    threads: int | None = None
    threadgroup_bytes: int | None = None
    source_bytes: int = 1 << 20
    register_bytes: int = 16 << 10


# Apple, Metal Feature Set Tables, Apple7 and later: buffers in the argument table, threads per threadgroup, threadgroup
# memory. tinygrad splits kernels by their buffers alone, but variables take a place in the table too.
_METAL = Limits(parameters=31, threads=1024, threadgroup_bytes=32 << 10)
# CUDA C++ Programming Guide, table of compute capabilities: threads per block, static shared memory per block.
_CUDA = Limits(threads=1024, threadgroup_bytes=48 << 10)
_BY_DEVICE = {"METAL": _METAL, "CUDA": _CUDA, "NV": _CUDA}


def limits_of(device: str) -> Limits:
    """What is known of a device as tinygrad names it; budgets alone where that is nothing."""
    return _BY_DEVICE.get(device.partition(":")[0], Limits())


@contextmanager
def limited(device: str) -> Iterator[None]:
    """Within the block, rendering a kernel for `device` raises KernelLimitError if it is beyond the device's limits.

    tinygrad lowers, renders and compiles in one go, in this process if its PARALLEL is 0; rendering is where all that
    matters is known and nothing was spent on the kernel's compiler.
    """
    with checking(Device[device].renderer, device):
        yield


@contextmanager
def checking(renderer: Any, device: str) -> Iterator[None]:
    """The same for one renderer, without opening the device that it renders for."""
    before = vars(renderer).get("render")
    renderer.render = _checked(renderer.render, device, limits_of(device))  # the instance's, in front of its class's
    try:
        yield
    finally:
        if before is None:
            del renderer.render
        else:
            renderer.render = before


def load(linear: UOp) -> None:
    """Create what runs each kernel of a compiled graph, as its first run would: a driver that refuses one does it here.

    Raises what the driver raises, and KernelLimitError for a threadgroup larger than the loaded kernel allows: Metal
    allows less than 1024 threads to kernels that need many registers, and tinygrad's graphs do not ask.
    """
    for call in linear.src:
        program = call.src[0]
        devices = call.src[1].device if program.op is Ops.PROGRAM else ()
        for device in (devices,) if isinstance(devices, str) else devices or ():
            allowed = getattr(get_runtime(device, program), "max_total_threads", None)
            sizes = [size for size in program.arg.local_size or () if isinstance(size, int)]
            if allowed is not None and math.prod(sizes) > allowed:
                raise KernelLimitError(
                    f"{program.arg.function_name} has {math.prod(sizes)} threads per threadgroup, {device} allows "
                    f"this kernel {allowed}"
                )


def allocate(linear: UOp) -> None:
    """Give every kernel of a compiled graph its memory, as its first run would. Where there is none, gives all back and
    raises MemoryError, or whatever the device raises."""
    mine: list[Buffer] = []
    try:
        for buffer in _buffers(linear):
            if not buffer.is_initialized():
                buffer.allocate()
                mine.append(buffer)
    except Exception:
        for buffer in reversed(mine):
            buffer.deallocate()
        raise


def _buffers(linear: UOp) -> Iterator[Buffer]:
    """Those that the kernels are given."""
    for call in linear.src:
        if call.src[0].op is Ops.PROGRAM:
            for found in (u.buffer for u in get_call_arg_uops(call)):
                for buffer in (found,) if isinstance(found, Buffer) else found.bufs:
                    yield from (buffer.base, buffer)  # one that is a part of another is given its memory after that


def _checked(render: Callable[[Sequence[UOp]], str], device: str, limits: Limits) -> Callable[[Sequence[UOp]], str]:
    def checked(uops: Sequence[UOp]) -> str:
        _expect(uops, _sizes(uops), device, limits)
        source = render(uops)
        _expect(uops, {"source_bytes": len(source)}, device, limits)
        return source

    return checked


_WORDS = {
    "parameters": "buffers and variables", "threads": "threads per threadgroup",
    "threadgroup_bytes": "bytes of threadgroup memory", "register_bytes": "bytes of arrays per thread",
    "source_bytes": "bytes of source",
}  # fmt: skip


def _expect(uops: Sequence[UOp], sizes: dict[str, int], device: str, limits: Limits) -> None:
    for name, size in sizes.items():
        allowed = getattr(limits, name)
        if allowed is not None and size > allowed:
            kernel = next((u.arg.function_name for u in uops if u.op is Ops.SINK and u.arg is not None), "a kernel")
            raise KernelLimitError(f"{kernel} has {size} {_WORDS[name]}, {device} allows {allowed}")


def _sizes(uops: Sequence[UOp]) -> dict[str, int]:
    """What a lowered kernel asks for, by the names in Limits."""
    local = [int(u.src[0].vmax) for u in uops if u.op is Ops.SPECIAL and u.arg.startswith("l")]
    return {
        "parameters": sum(u.op is Ops.PARAM for u in uops),
        "threads": math.prod(local),
        "threadgroup_bytes": _bytes(uops, AddrSpace.LOCAL),
        "register_bytes": _bytes(uops, AddrSpace.REG),
    }


def _bytes(uops: Sequence[UOp], space: AddrSpace) -> int:
    return sum(u.max_numel() * u.dtype.itemsize for u in uops if u.op is Ops.BUFFER and u.addrspace is space)
