"""`make run`: a real network made faster, before your eyes.

Starts the service, finds ResNet-18's convolutions, tunes the distinct ones, 3x3 of stride 1 the longest, prints each
winner next to tinygrad's own lowerings, then runs the whole network with and without the hook, interleaved. The page
stays up on a terminal; without one the command ends.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tinygrad import Context, Device, Tensor

import autotune
from api.commands.remote import shape_body
from api.commands.serve import SERVING
from api.console import CliError
from api.progress_bar import describe
from api.tables import winners_table
from api.text import shorten
from api.units import duration, fraction, ratio_text
from autotune.client import Client, ServiceError, ServiceUnreachableError
from autotune.comparison import captured, compare
from autotune.compiler import CCompilerError, ensure_c_compiler
from autotune.models import resnet18
from strategies.graph.find import find_convolutions
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape

START_TIMEOUT_S, STOP_TIMEOUT_S, POLL_S = 60.0, 10.0, 0.2
ROUNDS = 9
COMPARISON_S = 45.0
SHARE = 1 / 3
"""Of a convolution's budget, what one has that no Winograd is for: there is less to choose from."""
BAR = 14
FIXED = 2 + BAR + 1 + 7 + 1 + 4 + 1 + 7 + 3
"""Columns of a progress line without its two texts: spinner, bar, elapsed, `left`, remaining, what separates them."""
WIDTH = 160
"""Of the tables where there is no window to fit."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when the tables are printed, 1 with one line when something stands in the way."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    try:
        with _service(options) as client:
            _show(options, client, console)
            if sys.stdin.isatty() and sys.stdout.isatty():
                console.print(f"\nThe dashboard stays up at [bold]{client.url}[/bold]. Ctrl-C ends it.")
                threading.Event().wait()
    except KeyboardInterrupt:
        console.print("\nEnded. What was measured is kept: the next `make run` goes on from there.")
    except (CliError, CCompilerError, ServiceError, ServiceUnreachableError) as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget", type=float, default=24.0, metavar="SECONDS",
        help="per 3x3 convolution of stride 1 (24); any other has a third of it",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="of the service on 127.0.0.1 (8000)")
    parser.add_argument("--db", default=None, help="the database (default: that of `autotune serve`)")
    return parser.parse_args(arguments)


def _show(options: argparse.Namespace, client: Client, console: Console) -> None:
    ensure_c_compiler()
    console.print(f"[bold]tinygrad-autotune[/bold] on {Device.DEFAULT}, service at {client.url}\n")
    model, image = resnet18()
    found = find_convolutions(lambda: model(image))
    winograd = [shape for shape in found if shape.kernel == (3, 3) and shape.stride == (1, 1)]
    others = [shape for shape in found if shape not in winograd]
    jobs = [(winograd, options.budget), (others, options.budget * SHARE)]
    total = sum(len(shapes) * budget for shapes, budget in jobs)
    console.print(
        f"ResNet-18 at {'x'.join(map(str, image.shape))} has {found.total()} convolutions: "
        f"{sum(found[s] for s in winograd)} 3x3 convolutions of stride 1 in {len(winograd)} shapes, each tuned for "
        f"{options.budget:g} s, and {len(others)} other shapes, each for {options.budget * SHARE:g} s: about "
        f"{minutes(total + COMPARISON_S)} in all.\n"
    )
    keys = [key for shapes, budget in jobs for key in _tune(client, shapes, budget, console)]
    winners = client.lookup_keys(keys)
    console.print(winners_table([winners[key.digest] for key in keys if key.digest in winners], console.width))
    console.print(
        "\n[dim]ratio: winner over the better of tinygrad's own two, with its 95% interval; lower is better. error: "
        "largest against float64, relative to the largest output. What your window has no room for is left out.[/dim]\n"
    )
    _compare(lambda: model(image), client.url, console)


def _tune(client: Client, shapes: list[ConvShape], budget_s: float, console: Console) -> list[ConvKey]:
    """One job for all shapes, followed to its end."""
    submitted = client.tune(
        {"shapes": [shape_body(shape, Policy(), None) for shape in shapes], "budget": budget_s}
    )  # fmt: skip
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(BAR), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[said]}", markup=False),
    )  # fmt: skip
    job = submitted
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tuning", total=float(len(shapes)), said="")
        for job in client.follow(submitted["id"]):
            said = job["progress"]
            completed = min(job["done_keys"] + fraction(said), len(shapes))
            which = f"{min(job['done_keys'] + 1, len(shapes))} of {len(shapes)}"
            room = max(1, console.width - FIXED - len(which))
            bar.update(task, completed=completed, description=which, said=shorten(describe(said), room))
    if job["state"] != "done":
        raise CliError(f"tuning ended as {job['state']}: {job['error'] or 'no reason given'}; see {client.url}")
    return [ConvKey.from_json(key) for key in job["keys"]]


def _compare(build: Callable[[], Tensor], url: str, console: Console) -> None:
    """The whole network three ways, captured by TinyJit, in interleaved rounds."""
    doing = f"running the whole network three ways, {ROUNDS} rounds: up to a minute"
    if not console.is_terminal:
        console.print(f"{doing}\n")
    before = autotune.stats()
    with console.status(doing):
        runs = {
            "tinygrad": captured(build, contextlib.nullcontext()),
            "tinygrad, WINO=1": captured(build, Context(WINO=1)),
            "with the hook": captured(build, autotune.tuned(url)),
        }
        found = compare(runs, ROUNDS)
    after = autotune.stats()
    console.print("  time and its ratio to plain tinygrad's (95% interval), lower is better:\n")
    for name in runs:
        taken = duration(found.median_s(name))
        console.print(f"  ResNet-18, {name:<17} {taken:>8}   {ratio_text(found.ratio(name))}")
    console.print(
        f"\n  largest difference of the outputs: {found.difference('with the hook'):.1e} of the largest one; "
        f"{after.hits - before.hits} of {after.convolutions - before.convolutions} convolutions found a winner."
    )
    console.print(f'\nIn a program of yours:  [bold]import autotune; autotune.install("{url}")[/bold]')


def minutes(seconds: float) -> str:
    """`1 minute`, `4 minutes`."""
    count = max(1, round(seconds / 60))
    return f"{count} minute{'' if count == 1 else 's'}"


@contextlib.contextmanager
def _service(options: argparse.Namespace) -> Iterator[Client]:
    """`autotune serve` in a process of its own, until the block ends. Raises CliError if it does not start."""
    command = [sys.executable, "-m", "api.cli", "serve", "--port", str(options.port)]
    command += ["--db", options.db] if options.db else []
    with tempfile.NamedTemporaryFile("r") as said, Path(said.name).open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            yield Client(_address(process, said))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    """What the service says when it listens; its last line says why it does not."""
    give_up_at = time.monotonic() + START_TIMEOUT_S
    lines: list[str] = []
    while process.poll() is None and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
        lines += said.read().splitlines()
        for line in lines:
            if line.startswith(SERVING):
                return line.rsplit(" ", 1)[1]
    lines += said.read().splitlines()
    reason = lines[-1].removeprefix("autotune: ") if lines else "it said nothing"
    for option, example in (("--port", "--port 8001"), ("--db", "--db demo.db")):
        if option in reason:
            reason += f'. Here that is written: make run ARGS="{example}"'
    raise CliError(f"the service did not start: {reason}")


if __name__ == "__main__":
    raise SystemExit(main())
