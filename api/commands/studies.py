"""`autotune studies`: what was measured, in Optuna's own dashboard."""

from __future__ import annotations

import argparse
from typing import Any

from api.arguments import add_database, add_json
from api.console import CliError, Console
from api.database import open_database
from api.exchange import all_winners
from api.settings import Settings

PORT = 8081
EXAMPLES = """examples:
  autotune studies
  autotune studies --device CPU --port 8082

It shows a copy in memory on a port of its own: whatever is done there, the measurements stay as they are."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("studies", help="the searches in Optuna's dashboard", epilog=EXAMPLES)
    parser.add_argument("--device", metavar="NAME", help="only those of this device")
    parser.add_argument("--port", type=int, metavar="N", default=PORT, help=f"default {PORT}")
    add_database(parser)
    add_json(parser, "say where it is as one JSON line on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Serves until it is interrupted."""
    try:
        import optuna_dashboard
    except ImportError:
        raise CliError(
            "expected optuna-dashboard, found it is not installed: pip install 'tinygrad-autotune[studies]'"
        ) from None
    from api.server import PortError, listen
    from api.studies import studies
    from api.studies_link import announced

    with open_database(settings) as store:
        database = str(store)
        winners = [winner for _, winner in all_winners(store, device=args.device.upper() if args.device else None)]
        storage = studies(store, winners)
    if not storage.get_all_studies():
        raise CliError("expected measurements to show, found none: `autotune tune` makes some")
    try:
        listen("127.0.0.1", args.port).close()  # says what is wrong in our words
    except PortError as error:
        raise CliError(str(error)) from None
    url = f"http://127.0.0.1:{args.port}"
    count = len(storage.get_all_studies())
    if args.json:
        console.json_line({"event": "serving", "url": url, "searches": count, "database": database})
    else:
        console.note(f"autotune: Optuna's dashboard on a copy of {count} searches at {url}")
    with announced(database, url):
        optuna_dashboard.run_server(storage, host="127.0.0.1", port=args.port)
    return 0
