"""`autotune winners`: everything that is known."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from api.arguments import add_database, add_json
from api.commands.remote import client_of
from api.console import CliError, Console, UsageError
from api.documents import winner_document
from api.exchange import all_winners, nothing_known
from api.plots import SUFFIXES, is_picture, ratio_chart, write_plot
from api.settings import Settings
from api.tables import winners_csv, winners_table
from autotune.neighbours import is_stale
from autotune.winner import Winner
from strategies.key import DeviceSpec

EXAMPLES = """examples:
  autotune winners --device CPU
  autotune winners --format csv > winners.csv
  autotune winners --plot                      draw them in the terminal
  autotune winners --plot winners.svg          or into a file: PNG or SVG"""
TERMINAL = "-"
PLOT_WIDTH = 120


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("winners", help="the best lowering of every known shape", epilog=EXAMPLES)
    parser.add_argument("--device", metavar="NAME", help="only those of this device")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default table")
    parser.add_argument(
        "--plot", nargs="?", const=TERMINAL, metavar="FILE", help="draw the ratios: here, or into FILE.png or FILE.svg"
    )
    parser.add_argument(
        "--stale", action="store_true", help="only those of another driver, system, compiler or tinygrad than here"
    )
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prints them all, latest first."""
    if args.plot not in (None, TERMINAL) and not is_picture(args.plot):
        raise UsageError(f"expected a file that ends in {' or '.join(SUFFIXES)}, found {args.plot!r}: name it so")
    device = args.device.upper() if args.device else None
    find = _remote if settings.url else _local
    found = find(settings, device)
    if args.stale:
        found = stale(found)
    if args.json or args.format == "json":
        console.json({"winners": [winner_document(winner_id, winner) for winner_id, winner in found]})
    elif args.format == "csv":
        console.text(winners_csv(found))
    elif found and args.plot:
        _plot([winner for _, winner in found], args.plot, console)
    elif found:
        console.table(winners_table([winner for _, winner in found], console.width))
    else:
        why = nothing_known(device, find(settings, None)) if device else "no winners yet"
        console.note(f"{why}; find one with `autotune tune 1x64x56x56 64x64x3x3 --padding 1`")
    return 0


def stale(found: list[tuple[int, Winner]]) -> list[tuple[int, Winner]]:
    """Those whose device this machine has, but not as they were measured: lookups serve them as provisional, and
    `autotune tune` holds them against the defaults before anything else."""
    from api.devices import ProbedDevices, UnknownDeviceError

    devices, here = ProbedDevices(), dict[str, DeviceSpec | None]()
    for _, winner in found:
        name = winner.key.device.device
        if name not in here:
            try:
                here[name] = devices.describe(name)
            except UnknownDeviceError:
                here[name] = None
    return [(winner_id, winner) for winner_id, winner in found if _is_stale(winner, here[winner.key.device.device])]


def _is_stale(winner: Winner, device: DeviceSpec | None) -> bool:
    return device is not None and is_stale(winner, replace(winner.key, device=device))


def _plot(winners: list[Winner], target: str, console: Console) -> None:
    if target == TERMINAL:
        console.table(ratio_chart(winners, min(console.width, PLOT_WIDTH)))
        return
    try:
        write_plot(winners, target)
    except ImportError:
        raise CliError(
            "expected matplotlib, found it is not installed: pip install 'tinygrad-autotune[plot]'"
        ) from None
    console.note(f"{len(winners)} winners drawn into {target}")


def _remote(settings: Settings, device: str | None) -> list[tuple[int, Winner]]:
    return list(client_of(settings).winners(device=device))


def _local(settings: Settings, device: str | None) -> list[tuple[int, Winner]]:
    from api.database import open_database

    with open_database(settings) as store:
        return all_winners(store, device=device)
