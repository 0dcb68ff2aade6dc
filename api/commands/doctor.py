"""`autotune doctor`: what is there, what is missing, what to do about it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from rich.table import Table
from rich.text import Text

from api.arguments import add_database, add_json
from api.console import Console
from api.doctor import Check, Level, examine
from api.doctor_server import examine_server
from api.settings import Settings

EXAMPLES = """examples:
  autotune doctor
  autotune doctor --json
  autotune doctor --server http://127.0.0.1:8000"""
STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "red"}


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="what is there, what is missing, what to do about it", epilog=EXAMPLES)
    parser.add_argument(
        "--server", nargs="?", const="", metavar="URL",
        help="examine a running service instead (default: AUTOTUNE_URL, else http://127.0.0.1:8000)",
    )  # fmt: skip
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """1 if something is missing that tuning needs."""
    checks = examine(settings) if args.server is None else examine_server(_server(args.server, settings))
    healthy = all(check.level is not Level.FAULT for check in checks)
    if args.json:
        console.json({"healthy": healthy, "checks": [check.to_json() for check in checks]})
    else:
        console.table(_table(checks))
    if not healthy:
        console.error(next(f"{c.name}: {c.found}; {c.advice}" for c in checks if c.level is Level.FAULT))
    return 0 if healthy else 1


def _server(url: str, settings: Settings) -> Settings:
    return replace(settings, url=(url or settings.url or f"http://127.0.0.1:{settings.port}").rstrip("/"))


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column("level", no_wrap=True)
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("found", overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.advice:
            found.append(f"\n{check.advice}", style=STYLES[check.level])
        table.add_row(Text(str(check.level), style=STYLES[check.level]), check.name, found)
    return table
