"""What leaving the hook on costs, and that it changes nothing: `python bench/hook.py [--rounds 9] [--graphs 2000]`.

Three parts. A network of 20 convolutions is scheduled by tinygrad alone and with the hook where no winner is known, in
interleaved rounds, tinygrad's schedule cache emptied before each; printed are medians of processor time and the ratio
of the same round.
Then the time of one lookup in memory. Then random graphs (convolutions, movement, reductions and elementwise
operations, in chains and diamonds, some of them differentiated) computed by tinygrad alone and with every strategy
forced in turn: how many, how many convolutions were rewritten, and the largest difference. A graph that raises, falls
back or differs by more than the bound ends the command with status 1, and Hypothesis prints the smallest such graph.
`--seed` makes others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from scheduling import Network
from tinygrad import Tensor
from tinygrad.helpers import Context
from tinygrad.schedule import schedule_cache

import autotune
from autotune import bundle
from autotune.compiler import ensure_c_compiler
from autotune.decisions import Winners
from autotune.sources import open_source
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.registry import strategies
from strategies.shape import ConvShape

BOUND = 1e-3
"""Of a whole graph, which may hold several convolutions: relative to its largest value."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ensure_c_compiler()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as directory:
        empty = Path(directory) / "winners.json"
        bundle.write(empty, [])
        if options.rounds:
            _print_overhead(console, empty, options.rounds)
            _print_lookup(console, empty)
    return _print_graphs(console, options.graphs, options.seed) if options.graphs else 0


def _print_overhead(console: Console, empty: Path, rounds: int) -> None:
    network = Network()
    image = Tensor.randn(1, 32, 56, 56).realize()
    alone: list[float] = []
    hooked: list[float] = []
    for turn in range(rounds + 1):
        for seconds, installed in ((alone, False), (hooked, True)):
            if installed:
                autotune.install(empty)
            schedule_cache.clear()
            output = network(image)
            started = time.process_time()
            output.schedule_linear()
            if turn:  # the first round warms tinygrad's own caches
                seconds.append(time.process_time() - started)
            autotune.uninstall()
    ratios = [b / a for a, b in zip(alone, hooked, strict=True)]
    console.print(
        f"scheduling 20 convolutions: tinygrad {statistics.median(alone) * 1e3:.1f} ms, with the hook and no winner "
        f"{statistics.median(hooked) * 1e3:.1f} ms, ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f}-{max(ratios):.3f})"
    )


def _print_lookup(console: Console, empty: Path) -> None:
    device = describe_device("CPU", surroundings=False)
    winners = Winners(open_source(empty), guesses=False, warn=lambda _, message: console.print(message))

    def keys() -> list[ConvKey]:
        return [
            ConvKey(shape=ConvShape.of((1, 64, 56, 56), (couts, 64, 3, 3)), device=device) for couts in range(1, 21)
        ]

    winners.answers(keys())
    times = []
    for _ in range(200):
        asked = keys()  # others each time, as from a graph
        started = time.process_time()
        winners.answers(asked)
        times.append((time.process_time() - started) / len(asked))
    console.print(
        f"lookup in memory: {statistics.median(times) * 1e6:.2f} us a convolution (at best {min(times) * 1e6:.2f})"
    )


Step = Callable[[Tensor, Tensor], Tensor]


def _weight(couts: int, cin: int, size: int) -> Tensor:
    values = np.random.default_rng(couts * 100 + cin * 10 + size).normal(size=(couts, cin, size, size))
    return Tensor((values / (cin * size)).astype(np.float32)).realize()


WEIGHTS = {(cin, size): _weight(4, cin, size) for cin in (1, 2, 4) for size in (1, 3, 5)}
STEPS: dict[str, Step] = {
    "conv 3x3": lambda x, _: x.conv2d(WEIGHTS[4, 3], padding=1),
    "conv 3x3 unpadded": lambda x, _: x.pad((1, 1, 1, 1)).conv2d(WEIGHTS[4, 3]),
    "conv of groups": lambda x, _: x.conv2d(WEIGHTS[2, 3], padding=1, groups=2),
    "depthwise": lambda x, _: x.conv2d(WEIGHTS[1, 3], padding=1, groups=4),
    "conv 1x1": lambda x, _: x.conv2d(WEIGHTS[4, 1]),
    "conv 5x5": lambda x, _: x.conv2d(WEIGHTS[4, 5], padding=2),
    "conv transposed": lambda x, _: x.conv_transpose2d(WEIGHTS[4, 3], padding=1),
    "conv strided": lambda x, _: x.conv2d(WEIGHTS[4, 3], padding=1, stride=2).interpolate(x.shape[2:], mode="nearest"),
    "conv dilated": lambda x, _: x.conv2d(WEIGHTS[4, 3], padding=2, dilation=2),
    "conv of a channel": lambda x, _: x[:, :1].expand(*x.shape).conv2d(WEIGHTS[4, 3], padding=1),
    "relu": lambda x, _: x.relu(),
    "scaled": lambda x, _: x * 0.5 + 1,
    "residual": lambda x, old: x + old,
    "product": lambda x, old: x * old.sigmoid(),
    "swapped": lambda x, _: x.permute(0, 1, 3, 2),
    "flipped": lambda x, _: x.flip(2),
    "rolled": lambda x, _: x.roll(1, 3),
    "flattened and back": lambda x, _: x.flatten(1).relu().reshape(*x.shape),
    "channels last and back": lambda x, _: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "shuffled": lambda x, _: x.reshape(x.shape[0], 1, 2, 2, *x.shape[2:]).permute(0, 1, 3, 2, 4, 5).reshape(*x.shape),
    "padded and cut": lambda x, _: x.pad((1, 1, 1, 1)).relu()[:, :, 1:-1, 1:-1],
    "pooled": lambda x, _: x.avg_pool2d((3, 3), stride=1, padding=1),
    "normed": lambda x, _: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1),
    "stored": lambda x, _: x.contiguous(),
    "summed": lambda x, _: x + x.sum(1, keepdim=True) / 4,
}


def _print_graphs(console: Console, count: int, number: int) -> int:
    names = [item.name for item in strategies() if item.lower is not None]
    image = Tensor(np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)).realize()
    worst, done = 0.0, 0
    before = autotune.stats()

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=6), differentiated=st.booleans())
    def check(steps: list[str], differentiated: bool) -> None:
        nonlocal worst, done

        def run() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            old, new = image, STEPS["conv 3x3"](image, image)
            for step in steps:
                old, new = new, STEPS[step](new, old)
            result: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
            result = (new.square().mean().gradient(image)[0] if differentiated else new).numpy()
            return result

        strategy = names[done % len(names)]
        done += 1
        expected = run()
        started = autotune.stats().fallbacks
        with autotune.forced(strategy):
            found = run()
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
        assert autotune.stats().fallbacks == started, f"{strategy}: {autotune.explain_last()}"
        assert difference <= BOUND, f"{strategy}: differs by {difference:.1e}"
        worst = max(worst, difference)

    status = 0
    with Context(NOOPT=1):  # compiling is most of the time
        try:
            check()
        except AssertionError as error:
            console.print(f"FAILED: {error}", highlight=False)
            status = 1
    did = {f.name: getattr(autotune.stats(), f.name) - getattr(before, f.name) for f in fields(autotune.Stats)}
    console.print(
        f"{done} random graphs, {len(names)} strategies in turn: {did['convolutions']} convolutions, {did['applied']} "
        f"rewritten, {did['fallbacks']} fallbacks, largest difference {worst:.1e}"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
