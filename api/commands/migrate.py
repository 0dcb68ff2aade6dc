"""`autotune migrate`: set up or upgrade a server's database as its owner, for roles that may not."""

from __future__ import annotations

import argparse
from typing import Any

from api.arguments import add_database, add_json
from api.console import Console
from api.database import open_database
from api.settings import Settings

EXAMPLES = """examples:
  autotune migrate --db postgresql+psycopg://autotune_owner@db.example/autotune

A database in a file, and one whose service is its owner, need none of this: whoever opens them first migrates them.
Where `autotune serve` has the role autotune_service, and workers the role autotune_worker, neither of which may change
tables, their owner runs this before a new release of the service starts."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("migrate", help="set up or upgrade a database as its owner", epilog=EXAMPLES)
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Opening migrates; then the queue, and the rights of the other roles."""
    with open_database(settings) as store:
        if store.serves_fleet:
            store.prepare_queue()
            store.grant_rights()
        if args.json:
            console.json({"database": str(store), "schema": store.revision()})
        else:
            console.text(f"{store}: schema {store.revision()}")
    return 0
