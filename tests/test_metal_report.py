"""The script that a Mac user runs, run here against the stand-in: what it prints is there before a Mac is."""

from __future__ import annotations

import os
import subprocess
import sys

import metal
import pytest
from metal.compiler import unavailable

from tests.served import ROOT


@pytest.mark.slow
@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_the_report() -> None:
    environ = metal.environment({**os.environ, "DEV": "METAL", "PYTHONPATH": str(ROOT)})
    command = [sys.executable, str(ROOT / "bench" / "metal.py"), "--quick"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=590)
    assert "## tinygrad-autotune on METAL (simulated)" in done.stdout, done.stderr
    assert "| direct | ok |" in done.stdout
    assert "| four_buffer(" in done.stdout
    assert "### After idling" in done.stdout
    assert done.returncode == 0, done.stdout
