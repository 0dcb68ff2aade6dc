"""The examinations behind `autotune doctor`."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from api.database import open_database
from api.devices import ProbedDevices, UnknownDeviceError
from api.release import release
from api.settings import Settings
from api.text import one_line
from autotune.compiler import CCompilerError, ensure_c_compiler
from db import DatabaseError
from strategies.shape import JsonObject

SUPPORTED_TINYGRAD = "0.14"


class Level(StrEnum):
    """How bad it is. A fault keeps the tuner from working."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One examination: what was found and, unless all is well, what to do."""

    name: str
    level: Level
    found: str
    advice: str = ""

    def to_json(self) -> JsonObject:
        """As in `doctor --json`."""
        return {"name": self.name, "level": str(self.level), "found": self.found, "advice": self.advice}


def examine(settings: Settings) -> list[Check]:
    """Every examination, each whatever the others say."""
    return [check for part in (_versions, _hook, _compiler, _devices, _database) for check in _safely(part, settings)]


def _safely(part: Callable[[Settings], Iterator[Check]], settings: Settings) -> Iterator[Check]:
    name = part.__name__.strip("_")
    try:
        yield from part(settings)
    except Exception as error:  # noqa: BLE001 - a doctor that falls ill helps nobody
        found = one_line(f"{type(error).__name__}: {error}", 300)
        yield Check(name=name, level=Level.FAULT, found=found, advice="this is a bug: please report it")


def _versions(_: Settings) -> Iterator[Check]:
    python = f"Python {platform.python_version()} ({sys.executable})"
    system = f"{python}, SQLite {sqlite3.sqlite_version}, {platform.system()} {platform.machine()}"
    yield Check(name="autotune", level=Level.OK, found=f"{release()}, {system}")
    try:
        found = version("tinygrad")
    except PackageNotFoundError:
        advice = f"pip install 'tinygrad=={SUPPORTED_TINYGRAD}.*'"
        yield Check(name="tinygrad", level=Level.FAULT, found="not installed", advice=advice)
        return
    supported = found == SUPPORTED_TINYGRAD or found.startswith(f"{SUPPORTED_TINYGRAD}.")
    yield Check(
        name="tinygrad", level=Level.OK if supported else Level.FAULT,
        found=f"{found}, {'supported' if supported else 'not supported'}",
        advice="" if supported else f"{SUPPORTED_TINYGRAD}.x works: pip install 'tinygrad=={SUPPORTED_TINYGRAD}.*'",
    )  # fmt: skip


def _hook(_: Settings) -> Iterator[Check]:
    try:
        from strategies.graph.seam import seam_fault

        fault = seam_fault()
    except ImportError as error:
        fault = f"tinygrad does not have what the hook needs ({error}): pip install 'tinygrad=={SUPPORTED_TINYGRAD}.*'"
    if fault:
        yield Check(name="hook", level=Level.FAULT, found="it stays inactive", advice=fault)
    else:
        yield Check(name="hook", level=Level.OK, found="tinygrad's seam is there")


def _compiler(_: Settings) -> Iterator[Check]:
    try:
        compiler = ensure_c_compiler()
    except CCompilerError as error:
        level = Level.FAULT if _default_is_cpu() else Level.WARNING
        yield Check(name="C compiler", level=level, found="none: the CPU device cannot work", advice=str(error))
    else:
        yield Check(
            name="C compiler", level=Level.OK, found=f"{compiler.version} ({compiler.source}: {compiler.command})"
        )


def _default_is_cpu() -> bool:
    """Whether nothing works without a C compiler; also where tinygrad cannot even be asked."""
    try:
        return ProbedDevices().names()[:1] == ("CPU",)
    except UnknownDeviceError:
        return True


def _devices(_: Settings) -> Iterator[Check]:
    devices = ProbedDevices()
    try:
        names = devices.names()
    except UnknownDeviceError as error:
        advice = "without a device nothing can be tuned: see `C compiler` and `tinygrad`"
        yield Check(name="devices", level=Level.FAULT, found=str(error), advice=advice)
        return
    for index, name in enumerate(names):
        kind = f"device {name}"
        try:
            spec = devices.describe(name)
        except UnknownDeviceError as error:
            level = Level.FAULT if index == 0 else Level.WARNING
            yield Check(name=kind, level=level, found=str(error), advice="choose another with DEV=... or --device")
            continue
        simulated = f"simulated by {spec.simulated}" if spec.simulated else ""
        parts = [
            simulated,
            spec.arch,
            f"{spec.cores} cores" if spec.cores else "",
            spec.renderer,
            spec.driver,
            spec.compiler,
        ]
        flags = [f"{flag}={value}" for flag, value in spec.flags]
        default = " (default)" if index == 0 else ""
        found, advice = ", ".join(filter(None, [*parts, *flags])) + default, ""
        if spec.simulated:
            advice = "its winners hold here alone and are never exported"
        elif "paravirtual" in spec.arch.lower():
            advice = "the GPU of a virtual machine: without graphs and shared, its times are not the machine's"
        yield Check(name=kind, level=Level.WARNING if advice else Level.OK, found=found, advice=advice)


def _database(settings: Settings) -> Iterator[Check]:
    try:
        with open_database(settings) as store:
            faults = store.check()
            counts = ", ".join(f"{count} {name}" for name, count in store.counts().items())
            found = f"{store}, revision {store.revision()}, {counts}"
    except DatabaseError as error:
        yield Check(name="database", level=Level.FAULT, found=str(error), advice="or use another with --db")
        return
    if faults:
        advice = f"stop every service and restore a backup: {one_line('; '.join(faults), 300)}"
        yield Check(name="database", level=Level.FAULT, found=f"{found}, damaged", advice=advice)
    else:
        yield Check(name="database", level=Level.OK, found=f"{found}, sound")
