"""Log lines: as text or as JSON, each with the request it belongs to, none with a secret."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

SECRETS = (
    (re.compile(r"autotune_[-A-Za-z0-9_]{20,}"), "autotune_***"),
    (re.compile(r"(?i)\b(bearer|basic) +[^\s'\",]+"), r"\1 ***"),
    (re.compile(r"(://[^\s:/@]*):[^\s]{1,1000}@"), r"\1:***@"),
    (
        re.compile(r"(?i)(password|passwd|secret|token|api_?key)(\w{0,64}[\\\"']*\s*[=:]\s*[\\\"']*)[^\s&\"',;\\}\]]+"),
        r"\1\2***",
    ),
)
"""Tokens, credentials in headers, passwords in addresses and settings: whatever wrote them, and wherever. What repeats
is bounded where a match may begin within it again: a line takes time in proportion to its length, whoever chose it."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that this thread or task works on."""


def configure(log_format: str, stream: TextIO | None = None) -> None:
    """Send every logger's lines to `stream` (stderr), ours from INFO on, others' from WARNING on.

    As JSON, requests that only read are logged, too.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("autotune").setLevel(logging.INFO)
    logging.getLogger("autotune.requests").setLevel(logging.DEBUG if log_format == "json" else logging.NOTSET)


class TextFormatter(logging.Formatter):
    """One line for a person: time, level, logger, message; a traceback on further ones."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - theirs
        """In UTC, as in JSON."""
        return _time(record)

    def format(self, record: logging.LogRecord) -> str:
        """With the request's id at the end."""
        text = super().format(record)
        said = request_id.get()
        return without_secrets(f"{text} [{said}]" if said else text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, `request_id`, and what else was said of it."""

    def format(self, record: logging.LogRecord) -> str:
        """`extra={"fields": {...}}` of a logging call adds members."""
        content = {
            "time": _time(record),
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        if said := request_id.get():
            content["request_id"] = said
        content |= getattr(record, "fields", {})
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(content))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def without_secrets(text: str) -> str:
    """The text with what must not be kept replaced."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text
