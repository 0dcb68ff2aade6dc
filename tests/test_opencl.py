"""Every strategy on OpenCL where there is one, as PoCL on a machine without a GPU: threads in groups, local memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("opencl_programs.py")


def test_lowerings_on_opencl() -> None:
    environ = {**os.environ, "DEV": "CL", "PARALLEL": "0", "PYTHONPATH": str(PROGRAMS.parent.parent)}
    done = subprocess.run([sys.executable, str(PROGRAMS)], env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    if "unavailable" in results[0]:
        pytest.skip(f"no OpenCL here ({results[0]['unavailable']}): on Debian, apt-get install pocl-opencl-icd")
    assert len(results) > 5
    assert [result for result in results if result["fault"]] == []
