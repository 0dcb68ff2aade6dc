"""Warnings of the hook, each kind of them said once."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress

_warned: set[str] = set()


def warn_once(kind: str, message: str) -> None:
    """A RuntimeWarning, the first time that something of this kind is said in this process.

    Where the program turns warnings into errors, or shows them in a way that fails, it stays one line on stderr, if
    there is one: the hook never breaks a program.
    """
    if kind in _warned:
        return
    _warned.add(kind)
    text = f"autotune: {message}"
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except Exception:  # noqa: BLE001 - `showwarning` is whatever the program made of it
        with suppress(Exception):
            sys.stderr.write(f"{text}\n")
