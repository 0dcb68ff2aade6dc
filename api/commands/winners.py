"""`autotune winners`: everything that is known."""

from __future__ import annotations

import argparse
from typing import Any

from api.arguments import add_database, add_json
from api.commands.remote import client_of
from api.console import Console
from api.documents import winner_document
from api.exchange import all_winners, nothing_known
from api.settings import Settings
from api.tables import winners_csv, winners_table
from autotune.winner import Winner

EXAMPLES = """examples:
  autotune winners --device CPU
  autotune winners --format csv > winners.csv"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("winners", help="the best lowering of every known shape", epilog=EXAMPLES)
    parser.add_argument("--device", metavar="NAME", help="only those of this device")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default table")
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prints them all, latest first."""
    device = args.device.upper() if args.device else None
    find = _remote if settings.url else _local
    found = find(settings, device)
    if args.json or args.format == "json":
        console.json({"winners": [winner_document(winner_id, winner) for winner_id, winner in found]})
    elif args.format == "csv":
        console.text(winners_csv(found))
    elif found:
        console.table(winners_table([winner for _, winner in found], console.width))
    else:
        why = nothing_known(device, find(settings, None)) if device else "no winners yet"
        console.note(f"{why}; find one with `autotune tune 1x64x56x56 64x64x3x3 --padding 1`")
    return 0


def _remote(settings: Settings, device: str | None) -> list[tuple[int, Winner]]:
    return list(client_of(settings).winners(device=device))


def _local(settings: Settings, device: str | None) -> list[tuple[int, Winner]]:
    from api.database import open_database

    with open_database(settings) as store:
        return all_winners(store, device=device)
