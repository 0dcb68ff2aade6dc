"""What the rewrite costs when a graph is scheduled: `python bench/scheduling.py [--rounds 7]`.

A network of 20 convolutions, with batch norm, relu and residuals, is scheduled by tinygrad alone, under `WINO=1`, and
with each strategy forced on every convolution; tinygrad's schedule cache is emptied before each. Rounds are
interleaved; printed are medians and the ratio over `WINO=1` of the same round, lowest to highest.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.console import Console
from rich.table import Table
from tinygrad import Context, Tensor, nn
from tinygrad.schedule import schedule_cache

import autotune
from autotune.compiler import ensure_c_compiler
from strategies.registry import strategies

CONVOLUTIONS = 20


class Network:
    """Residual pairs of 3x3 convolutions."""

    def __init__(self, channels: int = 32) -> None:
        self.convs = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(CONVOLUTIONS)]
        self.norms = [nn.BatchNorm(channels) for _ in range(CONVOLUTIONS)]

    def __call__(self, x: Tensor) -> Tensor:
        for index in range(0, CONVOLUTIONS, 2):
            y = self.norms[index](self.convs[index](x)).relu()
            x = (self.norms[index + 1](self.convs[index + 1](y)) + x).relu()
        return x


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    ensure_c_compiler()
    network = Network()
    Tensor.realize(*nn.state.get_parameters(network))
    image = Tensor.randn(1, 32, 56, 56).realize()
    names = [item.name for item in strategies() if item.lower is not None]
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "tinygrad": contextlib.nullcontext,
        "WINO=1": lambda: Context(WINO=1),
        **{name: lambda name=name: autotune.forced(name) for name in names},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    kernels: dict[str, int] = {}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            with way():
                schedule_cache.clear()
                output = network(image)
                started = time.perf_counter()
                kernels[name] = len(output.schedule_linear().src)
                if turn:  # the first round warms tinygrad's own caches
                    seconds[name].append(time.perf_counter() - started)
    table = Table("lowering", "kernels", "schedule ms", "over WINO=1", "lowest-highest", box=None)
    for name in ways:
        ratios = [a / b for a, b in zip(seconds[name], seconds["WINO=1"], strict=True)]
        table.add_row(
            name, str(kernels[name]), f"{statistics.median(seconds[name]) * 1e3:.0f}",
            f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
