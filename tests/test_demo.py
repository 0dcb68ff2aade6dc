"""`make run` as a newcomer sees it, with a small budget: the real service, the real network, the real hook."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_tunes_and_compares_and_ends_without_a_terminal(tmp_path):
    command = [sys.executable, "-m", "api.demo", "--budget", "4", "--port", "0", "--db", str(tmp_path / "demo.db")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=540)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())  # a line may end anywhere
    assert "20 convolutions: 13 3x3 convolutions of stride 1 in 4 shapes" in said
    assert "7 other shapes" in said
    assert "about 1 minute in all" in said
    assert "running the whole network" in done.stdout
    assert done.stdout.count("verified") == 11
    assert re.search(r"with the hook +[\d.]+ m?s", done.stdout)
    difference = float(re.search(r"largest difference of the outputs: (\S+) of", done.stdout)[1])
    assert difference <= 1e-4
    assert re.search(r"20 of 20 convolutions found a winner", done.stdout)


def test_a_port_in_use_is_one_clear_line(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "api.demo", "--port", port, "--db", str(tmp_path / "demo.db")]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("make run: the service did not start: expected to listen on ")
    assert 'make run ARGS="--port 8001"' in done.stderr
    assert "autotune:" not in done.stderr
