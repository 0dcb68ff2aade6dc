"""What the command line writes: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType

from api.text import one_line

UNBOUNDED = 400


class CliError(Exception):
    """Ends a command with one line on stderr: what was expected, what was found, what to do."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class UsageError(CliError):
    """The command was written wrongly: exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=2)


class Console:
    """Both streams. Progress is drawn only where stderr is a terminal; tables fit the window of stdout."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self.progress = RichConsole(file=self._err, stderr=True)

    @property
    def interactive(self) -> bool:
        """Whether somebody watches stderr."""
        return self.progress.is_terminal

    def json(self, document: Any) -> None:
        """The one JSON document of `--json`."""
        self._out.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
        self._out.flush()

    def json_line(self, document: Any) -> None:
        """The one JSON document of a command that goes on after it: on one line, for who reads line by line."""
        self._out.write(json.dumps(document, allow_nan=False) + "\n")
        self._out.flush()

    def text(self, text: str) -> None:
        """Lines of a result."""
        self._out.write(text if text.endswith("\n") else text + "\n")
        self._out.flush()

    @property
    def width(self) -> int:
        """Columns of the window behind stdout; a file or a pipe takes any."""
        console = RichConsole(file=self._out)
        return console.width if console.is_terminal else UNBOUNDED

    def table(self, table: RenderableType) -> None:
        """A table, as wide as `width`."""
        RichConsole(file=self._out, width=self.width).print(table)

    def note(self, message: str) -> None:
        """Something worth knowing that is no result."""
        self._err.write(one_line(message) + "\n")
        self._err.flush()

    def error(self, message: str) -> None:
        """One line, whatever it says."""
        self._err.write(f"autotune: {one_line(message, 1000)}\n")
        self._err.flush()
