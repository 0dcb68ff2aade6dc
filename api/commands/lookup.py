"""`autotune lookup`: what is known of one shape."""

from __future__ import annotations

import argparse
from typing import Any

from api.arguments import add_database, add_json, add_shape, policy_of, shape_of
from api.commands.remote import caller_flags, client_of, shape_body
from api.console import Console
from api.documents import winner_document
from api.nearest import nearest
from api.settings import Settings
from api.tables import winners_table
from autotune.client import ServiceError
from autotune.neighbours import aged
from autotune.winner import WITHDRAWN_STATES, Winner
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape

KNOWN = 5000
EXAMPLE = """example:
  autotune lookup 1x64x56x56 64x64x3x3 --padding 1"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("lookup", help="what is known of one shape", epilog=EXAMPLE)
    add_shape(parser)
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prints the winner; 1 and the nearest known shapes if there is none."""
    shape, policy = shape_of(args), policy_of(args)
    found, miss, close = find(args, settings, shape, policy)
    if args.json:
        console.json(winner_document(None, found) if found else {"winner": None, "detail": miss, "nearest": close})
    elif found:
        console.table(winners_table([found], console.width))
    if found is None:
        console.error(miss)
    return 0 if found else 1


Answer = tuple[Winner | None, str, list[dict[str, Any]]]


def find(args: argparse.Namespace, settings: Settings, shape: ConvShape, policy: Policy) -> Answer:
    """The winner; or why there is none, in one line, and the nearest shapes that have one."""
    return (_remote if settings.url else _local)(args, settings, shape, policy)


def _local(args: argparse.Namespace, settings: Settings, shape: ConvShape, policy: Policy) -> Answer:
    from api.database import open_database
    from api.devices import ProbedDevices

    key = ConvKey(shape=shape, device=ProbedDevices().describe(args.device), policy=policy)
    with open_database(settings) as store:
        found = store.winner(key)
        if found is not None and found.state not in WITHDRAWN_STATES:
            return aged(found, key), "", []
        known = [item for item in store.winners(limit=KNOWN) if item[1].state not in WITHDRAWN_STATES]
    close = nearest(shape, policy, key.device.device, known)
    why = f"the nearest known is {close[0]['name']}" if close else "nothing is known yet"
    why = f"its winner was {found.state}" if found else why
    return None, f"no winner for {key}: {why}; find one with `autotune tune {shape_arguments(args)}`", close


def _remote(args: argparse.Namespace, settings: Settings, shape: ConvShape, policy: Policy) -> Answer:
    body = shape_body(shape, policy, args.device)
    query = {name: str(value) for name, value in body.pop("policy").items() if value is not None and value is not False}
    query |= {name: "x".join(map(str, body.pop(name))) for name in ("input", "weight")}
    query |= {name: ",".join(map(str, body.pop(name))) for name in ("padding", "stride", "dilation")}
    query["flags"] = ",".join(f"{name}={value}" for name, value in caller_flags().items())
    query |= {name: str(value) for name, value in body.items() if name != "flags"}
    try:
        document = client_of(settings).lookup(query)
    except ServiceError as error:
        if error.status != 404 or not isinstance(error.problem.get("nearest"), list):
            raise
        return None, str(error), list(error.problem["nearest"])
    return Winner.from_json(document["winner"]), "", []


def shape_arguments(args: argparse.Namespace) -> str:
    """The shape as it would be typed again."""
    text = f"{args.input} {args.weight}"
    for name, default in (("padding", "0"), ("stride", "1"), ("dilation", "1"), ("groups", 1), ("dtype", "float32")):
        if getattr(args, name) != default:
            text += f" --{name} {getattr(args, name)}"
    for name in ("device", "max_error", "max_workspace"):
        if getattr(args, name) is not None:
            text += f" --{name.replace('_', '-')} {getattr(args, name)}"
    for name in ("allow_tf32", "frozen_weights"):
        if getattr(args, name):
            text += f" --{name.replace('_', '-')}"
    return text
