"""`autotune token`: who may use a service beyond loopback."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from api.arguments import add_database, add_json
from api.console import CliError, Console, UsageError
from api.database import open_database
from api.settings import Settings
from api.units import parse_age
from db import Scope, Token
from strategies.shape import JsonObject

EXAMPLES = """examples:
  autotune token create laptop --scope tune --expires 90d
  autotune token list
  autotune token revoke 3

read: see winners, jobs, devices; tune: make and cancel jobs, too; admin: change, import and revoke winners, too.
A token is shown once. Whoever has it sets AUTOTUNE_TOKEN; a browser is given it as the password of any user."""

CREATE_EXAMPLES = """examples:
  autotune token create laptop --scope tune --expires 90d
  autotune token create ci --json"""
LIST_EXAMPLES = """examples:
  autotune token list"""
REVOKE_EXAMPLES = """examples:
  autotune token revoke 3"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("token", help="who may use a service beyond this machine", epilog=EXAMPLES)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make one, and show it this once", epilog=CREATE_EXAMPLES)
    create.add_argument("name", metavar="NAME", help="for whom or what it is")
    create.add_argument("--scope", choices=[str(scope) for scope in Scope], default="read", help="default read")
    create.add_argument("--expires", metavar="TIME", help="after so long: 12h, 90d (default: never)")
    create.set_defaults(run=run_create)
    listed = actions.add_parser("list", help="all that there are", epilog=LIST_EXAMPLES)
    listed.set_defaults(run=run_list)
    revoke = actions.add_parser(
        "revoke", help="withdraw one for good; what it is used for now ends", epilog=REVOKE_EXAMPLES
    )
    revoke.add_argument("id", metavar="ID", type=int, help="as `autotune token list` has it")
    revoke.set_defaults(run=run_revoke)
    for action in (create, listed, revoke):
        add_database(action)
        add_json(action)


def run_create(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """The secret alone on stdout, so that it can be piped to where it is kept."""
    expires_at = None if args.expires is None else time.time() + parse_age(args.expires)
    with open_database(settings) as store:
        try:
            token, secret = store.create_token(args.name, Scope(args.scope), expires_at=expires_at)
        except ValueError as error:
            raise UsageError(str(error)) from None
    if args.json:
        console.json({**_document(token), "token": secret})
    else:
        console.text(secret)
        console.note(f"token {token.id} ({token.scope}) for {token.name}: it is shown this once; set AUTOTUNE_TOKEN")
    return 0


def run_list(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Without their secrets, which nobody has."""
    with open_database(settings) as store:
        found = store.tokens()
    if args.json:
        console.json({"tokens": [_document(token) for token in found]})
    elif found:
        console.table(_table(found))
    else:
        console.note("no tokens yet: make one with `autotune token create NAME --scope tune`")
    return 0


def run_revoke(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """At once, in every service on the database."""
    with open_database(settings) as store:
        try:
            token = store.revoke_token(args.id)
        except LookupError as error:
            raise CliError(str(error)) from None
    if args.json:
        console.json(_document(token))
    else:
        console.text(f"token {token.id} ({token.scope}) for {token.name} is revoked")
    return 0


def _document(token: Token) -> JsonObject:
    return {
        "id": token.id, "name": token.name, "scope": str(token.scope), "state": _state(token),
        "created_at": token.created_at, "expires_at": token.expires_at, "revoked_at": token.revoked_at,
    }  # fmt: skip


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if token.holds(time.time()) else "expired"


def _table(found: list[Token]) -> Table:
    table = Table("id", "name", "scope", "state", "created", "expires", box=None, pad_edge=False)
    for token in found:
        expires = "" if token.expires_at is None else _day(token.expires_at)
        table.add_row(str(token.id), token.name, str(token.scope), _state(token), _day(token.created_at), expires)
    return table


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
