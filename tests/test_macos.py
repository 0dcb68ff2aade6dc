"""What macOS prints is read as it was recorded by others: no machine of ours runs it."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import pytest

from autotune import conditions, macos
from strategies.graph import device

# exelban/stats, issue 749: MacBook Pro (14-inch, 2021), M1 Pro, macOS 12.1
THERM_M1_PRO = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
# yujitach/MenuMeters, issue 158: an Intel Mac, throttled
THERM_INTEL = """2020-06-26 12:30:37 +0200 CPU Power notify
\tCPU_Scheduler_Limit \t= 40
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 28
"""
BATT_AC = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=22806627)\t100%; charged; 0:00 remaining present: true
"""
BATT_BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=5308515)\t34%; discharging; 5:58 remaining present: true
"""
PMSET = """System-wide power settings:
Currently in use:
 standby              0
 Sleep On Power Button 1
 lowpowermode         {}
 ttyskeepawake        1
 powernap             0
"""
IOREG_M3_PRO = """+-o AGXAcceleratorG15X  <class AGXAcceleratorG15X>
    {
      "model" = "Apple M3 Pro"
      "gpu-core-count" = 14
      "PerformanceStatistics" = {"In use system memory (driver)"=0,"Alloc system memory"=25908838400}
    }
"""


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("com.apple.system.thermalpressurelevel 0\n", "nominal"),
        ("com.apple.system.thermalpressurelevel 1\n", "moderate"),
        ("com.apple.system.thermalpressurelevel 2\n", "heavy"),
        ("com.apple.system.thermalpressurelevel 4\n", "sleeping"),
        ("com.apple.system.thermalpressurelevel 9\n", None),
        ("com.apple.system.thermalpressurelevel: Failed with code 9\n", None),
        ("", None),
    ],
)
def test_thermal_pressure(said: str, level: str | None) -> None:
    assert macos.thermal_pressure(said) == level


def test_speed_limit_is_told_on_intel_alone() -> None:
    assert macos.speed_limit(THERM_INTEL) == 28
    assert macos.speed_limit(THERM_M1_PRO) is None


@pytest.mark.parametrize(("said", "source"), [(BATT_AC, "ac"), (BATT_BATTERY, "battery"), ("", None)])
def test_power_source(said: str, source: str | None) -> None:
    assert macos.power_source(said) == source


@pytest.mark.parametrize(
    ("said", "low"),
    [
        (PMSET.format(0), False),
        (PMSET.format(1), True),
        (PMSET.format(0).replace("lowpowermode", "powermode   "), False),
        (PMSET.format(2).replace("lowpowermode", "powermode   "), False),
        ("System-wide power settings:\n SleepDisabled\t\t0\n", None),
    ],
)
def test_low_power_mode(said: str, low: bool | None) -> None:
    assert macos.low_power(said) == low


@pytest.mark.parametrize(("said", "pressure"), [("1\n", "normal"), ("2\n", "warn"), ("4\n", "critical"), ("", None)])
def test_memory_pressure(said: str, pressure: str | None) -> None:
    assert macos.memory_pressure(said) == pressure


@pytest.mark.parametrize(("said", "cores"), [(IOREG_M3_PRO, 14), ('  |   "gpu-core-count" = 60\n', 60), ("", 0)])
def test_gpu_cores(said: str, cores: int) -> None:
    assert device.gpu_cores(said) == cores


SAID = {
    ("notifyutil", "-g", macos.THERMAL_KEY): f"{macos.THERMAL_KEY} 1\n",
    ("pmset", "-g", "therm"): THERM_M1_PRO,
    ("pmset", "-g", "batt"): BATT_BATTERY,
    ("pmset", "-g"): PMSET.format(1),
    ("sysctl", "-n", "kern.memorystatus_vm_pressure_level"): "2\n",
    ("sw_vers", "-buildVersion"): "25B78\n",
    ("ioreg", "-l", "-w0", "-r", "-c", "AGXAccelerator"): IOREG_M3_PRO,
}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], str]:
    """A Mac, as far as commands go: each says what is recorded, one that is not recorded fails."""
    said = dict(SAID)

    def run(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        if tuple(command) not in said:
            raise FileNotFoundError(2, "No such file or directory", command[0])
        return subprocess.CompletedProcess(command, 0, said[tuple(command)], "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "release", lambda: "25.1.0")
    return said


def test_conditions_of_a_measurement(mac: dict[tuple[str, ...], str]) -> None:
    found = conditions.conditions()
    assert {name: found[name] for name in ("thermal", "power", "low_power", "memory_pressure")} == {
        "thermal": "moderate", "power": "battery", "low_power": True, "memory_pressure": "warn",
    }  # fmt: skip
    assert "speed_limit" not in found
    assert {"host", "load"} <= found.keys()


def test_what_a_release_of_macos_does_not_tell_is_left_out(mac: dict[tuple[str, ...], str]) -> None:
    mac.clear()
    assert macos.macos_conditions() == {}


def test_what_changed_while_it_was_measured() -> None:
    before = {"host": "mac", "load": 1.0, "thermal": "nominal", "power": "ac"}
    assert conditions.changed(before, {**before, "load": 2.0, "thermal": "heavy"}) == {"thermal_before": "nominal"}


def test_the_system_is_known_by_its_build(mac: dict[tuple[str, ...], str]) -> None:
    assert device._system() == "macOS 26.1 25B78 Darwin 25.1.0"
    assert device._driver("METAL", "METAL") == "26.1"
    assert device._cores("METAL", "METAL") == 14


def test_elsewhere_nothing_of_this_is_asked() -> None:
    if sys.platform != "darwin":
        assert not {"thermal", "power"} & conditions.conditions().keys()
