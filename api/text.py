"""Text that may hold anything, made fit for one line of a log, a terminal or a document."""

from __future__ import annotations

MAX_LINE = 500


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Any text as one printable line of bounded length."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def printable(text: str) -> str:
    """Without control characters, and without lone surrogates, which UTF-8 cannot carry."""
    kept = "".join(char if char.isprintable() else " " for char in text)
    return kept.encode("utf-8", "replace").decode("utf-8")


def shorten(text: str, limit: int) -> str:
    """Cut with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
