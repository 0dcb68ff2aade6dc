"""The roofline: no kernel is faster than its operations at the device's peak, or its bytes at the device's bandwidth.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.shape import ConvShape, JsonObject

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What a device reached when it was calibrated.

    `operations_per_s` of float32 multiply-adds, two operations each; `streams` are pairs of bytes moved and bytes per
    second, by size. Both are measured, not from a data sheet, on units that every kernel can use: tensor cores and
    half precision may exceed them.
    """

    operations_per_s: float
    streams: tuple[tuple[int, float], ...]
    method: str = ""
    """What reached `operations_per_s`."""

    def __post_init__(self) -> None:
        rates = (self.operations_per_s, *(rate for _, rate in self.streams))
        if not self.streams or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError(f"a peak needs positive finite rates: got {rates}")

    def bytes_per_s(self, size: int) -> float:
        """The bandwidth for `size` bytes, between the streams next to it (linear over the logarithm of the size).

        Small sizes stay in a cache and stream faster. Where only a launch's latency made them slower than a larger
        stream, they count as fast as that one.
        """
        sizes, rates = zip(*self.streams, strict=True)
        falling = np.maximum.accumulate(rates[::-1])[::-1]
        return float(np.interp(math.log(max(size, 1)), np.log(sizes), falling))

    def floor_s(self, operations: float, size: int) -> float:
        """The least time for so many operations and bytes, in seconds."""
        return max(operations / self.operations_per_s, size / self.bytes_per_s(size))

    def merged(self, other: Peak) -> Peak:
        """The better of two calibrations in everything: noise only ever makes a device look slower."""
        best = self if self.operations_per_s >= other.operations_per_s else other
        mine, theirs = dict(self.streams), dict(other.streams)
        sizes = sorted(mine.keys() | theirs.keys())
        streams = tuple((size, max(mine.get(size, 0.0), theirs.get(size, 0.0))) for size in sizes)
        return Peak(operations_per_s=best.operations_per_s, streams=streams, method=best.method)

    def to_json(self) -> JsonObject:
        return {
            "operations_per_s": self.operations_per_s, "streams": [list(pair) for pair in self.streams],
            "method": self.method,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Peak:
        streams = tuple(sorted((int(size), float(rate)) for size, rate in data["streams"]))
        return cls(
            operations_per_s=float(data["operations_per_s"]), streams=streams, method=str(data.get("method", ""))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least work of a convolution, however it is lowered: see `convolution_floor`."""

    operations: float
    bytes: int
    saving: float
    """By how much F(4, 3) divides the operations of the direct sum."""
    seconds: float
    bound: str
    """`operations` or `bytes`: what the seconds come from."""

    def to_json(self) -> JsonObject:
        return {
            "operations": self.operations, "bytes": self.bytes, "saving": self.saving, "seconds": self.seconds,
            "bound": self.bound,
        }  # fmt: skip


def winograd_saving(shape: ConvShape) -> float:
    """By how much F(4, 3) divides the products: 12 become 6 along every axis of three dense taps.

    Along an axis with fewer outputs than the tile has, less is saved: F(n, 3) takes n + 2 products for 3n.
    """
    saving = 1.0
    for taps, stride, dilation, out in zip(shape.kernel, shape.stride, shape.dilation, shape.output, strict=True):
        if (taps, stride, dilation) == (3, 1, 1):
            tile = min(4, out)
            saving *= 3 * tile / (tile + 2)
    return saving


def convolution_floor(shape: ConvShape, peak: Peak) -> Floor:
    """The larger of the products that F(4, 3) leaves at the device's peak (a quarter of the direct sum's in two
    dimensions), and input, filter and output each moved once at its bandwidth."""
    saving = winograd_saving(shape)
    operations = 2 * shape.macs / saving
    elements = sum(math.prod(sizes) for sizes in (shape.input_shape, shape.weight_shape, shape.output_shape))
    size = elements * ITEM_BYTES[shape.dtype]
    by_operations = operations / peak.operations_per_s
    seconds = peak.floor_s(operations, size)
    bound = "operations" if by_operations >= seconds else "bytes"
    return Floor(operations=operations, bytes=size, saving=saving, seconds=seconds, bound=bound)
