"""The roofline's arithmetic, and what is kept of a calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from values import CPU

from autotune.peak_cache import PeakCache
from autotune.roofline import Peak, convolution_floor, winograd_saving
from strategies.shape import ConvShape

PEAK = Peak(operations_per_s=100e9, streams=((1 << 20, 80e9), (1 << 24, 90e9), (1 << 28, 20e9)), method="test")
RATES = st.floats(1e6, 1e15)
PEAKS = st.builds(
    lambda rate, streams: Peak(operations_per_s=rate, streams=tuple(sorted(streams.items()))),
    RATES, st.dictionaries(st.integers(1, 1 << 30), RATES, min_size=1, max_size=5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "rate"), [(0, 90e9), (1 << 20, 90e9), (1 << 24, 90e9), (1 << 26, 55e9), (1 << 28, 20e9), (1 << 40, 20e9)]
)
def test_bandwidth_is_that_of_the_size(size: int, rate: float) -> None:
    assert PEAK.bytes_per_s(size) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("kernel", "options", "saving"),
    [("3x3", {"padding": 1}, 4.0), ("3x3", {"stride": 2}, 1.0), ("1x1", {}, 1.0), ("1x3", {}, 2.0), ("5x3", {}, 2.0)],
)
def test_saving(kernel: str, options: dict[str, int], saving: float) -> None:
    assert winograd_saving(ConvShape.parse("1x8x16x16", f"8x8x{kernel}", **options)) == saving


def test_saving_is_less_where_a_tile_does_not_fit() -> None:
    assert winograd_saving(ConvShape.parse("1x8x4x4", "8x8x3x3")) == pytest.approx((3 * 2 / 4) ** 2)


def test_floor_of_a_convolution() -> None:
    """The project's own yardstick: operations / 4, or input, filter and output once."""
    shape = ConvShape.of((8, 256, 56, 56), (256, 256, 3, 3), padding=1)
    floor = convolution_floor(shape, PEAK)
    macs = 8 * 256 * 256 * 56 * 56 * 9
    assert floor.operations == 2 * macs / 4
    assert floor.bytes == 4 * (2 * 8 * 256 * 56 * 56 + 256 * 256 * 9)
    assert floor.bound == "operations"
    assert floor.seconds == floor.operations / 100e9
    thin = convolution_floor(ConvShape.of((7, 1, 512, 512), (1, 1, 3, 3), padding=1), PEAK)
    assert thin.bound == "bytes"
    assert thin.seconds == pytest.approx(thin.bytes / 90e9)


@given(PEAKS, PEAKS, st.integers(0, 1 << 40), st.integers(0, 1 << 31))
def test_merging_calibrations_never_raises_a_floor(a: Peak, b: Peak, operations: int, size: int) -> None:
    """Of the same sizes, as calibrations are."""
    b = Peak(operations_per_s=b.operations_per_s, streams=tuple((known, b.streams[0][1]) for known, _ in a.streams))
    both = a.merged(b)
    for one in (a, b):
        assert both.floor_s(operations, size) <= one.floor_s(operations, size) * (1 + 1e-9)
    assert Peak.from_json(both.to_json()) == both


@pytest.mark.parametrize("rates", [(0.0, 1.0), (1.0, float("nan")), (float("inf"), 1.0)])
def test_a_peak_is_finite(rates: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        Peak(operations_per_s=rates[0], streams=((1, rates[1]),))


def test_peaks_are_kept_and_only_grow(tmp_path: Path) -> None:
    cache = PeakCache(tmp_path / "peaks")
    assert cache.get(CPU) is None
    slow = Peak(operations_per_s=50e9, streams=((1 << 28, 30e9),), method="noisy")
    assert cache.keep(CPU, PEAK) == PEAK
    best = PeakCache(tmp_path / "peaks").keep(CPU, slow)
    assert best.operations_per_s == 100e9
    assert best.bytes_per_s(1 << 28) == 30e9
    assert cache.get(CPU) == best


@pytest.mark.parametrize("content", ["", "{", "[]", '{"operations_per_s": 0, "streams": []}', '{"streams": 3}'])
def test_a_damaged_file_is_no_calibration(tmp_path: Path, content: str) -> None:
    cache = PeakCache(tmp_path)
    cache.keep(CPU, PEAK)
    [path] = tmp_path.glob("*.json")
    path.write_text(content)
    assert cache.get(CPU) is None


def test_no_directory_is_no_cache() -> None:
    assert PeakCache.of_user({}).keep(CPU, PEAK) == PEAK
    assert PeakCache.of_user({}).get(CPU) is None
