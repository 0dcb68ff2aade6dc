"""What else could have moved the times of a measurement."""

from __future__ import annotations

import os
import platform
from functools import cache

import psutil

from strategies.shape import JsonObject


def conditions() -> JsonObject:
    """Host name, load average over one minute, processor clock in MHz; what the system does not tell is left out."""
    result: JsonObject = {"host": _host(), "load": _load(), "cpu_mhz": _cpu_mhz()}
    return {name: value for name, value in result.items() if value is not None}


@cache
def _host() -> str:
    return platform.node()


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _cpu_mhz() -> float | None:
    try:
        mhz = getattr(psutil.cpu_freq(), "current", None)  # or None itself
    except (OSError, RuntimeError, NotImplementedError):  # in containers and on Apple silicon it may do any of these
        return None
    return round(mhz, 1) if mhz else None
