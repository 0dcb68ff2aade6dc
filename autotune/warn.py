"""Warnings of the hook, each kind of them said once."""

from __future__ import annotations

import sys
import warnings

_warned: set[str] = set()


def warn_once(kind: str, message: str) -> None:
    """A RuntimeWarning, the first time that something of this kind is said in this process.

    Where the program turns warnings into errors it stays one line on stderr: the hook never breaks a program.
    """
    if kind in _warned:
        return
    _warned.add(kind)
    try:
        warnings.warn(f"autotune: {message}", RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        sys.stderr.write(f"autotune: {message}\n")
