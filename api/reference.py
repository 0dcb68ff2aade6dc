"""docs/cli.md and docs/http.md, written from the code: `make docs`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strategies.shape import JsonObject

WRITTEN = "<!-- Written by `make docs`: change the code it comes from. -->"

ENVIRONMENT = {
    "AUTOTUNE_DB": "the database: a path, or `postgresql+psycopg://...`; without it, one in your data directory",
    "AUTOTUNE_URL": "a service that the command line talks to instead of working in this process",
    "AUTOTUNE_TOKEN": "the token for a service that asks for one",
    "AUTOTUNE_SOURCE": "what `autotune.install()` and `autotune run` apply where they are told nothing",
    "AUTOTUNE_HOSTS": "names under which others reach `autotune serve`, as through a reverse proxy; comma-separated",
    "AUTOTUNE_PUBLIC_READS": "1: nobody needs a token to read",
    "AUTOTUNE_BUNDLE_KEY": "a file with the key that bundles of winners are signed with and checked against",
    "AUTOTUNE_LOCKS": "the folder of the devices' locks (default /tmp/tinygrad-autotune); common to all on one machine",
    "AUTOTUNE_RETENTION": "how long `serve` keeps measurements, former winners, ended jobs; like 90d (1y; 0: for ever)",
    "AUTOTUNE_MOST_LOST": "how many workers a task may cost, before its candidates are tried one by one (default 3)",
    "AUTOTUNE_MAX_BATCH": "how many shapes one request to `autotune serve` may have",
    "AUTOTUNE_MAX_STREAMS": "how many event streams one client of `autotune serve` may have open; beyond it, 429",
    "AUTOTUNE_MAX_QUEUED": "how many shapes one submitter may have in the queue of `autotune serve`; beyond it, 429",
    "AUTOTUNE_MAX_SHAPE_BYTES": "how many bytes the tensors of one shape may have for `autotune serve` to tune it",
    "AUTOTUNE_MAX_SHAPE_MACS": "how many multiply-accumulates one shape may have for `autotune serve` to tune it",
    "AUTOTUNE_LOG_FORMAT": "how `autotune serve` and `autotune worker` log: `text` or `json`",
    "AUTOTUNE_DEBUG": "1: a bug in a command shows its traceback",
    "CC": "the C compiler of tinygrad's CPU device; left alone where it is set",
    "NO_COLOR": "anything: no colours",
}
"""Every variable that the programs read of their own; a test compares."""

METHODS = ("get", "post", "put", "patch", "delete")


CLI_LEAD = (
    "Exit status, unless a command says otherwise: 0 done, 2 wrong usage, 130 interrupted, 1 anything else. Errors are "
    "one line on stderr; with `--json` there is one JSON document on stdout and nothing else there."
)
HTTP_LEAD = (
    "The service describes itself at `/openapi.json`. Bodies and answers are JSON; errors are problem documents (RFC "
    "9457) whose `detail` says what was expected, what was found and what to do. Beyond loopback requests need a "
    "token, see `autotune token`."
)


def cli_reference() -> str:
    """Every command with its arguments, options and examples, as Markdown."""
    from api.dispatch import EXAMPLES, build_parser

    parser = build_parser()
    parts = ["# Command line", WRITTEN, CLI_LEAD, _code(EXAMPLES)]
    for name, command, about in _commands(parser):
        parts += [f"## {name}", f"{about[:1].upper()}{about[1:]}.", _usage(name, command), *_tables(command)]
        if command.epilog:
            parts.append(_code(command.epilog))
    rows = [f"| `{name}` | {about} |" for name, about in ENVIRONMENT.items()]
    parts += ["## Environment", "\n".join(["| variable | |", "| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def http_reference(document: JsonObject) -> str:
    """Every route of an OpenAPI document, as Markdown."""
    parts = ["# HTTP interface", WRITTEN, HTTP_LEAD]
    for path, operations in document["paths"].items():
        for method in filter(operations.__contains__, METHODS):
            parts += _operation(method.upper(), path, operations[method], document)
    return "\n\n".join(parts) + "\n"


def _commands(parser: argparse.ArgumentParser, prefix: str = "autotune") -> Iterator[tuple[str, Any, str]]:
    """Name, parser and help of each command, those of its own commands behind it."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            for name, command in action.choices.items():
                yield f"{prefix} {name}", command, about.get(name, "")
                yield from _commands(command, f"{prefix} {name}")


