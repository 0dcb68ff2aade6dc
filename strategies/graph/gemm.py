"""A convolution that a kernel of our own computes as a product of matrices (GEMM), and where its sums go.

The product's rows are couts, its columns outputs of all images, both filled up to whole blocks. Where the kernel that
consumes the convolution does nothing but what is elementwise of it, the product does that too, and the sums are never
in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import Ops, UOp

from strategies.graph.buffers import computed
from strategies.graph.epilogue import Epilogue, has_room
from strategies.graph.lowered import Lowered, Tail
from strategies.graph.match import Conv
from strategies.graph.pointwise import strides_of
from strategies.graph.ranges import Ranges, bind, count, extent, extents, flatten
from strategies.graph.rebuild import expression, rebuild
from strategies.graph.spread import in_kernel, split_consumer

VECTOR = 4
"""Neighbours that a thread has, reads and writes at once: 16 bytes of float32."""

Store = Callable[[UOp, UOp, UOp, UOp, int, UOp], UOp]
"""From part, batch, row, a column that is a multiple of VECTOR, how many beyond it, and the sum there, in float32, to
the store of it."""


def product_store(parts: int, batch: int, m: int, n: int, dtype: DType) -> Store:
    """To parameter 0: C of parts x batch x m x n."""
    c = UOp.placeholder((parts, batch, m, n), dtype, slot=0)
    return lambda part, item, row, column, e, value: c[part, item, row, column + e].store(value.cast(dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """A convolution as a product of `rows` x `columns` sums, each in `parts` that are added up where they are read.

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
        columns = conv.outputs
        column = flatten(columns, extents(columns))
        values = [held.read([UOp.const(part), item, row, column]) for part in range(parts)]
        return UOp.usum(*(value.cast(dtypes.float32) for value in values))

    def _whole(self, tail: Tail, operands: Sequence[UOp]) -> UOp:
        """The call of a kernel that stores what the tail makes of the sum."""
        conv = self.conv
        epilogue = Epilogue(conv, tail, operands)
        columns, outs = conv.outputs, [axis.out for axis in conv.axes]
        in_line = all(is_in_line(each, outs, epilogue.total) for each in (epilogue.value, epilogue.target))

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
            return epilogue.put(bind(conv.groups, item) | bind(conv.couts, row) | columns_at, gates, summed)

        return epilogue.call(self.kernel(store))


def placed(conv: Conv, column: UOp, e: int, *, in_line: bool) -> dict[UOp, UOp] | None:
    """The loops of `outputs` at `e` after a column that is a multiple of VECTOR, such that tinygrad sees neighbours and
    reads or writes them as one. None where they are none: a row ends among them, and is not `in_line` with the next."""
    outs = [axis.out for axis in conv.axes]
    if in_line and count(outs) % VECTOR == 0:
        vector, vectors = column // VECTOR, count(outs) // VECTOR
        last = vector % vectors * VECTOR + e
        return bind(conv.batch, vector // vectors) | dict.fromkeys(outs[:-1], UOp.const(0)) | {outs[-1]: last}
    if extent(outs[-1]) % VECTOR == 0:
        where = bind(conv.outputs, column)
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
