"""Memory of the stand-in, and the dispatch of a compiled kernel: what is at fault there is raised, in words."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metal.compiler import runtime_library
from metal.source import Kernel

Size = tuple[int, int, int]


class KernelFaultError(RuntimeError):
    """A kernel did what Metal does not define: it was stopped there. One line: who did what, and against whom."""


class _Region(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p), ("size", ctypes.c_uint64), ("written", ctypes.c_void_p), ("cells", ctypes.c_void_p),
        ("element", ctypes.c_uint32), ("shared", ctypes.c_uint32),
    )  # fmt: skip


class _Fault(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("kind", "region", "size", "write", "other", "line", "other_line")),
        ("group", ctypes.c_uint32 * 3), ("thread", ctypes.c_uint32 * 3), ("offset", ctypes.c_int64),
    )  # fmt: skip


OUT_OF_BOUNDS, MISALIGNED, UNINITIALISED, RACE, BARRIER, SIMDGROUP, REGISTERS, ARRAYS = range(1, 9)
SEVERAL = 2**32 - 1
POISON = 0xFF
"""NaN in every floating-point type."""


@functools.cache
def _library() -> ctypes.CDLL:
    library = _opened(runtime_library(), ctypes.RTLD_GLOBAL)  # kernels find what clang calls before each access
    library.stand_in_allocate.restype = ctypes.c_void_p
    library.stand_in_run.restype = ctypes.POINTER(_Fault)
    return library


def _opened(library: bytes, mode: int) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="metal-stand-in-") as directory:
        path = Path(directory) / "k.so"
        path.write_bytes(library)
        return ctypes.CDLL(str(path), mode=mode)


class Allocation:
    """Device memory, NaN until it is written. `written` holds for each byte whether it was."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = _library().stand_in_allocate(ctypes.c_uint64(size))
        if not self.address:
            raise MemoryError(f"Metal OOM while allocating size={size}")
        self.written = (ctypes.c_uint8 * size)()
        self.forget()

    def forget(self) -> None:
        """As if newly allocated."""
        ctypes.memset(self.address, POISON, self.size)
        ctypes.memset(self.written, 0, self.size)

    def host(self) -> memoryview:
        """The bytes, which the host may now write."""
        ctypes.memset(self.written, 1, self.size)
        return memoryview((ctypes.c_uint8 * self.size).from_address(self.address)).cast("B")

    def free(self) -> None:
        """Give it back: whoever still touches it dies."""
        _library().stand_in_free(ctypes.c_void_p(self.address), ctypes.c_uint64(self.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A buffer bound to a parameter: `size` bytes at `offset`, elements of `element` bytes."""

    allocation: Allocation
    offset: int
    size: int
    element: int


@dataclass(slots=True)
class Loaded:
    """A kernel ready to be dispatched. `order`: of its threads, 0 as numbered, 1 reversed, else a random seed."""

    library: bytes
    kernel: Kernel
    order: int = 0
    _entry: Any = field(init=False)

    def __post_init__(self) -> None:
        _library()
        self._entry = _opened(self.library, ctypes.RTLD_LOCAL).stand_in_entry

    def run(self, buffers: Sequence[Bound], variables: Sequence[Any], grid: Size, local: Size) -> None:
        """Execute it over the grid of threadgroups. Raises KernelFaultError."""
        regions = (_Region * len(buffers))(*(_region(b, buffers) for b in buffers))
        pointers = [b.allocation.address + b.offset for b in buffers]
        values = (ctypes.c_void_p * (len(pointers) + len(variables)))(*pointers, *map(ctypes.addressof, variables))
        triple = ctypes.c_uint32 * 3
        fault: _Fault = (
            _library()
            .stand_in_run(
                self._entry, values, regions, len(buffers), triple(*grid), triple(*local), ctypes.c_uint32(self.order)
            )
            .contents
        )
        if fault.kind:
            raise KernelFaultError(f"{self.kernel.name}: {self._words(fault, buffers, local)}")

    def _words(self, fault: _Fault, buffers: Sequence[Bound], local: Size) -> str:
        who = f"thread {tuple(fault.thread)} of threadgroup {tuple(fault.group)}"
        if fault.kind in (BARRIER, SIMDGROUP):
            what = "barrier" if fault.kind == BARRIER else "simdgroup operation"
            other = _position(fault.other, local)
            where = f"is at line {fault.other_line}" if fault.other_line else "has ended"
            return f"divergent {what}: {who} waits at line {fault.line}, thread {other} {where}"
        if fault.kind == REGISTERS:
            return f"out of bounds of a register array: {who}"
        if fault.kind == ARRAYS:
            return f"threadgroup memory is exhausted: {who}"
        names = (*self.kernel.parameters[: len(buffers)], *(name for name, _ in self.kernel.arrays))
        elements = [b.element for b in buffers]
        element = elements[fault.region] if fault.region < len(elements) else 1
        at = f"{fault.size} bytes at byte {fault.offset} of {names[fault.region]}"
        if fault.region < len(elements):
            at += f" (element {fault.offset // element} of {buffers[fault.region].size // element})"
        verb = "writes" if fault.write else "reads"
        says = {
            OUT_OF_BOUNDS: "out of bounds", MISALIGNED: "misaligned", UNINITIALISED: "uninitialised", RACE: "race",
        }  # fmt: skip
        return f"{says[fault.kind]}: {who} {verb} {at}{self._against(fault, len(buffers), local)}"

    def _against(self, fault: _Fault, buffers: int, local: Size) -> str:
        if fault.kind != RACE:
            return ""
        if fault.other == SEVERAL:
            return ", which several others touch without a barrier between"
        threads = local[0] * local[1] * local[2]
        other = _position((fault.other - 1) % threads + 1, local)
        place = "" if fault.region >= buffers else f" of the {(fault.other - 1) // threads + 1}th threadgroup"
        return f", which thread {other}{place} touches without a barrier between"


def _region(bound: Bound, buffers: Sequence[Bound]) -> _Region:
    whole = bound.allocation
    # two views of one allocation share what is known of its bytes, not the cells: each must be watched by itself
    written = ctypes.addressof(whole.written) + bound.offset
    return _Region(whole.address + bound.offset, bound.size, written, None, bound.element, 0)


def _position(number: int, local: Size) -> Size:
    index = number - 1
    return (index % local[0], index // local[0] % local[1], index // local[0] // local[1])
