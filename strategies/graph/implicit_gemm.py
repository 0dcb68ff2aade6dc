"""A convolution as one product of matrices through shared memory, its windows gathered by the product itself.

    A[g, k, o] = the weight, k = tap and channel: transposed in a buffer, or read where it is
    B[g, k, n] = the activation at channel and tap k of output n, in no buffer
    Y[g, o, n] = sum over k of A[g, k, o] * B[g, k, n]

The columns that im2col writes out are what threads put into shared memory, chunk by chunk (implicit GEMM: Chetlur et
al., "cuDNN: Efficient Primitives for Deep Learning", 2014). A 1x1 convolution reads its input as it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad.dtype import dtypes
from tinygrad.helpers import round_up
from tinygrad.uop.ops import AxisType, UOp

from strategies.graph.buffers import stored
from strategies.graph.device import has_shared_memory
from strategies.graph.epilogue import is_gatherable, parameters, reads_what_it_overwrites, sources_of, uncopied
from strategies.graph.gemm import VECTOR, Gemm, Store, is_in_line, placed
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.matmul import Blocking, Operand, product
from strategies.graph.ranges import Ranges, bind, count, extent, extents, flatten
from strategies.graph.rebuild import defined, gated, rebuild
from strategies.graph.spread import MOST_BLOCKS, in_kernel, threads

MOST_TAPS = 16
"""Whose weights a thread that transposes them holds at once."""


def lower_implicit_gemm(conv: Conv, by: Blocking, ranges: Ranges, *, transposed: bool) -> Lowered | None:
    """What replaces `conv.reduce`, its weight `transposed` in a buffer or read where it is. None where threads share no
    memory, or an operand is more than elementwise of what is in memory."""
    if not has_shared_memory(conv.device) or by.fault() is not None:
        return None
    if not is_gatherable(conv.activation) or not (transposed or is_gatherable(conv.weight)):
        return None
    if conv.dtype not in (dtypes.float32, dtypes.float16, dtypes.bfloat16):
        return None
    gemm = _Product(conv=conv, by=by, ranges=ranges, transposed=transposed)
    chunks = -(-gemm.products // by.depth)
    if by.parts > chunks or max(gemm.rows // by.rows, count(conv.groups) * by.parts) > MOST_BLOCKS:
        return None
    return Gemm(
        conv=conv, parts=by.parts, rows=gemm.rows, columns=gemm.columns, operands=gemm.operands, kernel=gemm.kernel,
        ranges=ranges, apart=reads_what_it_overwrites(conv),
    ).lowered()  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """The product that a convolution is: its rows are couts, its columns outputs, its depth taps and channels."""

    conv: Conv
    by: Blocking
    ranges: Ranges
    transposed: bool

    @property
    def summed(self) -> list[UOp]:
        """Channels are innermost: a chunk of them has one tap, and one place in the image."""
        return [*_taps(self.conv), *self.conv.channels]

    @property
    def products(self) -> int:
        """That an output sums."""
        return count(self.summed)

    @property
    def depth(self) -> int:
        """Of whole chunks in every part: what is beyond `products` is zero."""
        return round_up(self.products, self.by.depth * self.by.parts)

    @property
    def rows(self) -> int:
        return round_up(count(self.conv.couts), self.by.rows)

    @property
    def columns(self) -> int:
        return round_up(count(self.conv.outputs), self.by.columns)

    def operands(self) -> list[UOp]:
        if self.transposed:
            return [self._transposed_weight(), *sources_of(self._activation)]
        return self._sources

    def kernel(self, store: Store) -> UOp:
        groups = count(self.conv.groups)
        return product(
            groups, self.rows, self.columns, self.depth, self._left(), self._right(), self.by, store,
            name=f"gemm_{groups}_{self.rows}_{self.columns}_{self.depth}",
        )  # fmt: skip

    def _left(self) -> Operand:
        if self.transposed:
            held = UOp.placeholder((count(self.conv.groups), self.depth, self.rows), dtypes.float32, slot=1)
            return Operand(load=lambda item, k, row, e: held[item, k, row + e])
        weight = rebuild(defined(uncopied(self.conv.weight)), parameters(self._sources))

        def load(item: UOp, k: UOp, row: UOp, e: int) -> UOp:
            couts = count(self.conv.couts)
            row = row.minimum(couts - 1) if self.rows > couts else row  # what only pads a block repeats the last cout
            return self._load(weight, item, k + e, bind(self.conv.couts, row))

        return Operand(load=load, along_k=True)

    def _right(self) -> Operand:
        read = parameters(sources_of(self._activation), 2) if self.transposed else parameters(self._sources)
        activation = rebuild(self._activation, read)
        windows, in_line = count(self.conv.outputs), self._is_in_line

        def load(item: UOp, k: UOp, column: UOp, e: int) -> UOp:
            vector = VECTOR if in_line else 1
            if self.columns > windows:  # what only pads a block repeats the last ones
                column = (column // vector).minimum(windows // vector - 1) * vector
            at = placed(self.conv, column, e, in_line=True) if in_line else bind(self.conv.outputs, column)
            return self._load(activation, item, k, at or {})

        return Operand(load=load, vector=VECTOR if in_line else 1)

    def _load(self, value: UOp, item: UOp, k: UOp, where: dict[UOp, UOp]) -> UOp:
        where = where | bind(self.conv.groups, item) | bind(self.summed, k)
        return gated(rebuild(value, where), [k < self.products] if self.depth > self.products else []).cast(
            dtypes.float32
        )

    @property
    def _is_in_line(self) -> bool:
        """Whether outputs that are neighbours read neighbours, by four: those of 1x1 convolutions of stride 1 do."""
        outs = [axis.out for axis in self.conv.axes]
        return count(outs) % VECTOR == 0 and is_in_line(self._activation, outs)

    @property
    def _activation(self) -> UOp:
        return defined(uncopied(self.conv.activation))

    @property
    def _sources(self) -> list[UOp]:
        """Of both operands where they are."""
        return list(dict.fromkeys([*sources_of(uncopied(self.conv.weight)), *sources_of(self._activation)]))

    def _transposed_weight(self) -> UOp:
        """A. Neighbouring lanes have neighbouring couts; what only pads a block repeats the last one."""
        conv, ranges = self.conv, self.ranges
        groups = [ranges.new(extent(r)) for r in conv.groups]
        (row,) = threads([self.rows], ranges)
        couts = count(conv.couts)
        where = dict(zip(conv.groups, groups, strict=True))
        where |= bind(conv.couts, row.minimum(couts - 1) if self.rows > couts else row)
        k, place = self._places()
        gates = [k < self.products] if self.depth > self.products else []
        body = gated(rebuild(defined(conv.weight), where | place), gates).cast(dtypes.float32)
        body = in_kernel(conv, "GHAT", body, by_hand=True)
        sizes = [*extents(conv.groups), self.depth, self.rows]
        return stored(body, [*groups, k, row], sizes, device=conv.device, slot=ranges.new_buffer()).buffer

    def _places(self) -> tuple[UOp, dict[UOp, UOp]]:
        """Every place along K, and taps and channels there: a thread has some that are neighbours in the weight."""
        taps, channels, new = _taps(self.conv), count(self.conv.channels), self.ranges.new
        if self.depth > self.products or (count(taps) == 1 and channels % VECTOR == 0):
            k = new(self.depth // VECTOR) * VECTOR + new(VECTOR, AxisType.UPCAST)
            return k, bind(self.summed, k)
        kind = AxisType.UPCAST if count(taps) <= MOST_TAPS else AxisType.WEAK
        channel, own = new(channels), [new(extent(tap), kind) for tap in taps]
        k = flatten([*own, channel], [*extents(taps), channels])
        return k, dict(zip(taps, own, strict=True)) | bind(self.conv.channels, channel)


def _taps(conv: Conv) -> list[UOp]:
    return [axis.tap for axis in conv.axes if axis.sums]
