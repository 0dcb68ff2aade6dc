"""`autotune completion`: completes commands, options and files in a shell."""

from __future__ import annotations

import argparse
from typing import Any

from api.arguments import add_json
from api.console import Console
from api.settings import Settings

SHELLS = ("bash", "zsh", "tcsh")
EXAMPLES = """examples:
  autotune completion bash > ~/.local/share/bash-completion/completions/autotune
  autotune completion zsh > ~/.zfunc/_autotune     with fpath+=~/.zfunc before compinit in ~/.zshrc"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("completion", help="the shell's completion script, on stdout", epilog=EXAMPLES)
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _: Settings, console: Console) -> int:
    """Written from the parser itself, so that it knows every option of this release."""
    import shtab

    from api.dispatch import build_parser

    script = shtab.complete(build_parser(), shell=args.shell)
    if args.json:
        console.json({"shell": args.shell, "script": script})
    else:
        console.text(script)
    return 0
