"""`autotune pin`, `revoke`, `ban` and `restore`: what a person decides about a winner."""

from __future__ import annotations

import argparse
from typing import Any

from api.arguments import add_database, add_json
from api.commands.remote import client_of
from api.console import CliError, Console
from api.documents import winner_document
from api.settings import Settings
from autotune.winner import Winner, WinnerState

ACTIONS = {
    "pin": (WinnerState.PINNED, "keep a winner: tuning no longer replaces it"),
    "revoke": (WinnerState.REVOKED, "withdraw a winner: nobody applies it, nor another for that shape"),
    "ban": (WinnerState.BANNED, "withdraw a winner: it may never win that shape again, another may"),
    "restore": (WinnerState.VERIFIED, "take any of these back"),
}


def register(commands: Any) -> None:
    """Add the commands."""
    for name, (_, what) in ACTIONS.items():
        epilog = f"examples:\n  autotune {name} 7\n  autotune {name} 7 12\n\n`autotune winners --json` has the ids."
        parser = commands.add_parser(name, help=what, epilog=epilog)
        parser.add_argument("ids", metavar="ID", nargs="+", type=int, help="of a winner, current or former")
        add_database(parser)
        add_json(parser)
        parser.set_defaults(run=run, action=name)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """One after the other; ends at the first that there is none of."""
    state = ACTIONS[args.action][0]
    change = _remote if settings.url else _local
    changed = change(settings, args.ids, state)
    if args.json:
        documents = [winner_document(winner_id, winner) for winner_id, winner in zip(args.ids, changed, strict=True)]
        console.json({"winners": documents})
    else:
        for winner_id, winner in zip(args.ids, changed, strict=True):
            console.text(f"{winner_id}: {winner.candidate} for {winner.key} is {winner.state}")
    return 0


def _remote(settings: Settings, ids: list[int], state: WinnerState) -> list[Winner]:
    client = client_of(settings)
    return [client.set_state(winner_id, state) for winner_id in ids]


def _local(settings: Settings, ids: list[int], state: WinnerState) -> list[Winner]:
    from api.database import open_database

    with open_database(settings) as store:
        try:
            return [store.set_state(winner_id, state) for winner_id in ids]
        except LookupError as error:
            raise CliError(str(error)) from None
