"""What macOS tells of heat, power and memory: each of them moves the times of an Apple GPU by far more than noise.

Nothing here needs root. What a release of macOS does not tell is left out. The functions that read what a command
printed are pure; tests hold them against recorded output.
"""

from __future__ import annotations

import re
import subprocess

from strategies.shape import JsonObject

TIMEOUT_S = 5.0
THERMAL_KEY = "com.apple.system.thermalpressurelevel"
_THERMAL = ("nominal", "moderate", "heavy", "trapping", "sleeping")  # OSThermalNotification.h, macOS's own levels
_MEMORY = {"1": "normal", "2": "warn", "4": "critical"}  # DISPATCH_MEMORYPRESSURE_*


def macos_conditions() -> JsonObject:
    """`thermal`, `speed_limit` (percent, Intel only), `power` (`ac`, `battery`), `low_power` and `memory_pressure`.

    Four commands of some milliseconds each; only for macOS.
    """
    found: JsonObject = {
        "thermal": thermal_pressure(_output("notifyutil", "-g", THERMAL_KEY)),
        "speed_limit": speed_limit(_output("pmset", "-g", "therm")),
        "power": power_source(_output("pmset", "-g", "batt")),
        "low_power": low_power(_output("pmset", "-g")),
        "memory_pressure": memory_pressure(_output("sysctl", "-n", "kern.memorystatus_vm_pressure_level")),
    }
    return {name: value for name, value in found.items() if value is not None}


def thermal_pressure(notifyutil: str) -> str | None:
    """`nominal`, `moderate`, `heavy`, `trapping` or `sleeping`: from `moderate` on, clocks are held down."""
    found = re.search(rf"{re.escape(THERMAL_KEY)}\s+(\d+)", notifyutil)
    level = int(found[1]) if found is not None else -1
    return _THERMAL[level] if 0 <= level < len(_THERMAL) else None


def speed_limit(pmset_therm: str) -> int | None:
    """Percent of the full clock that the processor may have; None on Apple silicon, which does not say."""
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", pmset_therm)
    return int(found[1]) if found is not None else None


def power_source(pmset_batt: str) -> str | None:
    """`ac` or `battery`."""
    found = re.search(r"Now drawing from '(\w+) Power'", pmset_batt)
    return {"AC": "ac", "Battery": "battery"}.get(found[1]) if found is not None else None


def low_power(pmset: str) -> bool | None:
    """Whether Low Power Mode is on: `lowpowermode 1`, on newer Macs `powermode 1` (2 is High Power Mode)."""
    found = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)", pmset, re.MULTILINE)
    return found[1] == "1" if found is not None else None


def memory_pressure(sysctl: str) -> str | None:
    """`normal`, `warn` or `critical`: GPU and programs share the memory, and under pressure it is compressed."""
    return _MEMORY.get(sysctl.strip())


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
