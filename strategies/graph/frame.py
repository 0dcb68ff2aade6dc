"""The index space of a lowering: its coordinates, their extents, and how they map to the convolution's own.

Coordinates are named by letter: A points of the transform, G groups, B batch, C channels, O couts, T tiles. Where a
plan blocks couts or tiles, O and T count blocks and o and t the elements inside one; a blocked T counts batch and tiles
as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from tinygrad.uop.ops import UOp

from strategies.graph.match import Axis, Conv
from strategies.graph.ranges import Index, Ranges, as_uop, extent, flatten, unflatten
from strategies.graph.rebuild import defined
from strategies.transform import Transform, cook_toom

Coords = Mapping[str, Sequence[Index]]

_ONE = ((Fraction(1),),)
IDENTITY = Transform(m=1, r=1, at=_ONE, g=_ONE, bt=_ONE)
"""F(1, 1), along no axis: the sum is a product of matrices as it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A convolution cut into tiles of `m` outputs per Winograd axis, with optional blocks of couts and tiles (0: none).

    `sizes` holds the extents of every coordinate; `tiles` the number of tiles along each axis.
    """

    conv: Conv
    axes: tuple[Axis, ...]
    ranges: Ranges
    m: int
    cout_block: int
    tile_block: int
    transform: Transform
    tiles: tuple[int, ...]
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def exact(self) -> bool:
        """Whether tiles cover the output with nothing left over."""
        return all(axis.size % self.m == 0 for axis in self.axes)

    def batch_and_tiles(self, at: Coords) -> tuple[Sequence[Index], Sequence[Index]]:
        """Batch indexes and the tile along each axis. What only pads a block repeats the last tile."""
        if not self.tile_block:
            return at["B"], at["T"]
        natural = _unblock(at["T"], at["t"], self.tile_block, self._batch_tile_sizes)
        return natural[: len(self.conv.batch)], natural[len(self.conv.batch) :]

    def couts(self, at: Coords) -> Sequence[Index]:
        """The convolution's cout indexes. What only pads a block repeats the last one."""
        return _unblock(at["O"], at["o"], self.cout_block, self._cout_sizes) if self.cout_block else at["O"]

    def coordinates(
        self, groups: Sequence[UOp], batch: Sequence[UOp], couts: Sequence[UOp], tiles: Sequence[UOp]
    ) -> Coords:
        """The inverse of the two above."""
        at: dict[str, Sequence[Index]] = {"G": groups, "B": batch, "T": tiles, "t": (), "O": couts, "o": ()}
        if block := self.tile_block:
            flat = flatten((*batch, *tiles), self._batch_tile_sizes)
            at |= {"B": (), "T": (flat // block,), "t": (flat % block,)}
        if block := self.cout_block:
            flat = flatten(couts, self._cout_sizes)
            at |= {"O": (flat // block,), "o": (flat % block,)}
        return at

    def gates(self, at: Coords) -> list[UOp]:
        """What holds unless these coordinates only pad a block."""
        blocks = (
            ("T", "t", self.tile_block, self._batch_tile_sizes), ("O", "o", self.cout_block, self._cout_sizes)
        )  # fmt: skip
        return [
            as_uop(at[outer][0]) * block + as_uop(at[inner][0]) < math.prod(sizes)
            for outer, inner, block, sizes in blocks if block and math.prod(sizes) % block
        ]  # fmt: skip

    def is_read(self, axis: Axis, inner: Index) -> bool:
        """Whether element `inner` of every tile along this axis, the last one too, is read by some output."""
        last = (-(-axis.size // self.m) - 1) * self.m
        return axis.size % self.m == 0 or (isinstance(inner, int) and last + inner < axis.size + axis.taps - 1)

    @property
    def _batch_tile_sizes(self) -> tuple[int, ...]:
        return (*map(extent, self.conv.batch), *self.tiles)

    @property
    def _cout_sizes(self) -> tuple[int, ...]:
        return tuple(map(extent, self.conv.couts))


def frame(conv: Conv, ranges: Ranges, *, m: int, cout_block: int = 0, tile_block: int = 0) -> Frame | None:
    """The index space of F(m, 3) over this convolution; None if no axis has three dense taps.

    Along any other axis it is a plain sum: output positions are a batch, taps are channels. With m = 0 all of them are.
    """
    axes = tuple(axis for axis in conv.axes if m and axis.is_winograd)
    if m and not axes:
        return None
    plain = [axis for axis in conv.axes if axis not in axes]
    conv = replace(
        conv, activation=defined(conv.activation), weight=defined(conv.weight), axes=axes,
        batch=(*conv.batch, *(axis.out for axis in plain)),
        channels=(*conv.channels, *(axis.tap for axis in plain if axis.sums)),
    )  # fmt: skip
    transform = cook_toom(m) if m else IDENTITY
    tiles = tuple(-(-axis.size // m) for axis in axes)
    batch, couts = tuple(map(extent, conv.batch)), tuple(map(extent, conv.couts))
    sizes = {
        "A": (transform.products,) * len(axes), "G": tuple(map(extent, conv.groups)),
        "C": tuple(map(extent, conv.channels)), "B": batch, "T": tiles, "t": (), "O": couts, "o": (),
    }  # fmt: skip
    if tile_block:
        sizes |= {"B": (), "T": (-(-math.prod((*batch, *tiles)) // tile_block),), "t": (tile_block,)}
    if cout_block:
        sizes |= {"O": (-(-math.prod(couts) // cout_block),), "o": (cout_block,)}
    return Frame(
        conv=conv, axes=axes, ranges=ranges, m=m, cout_block=cout_block, tile_block=tile_block,
        transform=transform, tiles=tiles, sizes=sizes,
    )  # fmt: skip


def _unblock(outer: Sequence[Index], inner: Sequence[Index], block: int, sizes: Sequence[int]) -> tuple[UOp, ...]:
    flat = as_uop(outer[0]) * block + as_uop(inner[0])
    count = math.prod(sizes)
    return unflatten(flat.minimum(count - 1) if count % block else flat, sizes)
