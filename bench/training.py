"""ResNet-18 trained with and without the hook: `python bench/training.py --device CPU --steps 50 --batch 32`.

Images shaped like CIFAR's, of ten classes that differ in their mean, so that there is something to learn. Three runs
start from the same weights and see the same batches: tinygrad alone, tinygrad with the hook, and a control, tinygrad
alone from weights that are moved by one rounding step. The control says how far apart two loss curves drift that differ
by nothing but float32's rounding. Each run is captured by TinyJit; the runs take turns, step by step, and the hook's
step is compared with tinygrad's of the same turn.

The last line is the verdict: PASSED where the hook's curve is as near to tinygrad's as NOISE times the control's, and
its steps are faster. `--deadline` ends the steps when it is over, and the verdict is of those that were made.

The convolutions of a whole step, those of its gradients that match included, are tuned first, within `--budget` into
`--db`; with `--budget 0` what is known there is used.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from on_device import start_on
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PLAIN, HOOK, CONTROL = "tinygrad", "with the hook", "control"
NOISE = 10.0
"""A Winograd convolution rounds more often than a sum does, and every step adds to the drift."""
WARM_UP = 3
"""Steps that do not count: scheduling, compiling, capturing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budget", default="5m", help="of tuning; 0: none (default %(default)s)")
    parser.add_argument("--deadline", default="1h", help="of the steps, as 90s or 4m (default %(default)s)")
    parser.add_argument("--db", default=str(HERE / "training.db"), help="default bench/training.db")
    options = parser.parse_args()
    start_on(options.device.upper())
    if options.budget != "0":
        tune(options)
    return report(*train(options), asked=options.steps)


def tune(options: argparse.Namespace) -> None:
    """Every convolution of one step into the database."""
    from autotune.job import Budget
    from autotune.local_runner import LocalRunner
    from autotune.survey import survey, tune_parts
    from db import open_store
    from strategies.graph.device import describe_device
    from strategies.graph.find import find_convolutions
    from strategies.key import Policy

    spec = describe_device()
    shapes = find_convolutions(Run(options.batch).lazy_step)
    _say(f"{sum(shapes.values())} convolutions in {len(shapes)} shapes in a step of batch {options.batch}")
    parts = survey(shapes, spec, policy=Policy(), on_wait=_say)
    with open_store(options.db) as store, LocalRunner(spec.device) as runner:
        said = lambda part, seconds: _say(f"tuning {part.key}, {part.count} of them, {seconds:.0f} s")  # noqa: E731
        tune_parts(parts, Budget.parse(options.budget).seconds or 0.0, store=store, runner=runner, on_part=said)


class Run:
    """One network with its optimiser and a captured step."""

    def __init__(self, batch: int, *, moved: bool = False) -> None:
        from tinygrad import Tensor, TinyJit, nn

        from autotune.models.resnet import BasicBlock, ResNet

        Tensor.manual_seed(0)
        self.model = ResNet(BasicBlock, (2, 2, 2, 2), classes=10, small=True)
        self.parameters = nn.state.get_parameters(self.model)
        Tensor.realize(*self.parameters)
        if moved:
            first = self.model.conv.weight
            first.assign(Tensor(np.nextafter(first.numpy(), np.float32(np.inf)))).realize()
        self.optimiser = nn.optim.SGD(self.parameters, lr=0.005, momentum=0.9)
        self.images = Tensor.empty(batch, 3, 32, 32).contiguous().realize()
        self.classes = Tensor.zeros(batch, dtype="int32").contiguous().realize()
        self.step = TinyJit(self._step)

    def lazy_step(self) -> list[Any]:
        """The loss, and everything that a step changes; not realized."""
        from tinygrad import Context

        with Context(TRAINING=1):
            self.optimiser.zero_grad()
            loss = self.model(self.images).sparse_categorical_crossentropy(self.classes).backward()
            return [loss, *self.optimiser.schedule_step()]

    def _step(self) -> Any:
        loss, *changed = self.lazy_step()
        return loss.realize(*changed)

    def load(self, images: np.ndarray, classes: np.ndarray) -> None:
        from tinygrad import Tensor

        self.images.assign(Tensor(images)).realize()
        self.classes.assign(Tensor(classes)).realize()


