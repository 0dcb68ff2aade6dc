"""`autotune run`: a tinygrad program with winners applied, unchanged."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from api.arguments import add_database, add_json
from api.console import Console, UsageError
from api.settings import Settings
from autotune.sources import SourceError, open_source

ON_MISS = ("leave", "tune")
LAUNCHER = Path(__file__).parent.parent / "launch.py"
EXAMPLES = """examples:
  autotune run train.py --epochs 3
  autotune run --source http://127.0.0.1:8000 train.py
  autotune run --source winners.json train.py
  autotune run --json train.py 2> hook.json
  autotune run --source http://127.0.0.1:8000 --on-miss tune train.py    the second run is faster than the first"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("run", help="run a tinygrad program with winners applied", epilog=EXAMPLES)
    parser.add_argument(
        "--source", metavar="URL_OR_FILE",
        help="a service, a database or an exported file (default: AUTOTUNE_SOURCE, AUTOTUNE_URL, the database)",
    )  # fmt: skip
    parser.add_argument(
        "--on-miss", choices=ON_MISS, default=ON_MISS[0],
        help="tune: a service is asked to tune what has no winner, once the program has ended (default leave)",
    )  # fmt: skip
    add_database(parser)
    add_json(parser, "at the end, what the hook did as one JSON line on stderr: stdout is the program's")
    # one argument of all: of two, argparse takes a `--` between them for its own
    parser.add_argument(
        "program", metavar="SCRIPT [ARGS]", nargs=argparse.PARSER, help="the program, and its arguments"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, _: Console) -> int:
    """Becomes the program: its exit status, signals and output are its own."""
    script, *arguments = args.program
    if not Path(script).is_file():
        raise UsageError(f"expected a Python program, found no file {script!r}: check its path")
    source = args.db if args.db and not args.source else settings.run_source
    try:
        open_source(source).close()
    except SourceError as error:
        raise UsageError(str(error)) from None
    if args.on_miss == "tune" and not source.startswith(("http://", "https://")):
        raise UsageError(
            f"expected the address of a service, which can tune, found {source}: start `autotune serve` and give its "
            "address as --source"
        )
    command = [
        sys.executable,
        str(LAUNCHER),
        source,
        args.on_miss,
        "json" if args.json else "text",
        script,
        *arguments,
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)  # noqa: S606 - no shell, a list of arguments
