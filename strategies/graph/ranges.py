"""The loops of kernels, indexes made of them, and arrays that only the loops of one kernel see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from tinygrad.dtype import AddrSpace
from tinygrad.schedule.indexing import BufferizeOpts
from tinygrad.uop.ops import AxisType, Ops, UOp

Index = int | UOp
"""A position along an axis: known when the graph is built, or a range."""

Read = Callable[[Sequence[UOp]], UOp]
"""From one index per axis to the value there."""

OWN_ARRAYS = 1000
"""The first slot of a kernel's own arrays: tinygrad counts the sums that it makes from 0."""


def as_uop(index: Index) -> UOp:
    return index if isinstance(index, UOp) else UOp.const(index)


def masked(index: UOp) -> UOp:
    """The index of a range behind a mask of all its bits: the same value and bounds, and to tinygrad no range."""
    return index & ((1 << max(1, int(index.vmax).bit_length())) - 1)


class Ranges:
    """Fresh ranges, and slots of fresh buffers.

    The order in which ranges are made is the order of the loops: tinygrad sorts them by id. Of tinygrad's AxisTypes we
    make

        WEAK     a loop that tinygrad decides about: its heuristics and BEAM may put it on threads or into registers
        REDUCE   a loop that is summed over
        UNROLL   summed over, its terms written out
        UPCAST   written out, its values held in registers side by side
        LOCAL    divided among the threads of a workgroup
        WARP     likewise, and left in one piece: neighbours stay neighbours
        THREAD   divided among the cores of a processor
    """

    def __init__(self, first: int, first_buffer: int = 0) -> None:
        self._ids, self._buffers = itertools.count(first), itertools.count(first_buffer)

    def new(self, size: int, kind: AxisType = AxisType.WEAK) -> UOp:
        """A range over `size` values; of one value, the constant 0."""
        return UOp.range(size, next(self._ids), kind) if size != 1 else UOp.const(0)

    def new_buffer(self) -> int:
        """The slot of a buffer that the graph does not have yet."""
        return next(self._buffers)

    def known(self, axis: UOp) -> UOp:
        """The index of an array's range, for what the array is filled with. Where all reads with a range are gated by
        a limit of it, tinygrad ends its loop there (`mark_gated`), although the array is read beyond."""
        return masked(axis)

    def array(self, body: UOp, axes: Sequence[UOp]) -> Read:
        """Reads of an array that only the loops around it see, filled with `body` over all values of these ranges,
        which has them as `known`. On a CPU it is on the stack."""
        opts = BufferizeOpts(device=None, addrspace=AddrSpace.REG, removable=False)
        stage = UOp(Ops.STAGE, src=(body, *axes), arg=opts)
        return lambda indexes: stage.index(*indexes)


class KernelRanges(Ranges):
    """Those of a kernel of our own, which tinygrad does not take apart: its arrays are written out."""

    def __init__(self) -> None:
        super().__init__(0, OWN_ARRAYS)

    def known(self, axis: UOp) -> UOp:
        return axis  # the array's store is written out, and has it with no gate

    def array(self, body: UOp, axes: Sequence[UOp]) -> Read:
        sizes = extents(axes)
        array = UOp.placeholder((math.prod(sizes),), body.dtype, slot=self.new_buffer(), addrspace=AddrSpace.REG)
        store = array.index(flatten(axes, sizes)).store(body)
        filled = array.after(ended(store, axes))
        return lambda indexes: filled.index(flatten(indexes, sizes))


def ended(store: UOp, loops: Sequence[UOp]) -> UOp:
    """A store after these loops; one of a single value is a constant, and none."""
    return store.end(*(r for r in loops if r.op is Ops.RANGE))


def extent(r: UOp) -> int:
    """How many values a range takes."""
    return int(r.vmax) + 1


def extents(loops: Sequence[UOp]) -> list[int]:
    return [extent(r) for r in loops]


def count(loops: Sequence[UOp]) -> int:
    """How many values they take together."""
    return math.prod(map(extent, loops))


def flatten(indexes: Sequence[UOp], sizes: Sequence[int]) -> UOp:
    """The index that counts all values of these as one, the last the fastest."""
    flat = UOp.const(0)
    for index, size in zip(indexes, sizes, strict=True):
        flat = flat * size + index
    return flat


def unflatten(flat: UOp, sizes: Sequence[int]) -> tuple[UOp, ...]:
    """The indexes that `flatten` makes this one of."""
    result: list[UOp] = []
    for position, size in reversed(list(enumerate(sizes))):
        result.append(flat % size if position else flat)
        flat = flat // size
    return tuple(reversed(result))


def bind(loops: Sequence[UOp], index: UOp) -> dict[UOp, UOp]:
    """The loops at the index that counts all their values as one."""
    return dict(zip(loops, unflatten(index, extents(loops)), strict=True))
