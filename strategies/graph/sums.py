"""Where the sums of a convolution go that a kernel of our own computes as a product of matrices.

The product's rows are couts, its columns outputs of all images, both filled up to whole blocks. Where the kernel that
consumes the convolution does nothing but what is elementwise of it, the product does that too, and the sums are never
in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce as fold
from operator import and_

from tinygrad.dtype import AddrSpace, DType, dtypes
from tinygrad.uop.ops import Ops, UOp

from strategies.graph.buffers import computed
from strategies.graph.device import most_buffers
from strategies.graph.frame import unflatten
from strategies.graph.kron import Ranges, flatten
from strategies.graph.lowered import Lowered, Tail
from strategies.graph.match import Conv, extent
from strategies.graph.pointwise import strides_of
from strategies.graph.rebuild import expression, gated_load, rebuild
from strategies.graph.spread import in_kernel, split_consumer

VECTOR = 4
"""Neighbours that a thread has, reads and writes at once: 16 bytes of float32."""

Store = Callable[[UOp, UOp, UOp, UOp, int, UOp], UOp]
"""From part, batch, row, a column that is a multiple of VECTOR, how many beyond it, and the sum there, in float32, to
the store of it."""


Put = Callable[[Mapping[UOp, UOp], Sequence[UOp], UOp], UOp]
"""From the convolution's loops at an output, the gates beyond which there is none, and the sum there, to the store of
what becomes of it."""


def product_store(parts: int, batch: int, m: int, n: int, dtype: DType) -> Store:
    """To parameter 0: C of parts x batch x m x n."""
    c = UOp.placeholder((parts, batch, m, n), dtype, slot=0)
    return lambda part, item, row, column, e, value: c[part, item, row, column + e].store(value.cast(dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Of a product of `rows` x `columns`, each as `parts` that are not added up.

    `kernel` makes the kernel for a store; it has what is stored to as parameter 0 and, from 1 on, what `operands`
    returns. With `apart` they are never stored where the consumer's kernel stores.
    """

    conv: Conv
    parts: int
    rows: int
    columns: int
    operands: Callable[[], Sequence[UOp]]
    kernel: Callable[[Store], UOp]
    ranges: Ranges
    apart: bool = False

    def lowered(self) -> Lowered:
        """What replaces the convolution."""
        conv, operands = self.conv, self.operands()
        if self.parts == 1 and not self.apart and "output" not in conv.options and has_room(conv, operands):
            return Lowered(value=conv.reduce, whole=lambda tail: self._whole(tail, operands))
        value = self._read(operands).cast(conv.reduce.dtype)
        split = split_consumer(conv, conv.axes[-1:], VECTOR, self.ranges) if not conv.shared else None
        value = in_kernel(conv, "output", value, by_hand=split is not None)
        is_read = self.parts == 1 and split is None and "output" not in conv.options
        return Lowered(value=value, split=split or {}, is_read=is_read)

    def _read(self, operands: Sequence[UOp]) -> UOp:
        """The sum at the consumer's own indexes, from a buffer that holds it; each part in one if there are several."""
        conv, parts, groups = self.conv, self.parts, count(self.conv.groups)
        out = conv.dtype if parts == 1 else dtypes.float32
        held = computed(
            self.kernel(product_store(parts, groups, self.rows, self.columns, out)), operands,
            [parts, groups, self.rows, self.columns], dtype=out, device=conv.device, slot=self.ranges.new_buffer(),
        )  # fmt: skip
        row, item = flatten(conv.couts, extents(conv.couts)), flatten(conv.groups, extents(conv.groups))
        columns = outputs(conv)
        column = flatten(columns, extents(columns))
        values = [held.read([UOp.const(part), item, row, column]) for part in range(parts)]
        return UOp.usum(*(value.cast(dtypes.float32) for value in values))

    def _whole(self, tail: Tail, operands: Sequence[UOp]) -> UOp:
        """The call of a kernel that stores what the tail makes of the sum."""
        conv = self.conv
        become = Becoming(conv, tail, operands)
        columns, outs = outputs(conv), [axis.out for axis in conv.axes]
        in_line = all(is_in_line(each, outs, become.total) for each in (become.value, become.target))

        def store(_part: UOp, item: UOp, row: UOp, column: UOp, e: int, summed: UOp) -> UOp:
            columns_at = placed(conv, column, e, in_line=in_line)
            if columns_at is None:
                column += e
                columns_at = bind(columns, column)
            gates = [
                index < count(loops)
                for index, size, loops in ((row, self.rows, conv.couts), (column, self.columns, columns))
                if size > count(loops)
            ]
            return become.put(bind(conv.groups, item) | bind(conv.couts, row) | columns_at, gates, summed)

        return become.call(self.kernel(store))


