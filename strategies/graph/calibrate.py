"""How fast a device can be at all: streams of several sizes, and multiply-adds that stay in registers."""

from __future__ import annotations

from collections.abc import Callable

from tinygrad import Tensor
from tinygrad.engine.realize import ExecContext, compile_linear, link_linear, pm_exec

STREAM_BYTES = tuple(1 << shift for shift in (20, 22, 24, 26, 28))
"""From what fits a core's cache to what fits none."""
CHAINS, LINKS = 8, 30
"""Independent chains hide the latency of one; their product is how many multiply-adds one loaded element is worth."""
CHAIN_ELEMENTS = 1 << 18
RUNS = 9


def stream_rates(device: str) -> tuple[tuple[int, float], ...]:
    """(bytes, bytes per second) of a kernel that reads one array and writes another of the same size.

    `bytes` is both together. The best of several runs: what limits it otherwise is not the memory.
    """
    rates = []
    for size in STREAM_BYTES:
        source = Tensor.ones(size // 8, device=device).contiguous().realize()
        rates.append((size, size / _best_s(source + 1)))
    return tuple(rates)


def multiply_add_rate(device: str) -> float:
    """float32 operations per second of a kernel of multiply-adds in registers; two operations each."""
    x = Tensor.ones(CHAIN_ELEMENTS, device=device).contiguous().realize()
    factors = [Tensor([0.5 + chain / 16], device=device).realize() for chain in range(CHAINS)]
    shift = Tensor([0.25], device=device).realize()
    result = _chain(x, factors[0], shift)
    for factor in factors[1:]:
        result = result + _chain(x, factor, shift)
    return 2 * CHAINS * LINKS * CHAIN_ELEMENTS / _best_s(result)


def _chain(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Read from buffers: tinygrad would fold constants."""
    for _ in range(LINKS):
        x = x * factor + shift
    return x


def _best_s(result: Tensor) -> float:
    run = _compiled(result)
    return min(run() for _ in range(RUNS))


def _compiled(result: Tensor) -> Callable[[], float]:
    linear = link_linear(compile_linear(result.schedule_linear(), profile=True))
    context = ExecContext(update_stats=False, wait=True)
    return lambda: sum(t or 0.0 for call in linear.src for t in pm_exec.rewrite(call, context))
