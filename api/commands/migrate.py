"""`autotune migrate`: set up or upgrade a server's database as its owner, for roles that may not; or go back."""

from __future__ import annotations

import argparse
from typing import Any

from api.arguments import add_database, add_json
from api.console import Console
from api.database import open_database
from api.settings import Settings

EXAMPLES = """examples:
  autotune migrate --db postgresql+psycopg://autotune_owner@db.example/autotune
  autotune migrate --to 0007      back to what an older release can open

A database in a file, and one whose service is its owner, need none of this: whoever opens them first migrates them.
Where `autotune serve` has the role autotune_service, and workers the role autotune_worker, neither of which may change
tables, their owner runs this before a new release of the service starts.

Before an older release is installed again, end the services and workers, `autotune backup`, and go back with --to to
the schema that it expects, which it names when it refuses a newer one. What that has no place for is lost, such as
tokens before 0004 and what workers are asked for before 0005; winners and measurements are kept. This release upgrades
the database again as soon as it opens it."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("migrate", help="set up or upgrade a database as its owner", epilog=EXAMPLES)
    add_database(parser)
    parser.add_argument("--to", metavar="SCHEMA", help="go back to this older schema: four digits")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Opening migrates; then the queue, and the rights of the other roles."""
    with open_database(settings) as store:
        if args.to is not None:
            store.migrate_back(args.to)
        elif store.serves_fleet:
            store.prepare_queue()
            store.grant_rights()
        if args.json:
            console.json({"database": str(store), "schema": store.revision()})
        else:
            console.text(f"{store}: schema {store.revision()}")
    return 0
