"""`autotune explain`: why a winner won, kernel by kernel."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from api.arguments import add_database, add_json, add_shape, policy_of, shape_of
from api.commands.lookup import find
from api.commands.remote import client_of
from api.console import CliError, Console
from api.documents import finite
from api.settings import Settings
from api.units import amount, duration, lowering, share_text
from autotune.winner import Interval, Winner
from strategies.candidate import Candidate
from strategies.shape import JsonObject

EXAMPLES = """examples:
  autotune explain 1x64x56x56 64x64x3x3 --padding 1
  autotune explain 1x64x56x56 64x64x3x3 --padding 1 --source > kernels.txt

Operations and bytes are tinygrad's estimates. A kernel's floor is the larger of its operations at the device's peak
and its bytes at the device's bandwidth, both measured once and remembered; at 100% of the floor it is as fast as the
device goes. Data that stay in a cache and tensor cores may exceed it."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("explain", help="why a winner won, kernel by kernel", epilog=EXAMPLES)
    add_shape(parser)
    parser.add_argument("--source", action="store_true", help="print what was compiled, too")
    parser.add_argument("--calibrate", action="store_true", help="measure the device's peak and bandwidth again")
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prints the winner's and the default's kernels against the roofline; 1 if nothing is known of the shape."""
    winner, miss, _ = find(args, settings, shape_of(args), policy_of(args))
    if winner is None:
        raise CliError(miss)
    document = (_remote if settings.url else _local)(args, settings, console, winner)
    if args.json:
        console.json(document)
        return 0
    show(document, console)
    if args.source:
        console.text(sources(document))
    return 0


def _local(args: argparse.Namespace, settings: Settings, console: Console, winner: Winner) -> JsonObject:
    from api.database import open_database
    from autotune.explanation import explain
    from autotune.peak_cache import PeakCache

    with open_database(settings) as store:
        explanation = explain(
            store, winner, peaks=PeakCache.of_user(), source=args.source, calibrate=args.calibrate,
            on_wait=console.note,
        )  # fmt: skip
    document: JsonObject = finite(explanation.to_json())
    return document


def _remote(args: argparse.Namespace, settings: Settings, _: Console, winner: Winner) -> JsonObject:
    client, device = client_of(settings), winner.key.device.device
    ids = (winner_id for winner_id, w in client.winners(device=device) if w.key.digest == winner.key.digest)
    winner_id = next(ids, None)
    if winner_id is None:
        raise CliError(f"the winner of {winner.key} is gone from {settings.url}: look it up again")
    return client.kernels(winner_id, source=args.source)


def show(document: JsonObject, console: Console) -> None:
    """Both programs' kernels, then what they mean in sentences."""
    winner, default, floor = document["winner"], document["default"], document["floor"]
    console.text(f"{document['name']}: {_name(winner)} takes {_interval(winner)}")
    console.table(_kernels(winner))
    if default is not None:
        console.text(f"\nthe better default, {_name(default)}, takes {_interval(default)}")
        console.table(_kernels(default))
    peak = document["peak"]
    largest = peak["streams"][-1][1]
    console.text(
        f"\nthe convolution's own floor is {duration(floor['seconds'])} ({amount(floor['operations'])}op after "
        f"F(4, 3)'s saving of {floor['saving']:g}, {amount(floor['bytes'])}B moved; bound by {floor['bound']}): "
        f"{share_text(document['share'])} of it is reached\n"
        f"the device: {amount(peak['operations_per_s'])}op/s ({peak['method']}), {amount(largest)}B/s from memory"
    )
    if (index := winner["attack"]) is not None:
        kernel = winner["kernels"][index]
        excess = max(0.0, kernel["time_s"] - kernel["floor_s"])
        console.text(f"next to attack: {kernel['role']} ({kernel['name']}), {duration(excess)} above its floor")
    console.text(_runner_up(document["runner_up"]))


def sources(document: JsonObject) -> str:
    """Every kernel of the winner as it was compiled, each under a line with its name."""
    kernels = document["winner"]["kernels"]
    return "\n".join(f"// {kernel['role']}: {kernel['name']}\n{kernel['source']}\n" for kernel in kernels)


def _kernels(program: JsonObject) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("kernel", "time", "of all", "operations", "bytes", "floor", "of the floor", "name"):
        table.add_column(name, justify="left" if name in ("kernel", "name") else "right", no_wrap=name != "name")
    total = sum(kernel["time_s"] or 0.0 for kernel in program["kernels"])
    for kernel in program["kernels"]:
        seconds = kernel["time_s"]
        table.add_row(
            kernel["role"], duration(seconds) if seconds else "-", share_text(seconds / total) if seconds else "-",
            amount(kernel["operations"]), amount(kernel["bytes"]), duration(kernel["floor_s"]),
            share_text(kernel["share"]) if kernel["share"] else "-", kernel["name"],
        )  # fmt: skip
    return table


def _name(program: JsonObject) -> str:
    return lowering(Candidate.from_json(program["candidate"]))


def _interval(program: JsonObject) -> str:
    time_s = Interval.from_json(program["time_s"])
    return f"{duration(time_s.median)} ({duration(time_s.low)} to {duration(time_s.high)})"


def _runner_up(second: JsonObject | None) -> str:
    if second is None:
        return "runner-up: none is known"
    text = f"runner-up: {second['name']}, {second['ratio']:.2f} times the winner's time"
    if second["interval"] is not None:
        text += f" ({second['interval'][1]:.2f} to {second['interval'][2]:.2f})"
    return text
