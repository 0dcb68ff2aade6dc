"""bench/load.py runs, and says what it should; its figures are for a quiet machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_small_load() -> None:
    small = ["--winners", "220", "--hot", "20", "--rounds", "1", "--requests", "60", "--minutes", "0"]
    done = subprocess.run(
        [sys.executable, "bench/load.py", *small], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "DEV": "CPU"},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    said = [line.partition(":")[0] for line in done.stdout.splitlines()]
    parts = ["cached lookups", "cached lookups", "200 keys at once", "200 shapes at once", "load"]
    assert said[2:] == parts, done.stderr
    assert "220 winners merged" in said[1]
    assert ("HELD: compare, batch, memory" in done.stdout) == (done.returncode == 0)
