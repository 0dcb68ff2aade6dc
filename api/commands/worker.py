"""`autotune worker`: measure for services elsewhere, on a device of this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from api.arguments import add_database, add_json
from api.console import CliError, Console
from api.settings import Settings

if TYPE_CHECKING:
    from db import SqlStore

HEARD_S = 60.0
EXAMPLES = """examples:
  autotune worker --device METAL --db postgresql+psycopg://worker@host/autotune
  autotune worker                        the best device, the database of AUTOTUNE_DB

It dials out to PostgreSQL and listens nowhere. Exit status 0: told to end (SIGTERM, Ctrl-C; what was under way was
finished; after 45 s, or a second signal, it is given up). 74: the device failed a test, or the worker was stuck. 75:
the database was lost or is not there. Start it again after both (docs/workers has files for launchd and systemd).
1: the device cannot be used. 2: wrong usage."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("worker", help="measure for services elsewhere", epilog=EXAMPLES)
    parser.add_argument("--device", metavar="NAME", default="auto", help="METAL, CUDA, CPU, ...; default: the best")
    parser.add_argument(
        "--check", action="store_true", help="only say whether a worker of this machine was heard of lately"
    )
    add_database(parser)
    add_json(parser, "one JSON line on stdout as soon as it is ready, and its log as JSON lines on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Works until it is told to end."""
    import logging

    from api.devices import ProbedDevices
    from api.logs import configure
    from api.worker import DATABASE_LOST, FleetWorker
    from autotune.compiler import CCompilerError, ensure_c_compiler
    from db import DatabaseBusyError, DatabaseUnreachableError, open_store

    configure("json" if args.json else settings.log_format)
    for library in ("procrastinate", "psycopg.pool"):  # tracebacks of what the worker says in one line
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        if not args.check:  # which is run every minute, beside what is measured: it compiles nothing
            ensure_c_compiler()
    except CCompilerError as error:  # a GPU needs none
        console.note(f"autotune: {error}")
    device = None if args.device == "auto" else args.device
    if "://" not in settings.db:
        raise CliError(
            f"expected a PostgreSQL server, which workers share, found {settings.db}: name one with --db",
            status=2,
        )
    try:
        with open_store(settings.db) as store:
            if args.check:
                return check(store, console, as_json=args.json)
            worker = FleetWorker(store, ProbedDevices(), device)
            if args.json:
                said = {"event": "working", "worker": worker.name, "queue": worker.queue, "database": str(store)}
                console.json_line(said)
            else:
                console.note(f"autotune: worker {worker.name} for {worker.queue} at {store}")
            return worker.run()
    except (DatabaseUnreachableError, DatabaseBusyError) as error:
        raise CliError(str(error), status=DATABASE_LOST) from None


def check(store: SqlStore, console: Console, *, as_json: bool = False) -> int:
    """0 if a worker of this machine was heard of within the last minute, 1 if not."""
    import platform

    mine = [w for w in store.workers() if w.name.startswith(f"{platform.node()}:") and not w.ended]
    heard = min((worker.silent_s for worker in mine), default=None)
    if heard is None or heard > HEARD_S:
        since = "never" if heard is None else f"{heard:.0f} s ago"
        raise CliError(f"expected a worker of {platform.node()} within the last {HEARD_S:.0f} s, found it last {since}")
    unfit = next((f"{worker.name} takes no more work: {worker.unfit}" for worker in mine if worker.unfit), "")
    if unfit and not any(worker.fit for worker in mine):
        raise CliError(f"expected a worker of {platform.node()} that takes work, found that {unfit}")
    if as_json:
        console.json({"heard": True, "silent_s": heard})
    else:
        console.note(f"heard of {heard:.0f} s ago")
    return 0
