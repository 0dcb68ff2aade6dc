"""What frozen weights save: `python bench/frozen.py [--strategy blocked] [--rounds 9]`.

Convolutions at batch 1, each in a TinyJit, with tinygrad's own lowering and with one strategy forced, its filter
transformed at every run and kept. Rounds are interleaved; printed are kernels, medians, and the ratio of kept to
transformed in the same round, lowest to highest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.table import Table
from tinygrad import Device, Tensor, TinyJit
from tinygrad.helpers import GlobalCounters

import autotune
from autotune.compiler import ensure_c_compiler

SIZES = ((64, 56), (128, 28), (256, 14), (512, 7))
"""Channels, height and width: ResNet-18's."""
WAYS = ("tinygrad", "transformed", "kept")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="blocked")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=10, help="per round; the fastest counts")
    options = parser.parse_args()
    ensure_c_compiler()
    table = Table("convolution", *(f"{way} us" for way in WAYS), "kernels", "kept/transformed", box=None)
    for channels, size in SIZES:
        steps, kernels = _captured(options.strategy, channels, size)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                seconds[way].append(min(_seconds(steps[way]) for _ in range(options.runs)))
        ratios = [a / b for a, b in zip(seconds["kept"], seconds["transformed"], strict=True)]
        table.add_row(
            f"1x{channels}x{size}x{size} {channels}x{channels}x3x3",
            *(f"{statistics.median(seconds[way]) * 1e6:.0f}" for way in WAYS),
            "/".join(str(kernels[way]) for way in WAYS),
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def _captured(strategy: str, channels: int, size: int) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """The three jits of one convolution, captured, and how many kernels each runs."""
    x = Tensor.randn(1, channels, size, size).realize()
    w = Tensor.randn(channels, channels, 3, 3).realize()
    lowerings: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "tinygrad": nullcontext,
        "transformed": lambda: autotune.forced(strategy),
        "kept": lambda: autotune.forced(strategy, frozen_weights=True),
    }
    steps: dict[str, Callable[[], object]] = {}
    kernels: dict[str, int] = {}
    for way, lowering in lowerings.items():
        jit = TinyJit(lambda x: x.conv2d(w, padding=1).realize())
        step = lambda jit=jit: jit(x)  # noqa: E731
        with lowering():
            for _ in range(3):
                before = GlobalCounters.kernel_count
                step()
        steps[way], kernels[way] = step, GlobalCounters.kernel_count - before
    return steps, kernels


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    Device[Device.DEFAULT].synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