def _usage(name: str, command: argparse.ArgumentParser) -> str:
    words = [f"[{_spelled(a)}]" if a.option_strings else _metavar(a) for a in _arguments(command)]
    return f"    {' '.join([name, *words])}"


def _tables(command: argparse.ArgumentParser) -> Iterator[str]:
    rows = [f"| `{_spelled(action)}` | {_help(action)} |" for action in _arguments(command)]
    if rows:
        yield "\n".join(["| argument | |", "| --- | --- |", *rows])


def _arguments(command: argparse.ArgumentParser) -> list[argparse.Action]:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)  # noqa: SLF001
    return [action for action in command._actions if not isinstance(action, hidden)]  # noqa: SLF001


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return _metavar(action)
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    optional = action.nargs == "?"
    return action.option_strings[-1] + (f" [{value.strip()}]" if optional else value)


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%").replace("|", "\\|")


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _operation(method: str, path: str, operation: JsonObject, document: JsonObject) -> list[str]:
    parts = [f"## {method} {path}", operation.get("description", operation.get("summary", ""))]
    rows = [
        f"| `{item['name']}` | {item['in']} | {_type(item['schema'])} | {'yes' if item['required'] else ''} |"
        for item in operation.get("parameters", [])
    ]
    if rows:
        parts.append("\n".join(["| parameter | in | type | needed |", "| --- | --- | --- | --- |", *rows]))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body, `{media}`:")
        parts += [_members(schema) for schema in _schemas(content.get("schema", {}), document)]
    answers = [
        f"{status} {answer.get('description', '')}".strip() for status, answer in sorted(operation["responses"].items())
    ]
    parts.append(f"Answers: {'; '.join(answers)}.")
    return [part for part in parts if part]


def _schemas(schema: JsonObject, document: JsonObject) -> list[JsonObject]:
    """The object schemas that this one refers to."""
    if "$ref" in schema:
        found: JsonObject = document
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return [found]
    alternatives = schema.get("oneOf") or schema.get("anyOf")
    if alternatives:
        return [found for item in alternatives for found in _schemas(item, document)]
    return [schema] if "properties" in schema else []


def _members(schema: JsonObject) -> str:
    needed = schema.get("required", [])
    rows = [
        f"| `{name}` | {_type(item)} | {_default(item)} | {'yes' if name in needed else ''} |"
        for name, item in schema["properties"].items()
    ]
    table = ["| member | type | default | needed |", "| --- | --- | --- | --- |", *rows]
    about = schema.get("description", "")
    return "\n".join([*([about, ""] if about else []), *table])


def _type(schema: JsonObject) -> str:
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if alternatives:
        return " or ".join(dict.fromkeys(_type(item) for item in alternatives))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    name = str(schema.get("type", "any"))
    return f"{name} of {_type(schema['items'])}" if name == "array" and schema.get("items") else name


def _default(schema: JsonObject) -> str:
    default = schema.get("default")
    return f"`{default}`" if default not in (None, "") else ""


def openapi() -> JsonObject:
    """What the service says of itself at `/openapi.json`."""
    from api.app import create_app
    from api.devices import ProbedDevices
    from api.lanes import LocalLanes
    from api.settings import Settings
    from autotune.local_runner import LocalRunner
    from db import open_store

    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "empty.db")
        with open_store(database) as store:
            devices = ProbedDevices()
            app = create_app(store, LocalLanes(devices, LocalRunner), Settings(db=database), devices=devices)
            document: JsonObject = app.openapi()
            return document


def main(folder: str) -> None:
    """Write both into `folder`."""
    Path(folder, "cli.md").write_text(cli_reference(), encoding="utf-8")
    Path(folder, "http.md").write_text(http_reference(openapi()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
