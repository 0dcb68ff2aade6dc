"""Log lines: as text or as JSON, each with the request it belongs to, none with a secret."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

MAX_LINES = 10_000
"""So many wait for whoever reads them."""
LAST_S = 1.0
"""How long the last ones are waited for at the end."""
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


class Lines:
    """Where lines are written to by a thread of its own: a reader who does not read, as of a pipe, stops nobody else.

    Beyond MAX_LINES they are dropped, which is said once there is room.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._dropped = self._said = 0  # each is counted by one thread at a time
        self._lines = queue.Queue[bytes | None](MAX_LINES)
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def write(self, text: str) -> None:
        """Whole lines; never waits."""
        try:
            self._lines.put_nowait(text.encode(errors="replace"))
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Nothing: there is nothing that its thread does not write as soon as it can."""

    def close(self) -> None:
        """Write what is there, unless it takes longer than LAST_S."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=LAST_S)
            self._writer.join(LAST_S)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):  # nobody reads any more
                while line:
                    line = line[os.write(self._descriptor, line) :]
            if (dropped := self._dropped - self._said) and self._lines.empty():
                self._said += dropped
                logging.getLogger("autotune.logs").warning("%d lines were dropped: nobody read them in time", dropped)


@contextlib.contextmanager
def to_stderr(log_format: str) -> Iterator[None]:
    """`configure` for a service, which goes on whether or not its log is read."""
    lines = Lines(2)
    configure(log_format, lines)
    try:
        yield
    finally:
        lines.close()


def configure(log_format: str, stream: TextIO | Lines | None = None) -> None:
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