class Becoming:
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
        """A `Put`."""
        here = rebuild(self.value, where)
        loads = {u: _gated(u, gates) for u in expression(here) if u.op is Ops.INDEX and u is not self.total}
        here = rebuild(here, loads | {self.total: summed.cast(self._conv.reduce.dtype)})
        return _gated(rebuild(self.target, where), gates).store(here)

    def call(self, kernel: UOp) -> UOp:
        return kernel.call(self._buffer, *self._sources)


def consumed(
    conv: Conv, operands: Sequence[UOp], kernel: Callable[[Put], UOp], ranges: Ranges, *, apart: bool = False
) -> Lowered:
    """What replaces a convolution whose sums `kernel` makes, which has what is stored to as parameter 0 and the
    operands from 1 on. Where the kernel that consumes them can be ours that is all of it; else, or if it is to be
    `apart`, they are stored."""
    if not apart and conv.kernel is not None and "output" not in conv.options and has_room(conv, operands):

        def whole(tail: Tail) -> UOp:
            become = Becoming(conv, tail, operands)
            return become.call(kernel(become.put))

        return Lowered(value=conv.reduce, whole=whole)
    loops = [*conv.groups, *conv.couts, *outputs(conv)]
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


def bind(loops: Sequence[UOp], index: UOp) -> dict[UOp, UOp]:
    """The loops at the index that counts all their values as one."""
    return dict(zip(loops, unflatten(index, extents(loops)), strict=True))


def placed(conv: Conv, column: UOp, e: int, *, in_line: bool) -> dict[UOp, UOp] | None:
    """The loops of `outputs` at `e` after a column that is a multiple of VECTOR, such that tinygrad sees neighbours and
    reads or writes them as one. None where they are none: a row ends among them, and is not `in_line` with the next."""
    outs = [axis.out for axis in conv.axes]
    if in_line and count(outs) % VECTOR == 0:
        vector, vectors = column // VECTOR, count(outs) // VECTOR
        last = vector % vectors * VECTOR + e
        return bind(conv.batch, vector // vectors) | dict.fromkeys(outs[:-1], UOp.const(0)) | {outs[-1]: last}
    if extent(outs[-1]) % VECTOR == 0:
        where = bind(outputs(conv), column)
        return where | {outs[-1]: where[outs[-1]] + e}
    return None


def is_in_line(value: UOp, outs: Sequence[UOp], *but: UOp) -> bool:
    """Whether a value at (y, x) is what it would be at (0, y * width + x), except for what is read at these places: its
    rows follow each other in memory wherever it reads (or, of an INDEX, is stored)."""
    loads = [u for u in expression(value) if u.op is Ops.INDEX and u not in but]
    rest = rebuild(value, {load: load.const_like(0) for load in loads})
    return set(outs).isdisjoint(rest.ranges) and all(_is_in_line(load, outs) for load in loads)


def _is_in_line(load: UOp, outs: Sequence[UOp]) -> bool:
    if len(load.src) == 1:
        return True  # of a scalar
    strides = strides_of(load.src[0]) if len(load.src) > 2 else (1,)
    if strides is None or any(not set(outs).isdisjoint(index.get_valid().ranges) for index in load.src[1:]):
        return False
    at = UOp.usum(*(index.get_idx() * stride for index, stride in zip(load.src[1:], strides, strict=True)))
    in_line = dict.fromkeys(outs[:-1], UOp.const(0)) | {outs[-1]: flatten(outs, extents(outs))}
    difference = (at - rebuild(at, in_line)).simplify()
    return difference.op is Ops.CONST and difference.val == 0


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


def outputs(conv: Conv) -> list[UOp]:
    """The loops over the outputs of one cout, of all images."""
    return [*conv.batch, *(axis.out for axis in conv.axes)]


def extents(loops: Sequence[UOp]) -> list[int]:
    return [extent(r) for r in loops]


def count(loops: Sequence[UOp]) -> int:
    return math.prod(map(extent, loops))


def filled(size: int, block: int) -> int:
    """So many in whole blocks."""
    return -(-size // block) * block


def _gated(load: UOp, gates: Sequence[UOp]) -> UOp:
    """An INDEX that is taken where every gate holds."""
    return gated_load(load, fold(and_, gates)) if gates else load
