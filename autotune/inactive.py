"""The public face where tinygrad is another one than the hook was written for, and lacks what it imports.

Each name of `autotune.runtime`: it warns, once, and does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from autotune.report import Report, Stats
from autotune.warn import warn_once
from strategies.supported import TINYGRAD


def is_tinygrads(error: ImportError | AttributeError) -> bool:
    """Whether what an import of ours did not find belongs in tinygrad, and tinygrad is there."""
    if isinstance(error, ImportError):
        name = error.name or ""
        return name.startswith("tinygrad.") or (name == "tinygrad" and not isinstance(error, ModuleNotFoundError))
    home = error.obj.__name__ if isinstance(error.obj, ModuleType) else getattr(error.obj, "__module__", "")
    return str(home).startswith("tinygrad")


def say(error: Exception) -> None:
    """Why nothing is done."""
    try:
        found = version("tinygrad")
    except PackageNotFoundError:
        found = "of an unknown version"
    warn_once("inactive", f"inactive: tinygrad {found} is not supported: install tinygrad {TINYGRAD}.x ({error})")


def install(*_args: Any, **_options: Any) -> None:
    """Does nothing."""


def uninstall() -> None:
    """Does nothing."""


@contextmanager
def tuned(*_args: Any, **_options: Any) -> Iterator[None]:
    """Does nothing."""
    yield


forced = tuned


def refresh() -> int:
    """Nothing is frozen."""
    return 0


def stats() -> Stats:
    """Nothing was done."""
    return Stats()


def explain_last() -> tuple[Report, ...]:
    """Nothing was done."""
    return ()
