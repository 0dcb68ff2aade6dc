"""What a program makes of a convolution's sums in the kernel that consumes them, for kernels of our own.

tinygrad fuses what follows a convolution (a bias, an activation, a residual) into the kernel of its sum. So does a
kernel that we write out: where it has a sum, it computes and stores what the consumer would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce as fold
from operator import and_

from tinygrad.dtype import AddrSpace
from tinygrad.uop.ops import Ops, UOp

from strategies.graph.buffers import computed
from strategies.graph.device import most_buffers
from strategies.graph.lowered import Lowered, Tail
from strategies.graph.match import Conv
from strategies.graph.ranges import Ranges, count, extents, flatten
from strategies.graph.rebuild import expression, gated_load, rebuild
from strategies.graph.spread import in_kernel

Put = Callable[[Mapping[UOp, UOp], Sequence[UOp], UOp], UOp]
"""From the convolution's loops at an output, the gates beyond which there is none, and the sum there, to the store of
what becomes of it."""


class Epilogue:
    """What becomes of a convolution's sums in the kernel that consumes them, for a kernel of our own: parameter 0 is
    stored to, those from 1 on are the `operands`, then whatever else is read."""

    def __init__(self, conv: Conv, tail: Tail, operands: Sequence[UOp]) -> None:
        self._conv, self._buffer = conv, tail.buffer
        self.total = UOp.placeholder((1,), conv.reduce.dtype, slot=-1, addrspace=AddrSpace.REG).index(UOp.const(0))
        """Stands for the sum until it is known where it is."""
        value = uncopied(tail.value, {conv.reduce: self.total})
        self._sources = list(dict.fromkeys([*operands, *sources_of(value, self.total)]))
        self.value = rebuild(value, parameters(self._sources))
        self.target = UOp.placeholder(tail.buffer.max_shape, tail.buffer.dtype, slot=0).index(*tail.index)

    def put(self, where: Mapping[UOp, UOp], gates: Sequence[UOp], summed: UOp) -> UOp:
        """The store of what becomes of `summed`, the sum at the output where the convolution's loops are `where`. Where
        a gate does not hold nothing is stored, nor read."""
        here = rebuild(self.value, where)
        loads = {u: _gated(u, gates) for u in expression(here) if u.op is Ops.INDEX and u is not self.total}
        here = rebuild(here, loads | {self.total: summed.cast(self._conv.reduce.dtype)})
        return _gated(rebuild(self.target, where), gates).store(here)

    def call(self, kernel: UOp) -> UOp:
        return kernel.call(self._buffer, *self._sources)


def with_epilogue(
    conv: Conv, operands: Sequence[UOp], kernel: Callable[[Put], UOp], ranges: Ranges, *, apart: bool = False
) -> Lowered:
    """What replaces a convolution whose sums `kernel` makes, which has what is stored to as parameter 0 and the
    operands from 1 on. Where the kernel that consumes them can be ours that is all of it; else, or if it is to be
    `apart`, they are stored."""
    if not apart and conv.kernel is not None and "output" not in conv.options and has_room(conv, operands):

        def whole(tail: Tail) -> UOp:
            epilogue = Epilogue(conv, tail, operands)
            return epilogue.call(kernel(epilogue.put))

        return Lowered(value=conv.reduce, whole=whole)
    loops = [*conv.groups, *conv.couts, *conv.outputs]
    target = UOp.placeholder((count(loops),), conv.reduce.dtype, slot=0)

    def put(where: Mapping[UOp, UOp], gates: Sequence[UOp], summed: UOp) -> UOp:
        place = target.index(flatten([where[r] for r in loops], extents(loops)))
        return _gated(place, gates).store(summed.cast(conv.reduce.dtype))

    held = computed(
        kernel(put), operands, extents(loops), dtype=conv.reduce.dtype, device=conv.device, slot=ranges.new_buffer()
    )
    value = in_kernel(conv, "output", held.read(loops))
    return Lowered(value=value, is_read="output" not in conv.options)


def has_room(conv: Conv, operands: Sequence[UOp]) -> bool:
    """Whether there is a `Conv.kernel` that a kernel of our own can be: where kernels have more buffers than the device
    allows, tinygrad divides its own, but not ours."""
    most = most_buffers(conv.device)
    if conv.kernel is None or most is None:
        return conv.kernel is not None
    tail = rebuild(conv.kernel.src[0], {conv.reduce: conv.reduce.const_like(0)})
    return len({*operands, *sources_of(tail)}) < most


def uncopied(value: UOp, known: dict[UOp, UOp] | None = None) -> UOp:
    """A kernel's value with nodes replaced, and without a CONTIGUOUS, such as an assignment to what it reads has;
    tinygrad takes those out of its own kernels."""
    known = dict(known or {})
    for u in expression(value):
        if u.op is Ops.CONTIGUOUS:
            known[u] = rebuild(u.src[0], known)
    return rebuild(value, known)


def sources_of(value: UOp, *but: UOp) -> list[UOp]:
    """What a kernel's value reads, in order, except at these places."""
    return list(dict.fromkeys(u.src[0] for u in expression(value) if u.op is Ops.INDEX and u not in but))


def parameters(sources: Sequence[UOp], first: int = 1) -> dict[UOp, UOp]:
    """The parameters of a kernel that stand for what it reads, from this one on."""
    slots = enumerate(sources, first)
    return {source: UOp.placeholder(source.max_shape, source.dtype, slot=slot) for slot, source in slots}


def is_gatherable(value: UOp) -> bool:
    """Whether a kernel of our own can compute the value wherever it needs it: there is no sum in it, and no Variable,
    which it is not given."""
    nodes = expression(value)
    variable = any(u.op is Ops.INDEX and u.src[0].addrspace is AddrSpace.ALU for u in nodes)
    return not variable and not any(u.op is Ops.REDUCE for u in nodes)


def reads_what_it_overwrites(conv: Conv) -> bool:
    """Whether the kernel that consumes the convolution stores to what the convolution reads: a window must not be
    gathered after its neighbour's output has been stored."""
    if conv.kernel is None or conv.kernel.op is not Ops.END:
        return False
    target = _base(conv.kernel.src[0].src[0])
    return any(_base(source) is target for operand in (conv.activation, conv.weight) for source in sources_of(operand))


def _base(u: UOp) -> UOp:
    while u.op in (Ops.INDEX, Ops.AFTER):
        u = u.src[0]
    return u


def _gated(load: UOp, gates: Sequence[UOp]) -> UOp:
    """An INDEX that is taken where every gate holds."""
    return gated_load(load, fold(and_, gates)) if gates else load
