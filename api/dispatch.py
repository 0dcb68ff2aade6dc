"""What the `autotune` command does: one file per command in api/commands, one line per error."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from api.arguments import Parser
from api.commands import (
    bundle,
    completion,
    doctor,
    explain,
    hold,
    lookup,
    migrate,
    model,
    phases,
    run,
    serve,
    studies,
    sweep,
    token,
    tune,
    upkeep,
    winners,
    worker,
)
from api.console import CliError, Console
from api.devices import UnknownDeviceError
from api.settings import Settings, SettingsError
from api.units import AgeError
from autotune.bundle import BundleError
from autotune.client import ServiceError, ServiceUnreachableError
from autotune.compiler import CCompilerError
from autotune.device_lock import DeviceBusyError
from autotune.job import BudgetError
from autotune.runner import DeviceUnavailableError
from autotune.task import TaskError
from db import DatabaseError
from strategies.key import KeyFormatError
from strategies.shape import ShapeError

USAGE_ERRORS = (ShapeError, BudgetError, KeyFormatError, SettingsError, AgeError)
"""What was asked for makes no sense, whatever the machine: exit status 2."""

KNOWN_ERRORS = (
    BundleError, CCompilerError, DatabaseError, DeviceBusyError, DeviceUnavailableError, ServiceError,
    ServiceUnreachableError, TaskError, UnknownDeviceError, OSError,
)  # fmt: skip
"""Their messages are written for the user: exit status 1."""

INTERRUPTED = 130

EXAMPLES = """examples:
  autotune tune 1x64x56x56 64x64x3x3 --padding 1     find the fastest lowering of one convolution
  autotune winners                                   what is known
  autotune explain 1x64x56x56 64x64x3x3 --padding 1  why it won, kernel by kernel
  autotune model resnet18                            every convolution of a network
  autotune run script.py                             run a tinygrad program with it
  autotune serve                                     the same over HTTP, with a page

Shapes are written as tinygrad prints them: input, then weight. With AUTOTUNE_URL set, tune, lookup and winners
talk to that service; else they work in this process, on the database of AUTOTUNE_DB or --db."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit status 0 done, 2 wrong usage, 1 anything else, 130 interrupted."""
    prepare_streams()
    console = Console()
    try:
        args = build_parser().parse_args(argv)
        settings = Settings.from_environment(
            os.environ, db=getattr(args, "db", None), source=getattr(args, "source", None),
            host=getattr(args, "host", None), port=getattr(args, "port", None),
            hosts=getattr(args, "allow_host", None), public_reads=getattr(args, "public_reads", False),
            log_format=getattr(args, "log_format", None),
        )  # fmt: skip
        status: int = args.run(args, settings, console)
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # argparse after --help and --version
        return stop.code if isinstance(stop.code, int) else 1
    except CliError as error:
        console.error(str(error))
        return error.status
    except USAGE_ERRORS as error:
        console.error(str(error))
        return 2
    except BrokenPipeError:  # `autotune winners | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KNOWN_ERRORS as error:
        console.error(str(error))
        return 1
    except KeyboardInterrupt:
        console.error("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a bug, told in one line like everything else
        if os.environ.get("AUTOTUNE_DEBUG"):
            traceback.print_exc()
        console.error(f"a bug: {type(error).__name__}: {error}; AUTOTUNE_DEBUG=1 shows where")
        return 1


def prepare_streams() -> None:
    """Whoever started us may have closed one, or want an encoding that has no letter for microseconds."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - not handed on to what `run` becomes
        elif isinstance(stream, io.TextIOWrapper) and "utf" not in stream.encoding.lower():
            stream.reconfigure(errors="replace")


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = Parser(
        prog="autotune", description="The fastest correct lowering of each convolution in tinygrad.", epilog=EXAMPLES
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (
        tune,
        lookup,
        winners,
        explain,
        model,
        phases,
        sweep,
        run,
        serve,
        worker,
        bundle,
        doctor,
        token,
        hold,
        migrate,
        upkeep,
        studies,
        completion,
    ):
        module.register(commands)
    return parser


class Version(argparse.Action):
    """Asks for the installed version only when somebody wants it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from api.release import release

        sys.stdout.write(f"autotune {release()}\n")
        parser.exit()
