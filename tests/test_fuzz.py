"""A small, seeded share of bench/fuzz.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from fuzz import found_in  # noqa: E402

SENTINEL = "urllib3.util.SKIP_HEADER only supports 'Accept-Encoding', 'Host', 'User-Agent'"
UNSENT = f"""\
==================================== ERRORS ====================================
__________________________ PATCH /winners/{{winner_id}} __________________________
Runtime Error

{SENTINEL}

    Traceback (most recent call last):
      File "urllib3/connection.py", line 566, in request
        self.putheader(header, value)
      File "urllib3/connection.py", line 485, in putheader
        raise ValueError(
    ValueError: {SENTINEL}
    Reproduce with:
        curl -X PATCH -H 'q: 1' -d '{{}}' http://127.0.0.1:40005/winners/128267

Need more help?
    Join our Discord server: https://discord.gg/R9ASRAmHnA

=================================== SUMMARY ====================================

Errors:
  🚫 Runtime Error: 1

============================== 1 error in 21.23s ===============================
"""
"""As schemathesis printed it, most of the traceback left out."""


def fuzz(*arguments: str) -> str:
    command = [sys.executable, "bench/fuzz.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_nothing_is_written_without_a_token() -> None:
    said = fuzz("--requests", "1", "--examples", "5", "--phases", "fuzzing", "--seed", "11", "--only", "no token")
    assert "no failures" in said


def test_what_never_left_is_no_fault_of_the_service() -> None:
    assert found_in(UNSENT) == ([], 1)
    operation = "PATCH /winners/{winner_id}"
    another = UNSENT.replace(f"ValueError: {SENTINEL}", "ConnectionError: aborted")
    failed = UNSENT.replace("=== ERRORS", "=== FAILURES").replace("Runtime Error\n", "- Server error\n")
    both = UNSENT.replace(
        "\nNeed more", "__________ GET /jobs __________\nNetwork Error\n\nConnection refused\n\nNeed more"
    )
    assert found_in(another) == ([operation], 0)
    assert found_in(failed) == ([operation], 0)
    assert found_in(both) == (["GET /jobs"], 1)
    assert found_in(UNSENT.replace("1 error in", "1 failure, 1 error in")) == ([operation], 0)
    assert found_in("Test Execution Error") == ([], 0)


@pytest.mark.slow
def test_the_interface_is_what_its_document_says() -> None:
    said = fuzz("--requests", "3000", "--examples", "12", "--seed", "7")
    assert said.count("no failures") == 3
