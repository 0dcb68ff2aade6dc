"""A small, seeded share of bench/fuzz.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def fuzz(*arguments: str) -> str:
    command = [sys.executable, "bench/fuzz.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_nothing_is_written_without_a_token() -> None:
    said = fuzz("--requests", "1", "--examples", "5", "--phases", "fuzzing", "--seed", "11", "--only", "no token")
    assert "no failures" in said


@pytest.mark.slow
def test_the_interface_is_what_its_document_says() -> None:
    said = fuzz("--requests", "3000", "--examples", "12", "--seed", "7")
    assert said.count("no failures") == 3
