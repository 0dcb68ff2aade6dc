"""The files that keep a worker running: they parse, and say what docs/workers says."""

from __future__ import annotations

import configparser
import plistlib

from databases import ROOT

from api.dispatch import build_parser
from api.worker import DATABASE_LOST, DRAINED

FOLDER = ROOT / "docs" / "workers"


def test_launchd_starts_a_worker_again_whatever_its_status() -> None:
    content = plistlib.loads((FOLDER / "com.tinygrad.autotune-worker.plist").read_bytes())
    assert content["KeepAlive"] is True
    _, *arguments = content["ProgramArguments"]
    assert build_parser().parse_args(arguments).device == "METAL"
    assert content["EnvironmentVariables"]["AUTOTUNE_DB"].endswith("sslmode=verify-full")


def test_systemd_starts_a_worker_again_but_not_one_that_was_called_wrongly() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(FOLDER / "autotune-worker@.service")
    service = unit["Service"]
    assert (service["Restart"], service["RestartPreventExitStatus"], service["KillMode"]) == ("always", "2", "mixed")
    _, *arguments = service["ExecStart"].split()
    assert build_parser().parse_args(arguments).device == "%i"


def test_the_exit_statuses_are_documented() -> None:
    text = (FOLDER / "README.md").read_text()
    for status in (DRAINED, DATABASE_LOST, 1, 2):
        assert f"\n| {status} | " in text
