"""`autotune serve`: the service and its job runner in one process."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.arguments import add_database, add_json
from api.console import CliError, Console
from api.logs import to_stderr
from api.settings import LOG_FORMATS, Settings

if TYPE_CHECKING:
    from api.devices import Devices
    from api.lanes import Lanes
    from db import SqlStore

LOCK_TIMEOUT_S = 20.0
"""How long a search waits for a device before its job says that it waits, and for whom. It then waits anew, behind
others: much shorter than their measurements, its turn would never come."""
SERVING = "autotune: serving"
"""How the line begins that is written once requests are answered; it ends in the address."""
EXAMPLES = """examples:
  autotune serve
  autotune serve --port 0 --db /var/lib/autotune/autotune.db
  autotune serve --json                  for a program that starts it: where it is, as JSON"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("serve", help="tune and look up over HTTP, with a page", epilog=EXAMPLES)
    parser.add_argument("--host", metavar="ADDRESS", help="default 127.0.0.1: only this machine")
    parser.add_argument("--port", type=int, metavar="N", help="default 8000; 0 for any free one")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append",
        help="a name under which others reach it, as through a reverse proxy; may be repeated (AUTOTUNE_HOSTS)",
    )  # fmt: skip
    parser.add_argument(
        "--public-reads", action="store_true",
        help="beyond this machine, too, reading needs no token (AUTOTUNE_PUBLIC_READS=1)",
    )  # fmt: skip
    parser.add_argument("--log-format", choices=LOG_FORMATS, help="on stderr (AUTOTUNE_LOG_FORMAT; default text)")
    add_database(parser)
    add_json(parser, "one JSON line on stdout as soon as it is ready, and its log as JSON lines on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Serves until it is told to end; jobs that are not done go on at the next start."""
    from api.app import create_app
    from api.database import open_database
    from api.server import PortError, Server, listen, share_one_heap
    from autotune.compiler import CCompilerError, ensure_c_compiler

    share_one_heap()  # before there are threads
    try:
        sock = listen(settings.host, settings.port)
    except PortError as error:
        raise CliError(str(error)) from None
    logs = to_stderr("json" if args.json else settings.log_format)
    with sock, logs, only_service(settings), open_database(settings) as store:
        try:
            ensure_c_compiler()
        except CCompilerError as error:  # a GPU needs none: the jobs of the CPU will say it again
            console.note(f"autotune: {error}")
        if settings.guarded and not any(token.holds(time.time()) for token in store.tokens()):
            console.note("autotune: nobody has a token yet: make one with `autotune token create NAME --scope tune`")
        devices, remembered, lanes = devices_and_lanes(store, settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{sock.getsockname()[1]}"
        app = create_app(store, lanes, settings, devices=devices, remembered=remembered)

        def ready() -> None:
            if args.json:
                console.json_line({"event": "serving", "url": address, "database": str(store)})
            else:
                console.note(f"{SERVING} {store} at {address}")

        server = Server(app, ready)
        # uvicorn raises the signal again when it is done: SIGTERM would then end us before anything is closed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[sock])
        # Lanes are not closed: that would wait for a measurement. Their children end with this process.
        return 0 if server.started else 1


def devices_and_lanes(store: SqlStore, settings: Settings) -> tuple[Devices, Devices, Lanes]:
    """Of this machine for a database in a file; of workers, wherever they are, for one on a server. The second are
    the devices for readers."""
    from api.devices import ProbedDevices, RememberedDevices

    local = ProbedDevices()
    remembered = RememberedDevices(local).start()
    if store.serves_fleet:
        from api.fleet import FleetDevices, FleetLanes

        store.prepare_queue()
        lanes = FleetLanes(store, most_lost=settings.most_lost)
        return FleetDevices(store, local), FleetDevices(store, remembered), lanes
    from api.lanes import LocalLanes
    from autotune.local_runner import LocalRunner

    # Lanes look at what is remembered: they never wait for a device that a request has opened.
    return local, remembered, LocalLanes(remembered, lambda device: LocalRunner(device, lock_timeout_s=LOCK_TIMEOUT_S))


@contextlib.contextmanager
def only_service(settings: Settings) -> Iterator[None]:
    """Two services on one file would each take the other's running jobs for abandoned ones. Before the database is
    opened, which upgrades it. Raises CliError, DatabaseError."""
    import fcntl

    from api.database import make_place
    from db.address import dialect_for
    from db.sqlite import Sqlite

    database = dialect_for(settings.db, 0.0)
    if not isinstance(database, Sqlite):
        yield
        return
    make_place(settings)
    database.check_access()
    path = Path(f"{os.path.realpath(database.path)}.serve.lock")  # one file, however it is spelled
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(f"another service works on {database}: end it, or give this one another --db") from None
        yield
