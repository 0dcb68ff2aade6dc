"""A seeded small share of bench/chaos.py and bench/netns.py: real processes, killed and cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from databases import ROOT

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str) -> str:
    """What it prints; it must end well."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=590, check=False,
    )  # fmt: skip
    if "expected PostgreSQL's programs" in done.stderr:
        pytest.skip("no PostgreSQL here: install it (Debian: postgresql)")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_dozen_kills_lose_nothing(database: str) -> None:
    few = ("--shapes", "2", "--trials", "2", "--patience", "20")
    said = run("chaos.py", "--kills", "12", "--seed", "1", "--database", database, *few)
    assert "12 kills" in said
    assert said.endswith("seed 1): everything holds\n")


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="network namespaces need root and /dev/net/tun"
)
def test_a_worker_that_is_cut_off_comes_back_too_late() -> None:
    said = run("netns.py", "--cut", "25")
    assert "workers can dial out only" in said
    assert "answered too late" in said
    assert said.endswith("25 s): everything holds\n")
