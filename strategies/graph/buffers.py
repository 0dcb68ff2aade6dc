"""Ways to hold an intermediate in a buffer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinygrad.dtype import AddrSpace, DType, dtypes, strong_dtype
from tinygrad.schedule.indexing import BufferizeOpts, apply_movement_op
from tinygrad.uop.ops import AxisType, Ops, ParamArg, UOp, shape_to_shape_arg

from strategies.graph.lowered import Tail
from strategies.graph.ranges import masked


@dataclass(frozen=True, slots=True)
class Held:
    """A filled buffer, and its reader: from one index per axis to the value there."""

    buffer: UOp
    read: Callable[[Sequence[UOp]], UOp]


NEVER_SET = 1 << 24
"""A bit that is 0 in every value of a range over at most so many; a longer range is not used for that."""


def in_one_piece(index: UOp) -> UOp:
    """The index of a range, so that tinygrad does not split it.

    It splits a range that is read modulo a divisor of its length. Of a CPU's threads it then looks for one part only,
    and of parts of an UPCAST none is held in registers. Behind a mask of all its bits an index has the same value and
    the same bounds, and is no range any more; where the length has no divisor it stays as it is.
    """
    count = int(index.vmax) + 1
    return index if all(count % divisor for divisor in range(2, count)) else masked(index)


def hand_made(body: UOp) -> UOp:
    """`body` in a kernel that tinygrad's heuristics and BEAM leave as its ranges say: an empty tuple of options."""
    return UOp(Ops.CONTIGUOUS, src=(body,), arg=())


def staged(body: UOp, axes: Sequence[UOp], *, device: str) -> Held:
    """A STAGE, which tinygrad turns into a buffer and a kernel that fills it."""
    stage = UOp(Ops.STAGE, src=(body, *axes), arg=BufferizeOpts(device=device, removable=False))
    return Held(stage, lambda indexes: stage.index(*indexes))


def stored(body: UOp, axes: Sequence[UOp], sizes: Sequence[int], *, device: str, slot: int) -> Held:
    """The buffer and the store written out. An axis may be any index below its size, not only a range."""
    return _stored(body, axes, sizes, _flat(axes, sizes), device, slot)


def stored_singly(body: UOp, axes: Sequence[UOp], sizes: Sequence[int], *, device: str, slot: int) -> Held:
    """Likewise, with an index in which tinygrad sees no multiple of two or four.

    tinygrad joins neighbouring stores by four. A C compiler grows its vectors from the stores, so it then stays at
    four as well, whatever the processor has. The index gets a term that is always zero: tinygrad cannot know that
    and leaves single stores, the compiler knows and joins them as wide as the processor allows.
    """
    return _stored(body, axes, sizes, singly(_flat(axes, sizes), loops_of(axes)), device, slot)


def singly(index: UOp, loops: Sequence[UOp]) -> UOp:
    """The same index, which tinygrad cannot tell from another: see `stored_singly`."""
    outer = (AxisType.WEAK, AxisType.THREAD)
    known = [r for r in loops if r.op is Ops.RANGE and r.arg[-1] in outer and r.vmax < NEVER_SET]
    return index + (known[0] & NEVER_SET) if known else index


def computed(kernel: UOp, inputs: Sequence[UOp], sizes: Sequence[int], *, dtype: DType, device: str, slot: int) -> Held:
    """What `kernel`, a SINK of our own over parameters, writes to its first from the others, in an array of `sizes`."""
    buffer = _buffer(math.prod(sizes), dtype, device, slot)
    filled = buffer.after(kernel.call(buffer, *inputs))
    return Held(filled, lambda indexes: filled.index(_flat(indexes, sizes)))


def computed_at(
    body: UOp, axes: Sequence[UOp], sizes: Sequence[int], make: Callable[[Tail], UOp], *, device: str, slot: int
) -> Held:
    """What the call that `make` returns for `body`, in terms of `axes`, stores in an array of `sizes`."""
    dtype = strong_dtype(body.dtype)
    buffer = _buffer(math.prod(sizes), dtype, device, slot)
    filled = buffer.after(make(Tail(value=body.cast(dtype), buffer=buffer, index=(_flat(axes, sizes),))))
    return Held(filled, lambda indexes: filled.index(_flat(indexes, sizes)).cast(body.dtype))


def loops_of(axes: Sequence[UOp]) -> list[UOp]:
    """The ranges of these indexes, in the order of tinygrad's loops."""
    return sorted({r for axis in axes for r in axis.ranges}, key=lambda r: r.arg)


def _stored(body: UOp, axes: Sequence[UOp], sizes: Sequence[int], index: UOp, device: str, slot: int) -> Held:
    dtype = strong_dtype(body.dtype)  # a buffer has the width of what is put in it, readers see what they saw
    buffer = _buffer(math.prod(sizes), dtype, device, slot)
    filled = buffer.after(buffer.index(index).store(body.cast(dtype)).end(*loops_of(axes)))
    return Held(filled, lambda indexes: filled.index(_flat(indexes, sizes)).cast(body.dtype))


def scratch(size: int, *, device: str, slot: int) -> UOp:
    """A buffer of float32 for one kernel alone, which fills it before it reads it."""
    return _buffer(size, dtypes.float32, device, slot)


def _buffer(size: int, dtype: DType, device: str, slot: int) -> UOp:
    arg = ParamArg(slot, dtype, device=device, addrspace=AddrSpace.GLOBAL)
    return UOp(Ops.BUFFER, src=(shape_to_shape_arg((size,)),), arg=arg)


def _flat(indexes: Sequence[UOp], sizes: Sequence[int]) -> UOp:
    """As tinygrad writes it, so that kernels that read the same in the same way are the same."""
    [flat] = apply_movement_op(Ops.RESHAPE, (math.prod(sizes),), tuple(sizes), tuple(indexes))
    return flat