def train(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[float]], str]:
    """Losses and seconds per step of each run, and what the hook met."""
    import autotune
    from autotune.job import Budget

    runs = {PLAIN: Run(options.batch), HOOK: Run(options.batch), CONTROL: Run(options.batch, moved=True)}
    contexts: dict[str, Callable[[], AbstractContextManager[object]]] = {
        PLAIN: contextlib.nullcontext, HOOK: lambda: autotune.tuned(options.db), CONTROL: contextlib.nullcontext,
    }  # fmt: skip
    losses: dict[str, list[float]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    rng = np.random.default_rng(0)
    ends = time.monotonic() + (Budget.parse(options.deadline).seconds or 0.0)
    for step in range(options.steps):
        if step > WARM_UP and time.monotonic() > ends:
            break
        classes = rng.integers(0, 10, options.batch).astype(np.int32)
        means = np.linspace(-1.0, 1.0, 10, dtype=np.float32)[classes][:, None, None, None]
        images = rng.normal(size=(options.batch, 3, 32, 32)).astype(np.float32) + means
        names = list(runs)
        shift = step % len(names)
        for name in [*names[shift:], *names[:shift]]:
            runs[name].load(images, classes)
            # a captured jit keeps its lowering: the context matters to the first steps alone
            with contexts[name]() if step < WARM_UP else contextlib.nullcontext():
                begun = time.perf_counter()
                losses[name].append(float(runs[name].step().item()))
                seconds[name].append(time.perf_counter() - begun)
        if step < WARM_UP or step % 10 == 9:
            _say(f"step {step + 1}: " + ", ".join(f"{name} {losses[name][-1]:.6f}" for name in runs))
    said = autotune.stats()
    return losses, seconds, f"{said.hits} of {said.convolutions} convolutions had a winner, {said.fallbacks} fell back"


def report(losses: dict[str, list[float]], seconds: dict[str, list[float]], met: str, *, asked: int) -> int:
    """The drift of the losses beside the control's, the time of a step, and the verdict: 0 if it is good."""
    from autotune.statistics import median, paired_ratio
    from strategies.graph.device import describe_device

    sys.stdout.reconfigure(line_buffering=True)  # what is printed stays if a long run is cut
    console = Console(width=None if sys.stdout.isatty() else 120)
    spec = describe_device()
    console.print(f"{spec.device} {spec.arch}, {spec.cores} cores, tinygrad {spec.tinygrad}; {met}")
    plain = np.array(losses[PLAIN])
    steps = sorted({0, 1, 4, 9, 19, 29, 39, len(plain) - 1} & set(range(len(plain))))
    table = Table("step", *losses, f"|{HOOK} - {PLAIN}|", f"|{CONTROL} - {PLAIN}|", box=None)
    drift = {name: np.abs(np.array(losses[name]) - plain) for name in (HOOK, CONTROL)}
    for step in steps:
        table.add_row(
            str(step + 1), *(f"{losses[name][step]:.6f}" for name in losses),
            *(f"{drift[name][: step + 1].max():.1e}" for name in (HOOK, CONTROL)),
        )  # fmt: skip
    console.print(table)
    console.print("the last two columns: the largest so far")
    timed = {name: seconds[name][WARM_UP:] for name in seconds}
    ratios = {name: paired_ratio(timed[name], timed[PLAIN]).ratio for name in (PLAIN, HOOK)}
    for name, ratio in ratios.items():
        console.print(
            f"a step, {name}: {median(timed[name]) * 1e3:.1f} ms, {ratio.median:.3f} of {PLAIN}'s "
            f"({ratio.low:.3f}-{ratio.high:.3f})"
        )
    near, faster = drift[HOOK].max() <= NOISE * drift[CONTROL].max(), ratios[HOOK].high < 1
    verdict = (
        "PASSED" if near and faster and len(plain) == asked else "FAILED" if not (near and faster) else "CUT SHORT"
    )
    console.print(
        f"{verdict}: {len(plain)} of {asked} steps, the loss drifts by {drift[HOOK].max():.1e}, the control's by "
        f"{drift[CONTROL].max():.1e} (allowed: {NOISE:g} times that), steps are {'faster' if faster else 'NOT faster'}"
    )
    return int(verdict != "PASSED")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
