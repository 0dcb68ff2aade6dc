"""What else could have moved the times of a measurement."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache

import psutil

from autotune.macos import macos_conditions
from strategies.shape import JsonObject


def conditions() -> JsonObject:
    """Host name, load average over one minute, processor clock in MHz, on macOS heat, power and memory pressure as
    well; what the system does not tell is left out."""
    result: JsonObject = {"host": _host(), "load": _load(), "cpu_mhz": _cpu_mhz()}
    if sys.platform == "darwin":
        result |= macos_conditions()
    return {name: value for name, value in result.items() if value is not None}


def changed(before: JsonObject, after: JsonObject) -> JsonObject:
    """What was otherwise when the measurement began, as `thermal_before`; loads and clocks always are."""
    names = set(before) - {"host", "load", "cpu_mhz"}
    return {f"{name}_before": before[name] for name in sorted(names) if before[name] != after.get(name)}


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
