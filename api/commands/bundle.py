"""`autotune export` and `autotune import`: winners as a file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from api.arguments import add_database, add_json
from api.console import CliError, Console
from api.database import open_database
from api.exchange import all_winners, import_winners, nothing_known
from api.settings import Settings
from autotune import bundle

EXPORT_EXAMPLES = """examples:
  autotune export winners.json
  autotune export - --device CPU > winners.json
  autotune export --key team.key winners.json
  autotune export winners.json --json"""
IMPORT_EXAMPLE = """examples:
  autotune import winners.json
  autotune import --key team.key laptop.json server.json"""


def register(commands: Any) -> None:
    """Add both commands."""
    export = commands.add_parser("export", help="write every winner into a file", epilog=EXPORT_EXAMPLES)
    export.add_argument("file", metavar="FILE", help="where to, - for stdout")
    export.add_argument("--key", metavar="KEYFILE", help="sign it, for readers who have the same key")
    export.add_argument("--device", metavar="NAME", help="only those of this device")
    add_database(export)
    add_json(export, "say what was written as JSON on stdout; with - the file itself is the JSON document there")
    export.set_defaults(run=run_export)
    load = commands.add_parser("import", help="merge winners from a file", epilog=IMPORT_EXAMPLE)
    load.add_argument("files", metavar="FILE", nargs="+", help="written by `autotune export`, - for stdin")
    load.add_argument("--key", metavar="KEYFILE", help="take only what was signed with this key")
    add_database(load)
    add_json(load)
    load.set_defaults(run=run_import)


def run_export(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Writes the whole file or nothing."""
    device = args.device.upper() if args.device else None
    with open_database(settings) as store:
        winners = [winner for _, winner in all_winners(store, device=device)]
        if device and not winners:
            raise CliError(f"{nothing_known(device, all_winners(store))}; nothing was written")
    key = bundle.read_key(args.key) if args.key else None
    if args.file == "-":
        console.text(bundle.dump(winners, key=key).decode())
    else:
        bundle.write(args.file, winners, key=key)
        simulated = sum(bool(winner.key.device.simulated) for winner in winners)
        if args.json:
            console.json({"file": args.file, "winners": len(winners) - simulated, "left_out": simulated})
            return 0
        left_out = f", {simulated} of a simulated device left out" if simulated else ""
        console.note(f"{len(winners) - simulated} winners written to {args.file}{left_out}")
    return 0


def run_import(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Reads all of all files before anything is kept."""
    key = bundle.read_key(args.key) if args.key else None
    found = [
        bundle.load(sys.stdin.buffer.read(), key=key) if file == "-" else bundle.read(file, key=key)
        for file in args.files
    ]
    counts = {"imported": 0, "kept": 0}
    with open_database(settings) as store:
        for winners in found:
            counts = {name: count + counts[name] for name, count in import_winners(store, winners).items()}
    if args.json:
        console.json(counts)
    else:
        console.text(f"{counts['imported']} winners imported, {counts['kept']} kept as they were")
    return 0
