"""Lowering is ended in order when it takes too long, and the processes that do it when their parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_local_runner import gone

from strategies.graph.compiling import LoweringTimeoutError, within

KILLED = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from strategies.graph.compiling import _end_with_parent

def busy(parent, watched):
    if watched:
        _end_with_parent(parent)
    time.sleep(60)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=busy, args=(os.getpid(), sys.argv[1] == "watched"))
    process.start()
    time.sleep(3)
    Path(sys.argv[2]).write_text(str(process.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("watched", [True, False])
def test_a_compile_process_ends_with_its_parent(tmp_path: Path, watched: bool) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    written = tmp_path / "pid"
    subprocess.run([sys.executable, str(script), "watched" if watched else "not", str(written)], timeout=60)
    pid = int(written.read_text())
    until = time.monotonic() + (20 if watched else 4)
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.2)
    assert gone(pid) == watched  # the other shows that nothing else would have ended it
    if not watched:
        os.kill(pid, signal.SIGKILL)


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


class Finalised:
    def __del__(self) -> None:
        busy(0.05)


def finalise_for(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        Finalised()
        busy(0.01)


def test_the_limit_never_strikes_while_an_object_is_finalised() -> None:
    """Python prints what is raised there and goes on; pytest makes a failure of it."""
    with pytest.raises(LoweringTimeoutError, match=r"more than 0\.02 s"), within(0.02):
        finalise_for(10.0)
