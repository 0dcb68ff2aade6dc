"""`autotune run --on-miss tune`: the second run of a program knows more than the first."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import http_service
import pytest
from served import ROOT, served, until, winner_of

from api.cli import main
from autotune.bundle import dump
from strategies.key import ConvKey

PROGRAM = """
from tinygrad import Tensor
print(Tensor.ones(1, 5, 8, 8).contiguous().conv2d(Tensor.ones(4, 5, 3, 3).contiguous(), padding=1).sum().item())
"""


Run = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """PROGRAM with winners of a service."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AUTOTUNE_")}
    environ |= {"DEV": "CPU", "NOOPT": "1", "PYTHONPATH": str(ROOT)}

    def run(url: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api.cli", "run", "--source", url, "--on-miss", "tune"]
        command.append(str(tmp_path / "program.py"))
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)

    return run


def test_the_second_run_has_a_winner(tmp_path: Path, run: Run) -> None:
    with served(tmp_path / "a.db") as service:
        # the first lookup takes longest, and a program's has 0.3 s
        service.http.get("/lookup?input=1x5x8x8&weight=4x5x3x3&padding=1")
        first = run(service.url)
        assert first.returncode == 0, first.stderr
        assert "0 of 1 convolutions had a winner on CPU; the service was asked to tune the others" in first.stderr
        [job] = until(lambda: service.http.get("/jobs").json()["jobs"])
        [key] = map(ConvKey.from_json, service.http.get(f"/jobs/{job['id']}").json()["keys"])
        assert (str(key.shape), job["idle"]) == ("1x5x8x8 4x5x3x3 padding 1", True)
        # the search's part, which waits for the device: others on this machine may be using it
        headers = {"Content-Type": "application/json"}
        service.http.post("/import", content=dump([winner_of(key)]), headers=headers).raise_for_status()
        for _ in range(5):  # on a busy machine an answer may come too late, and the program goes on without
            second = run(service.url)
            if not second.stderr:
                break
    assert (second.returncode, second.stderr) == (0, "")
    assert float(second.stdout) == pytest.approx(float(first.stdout), rel=1e-5)


@pytest.mark.parametrize("takes", [True, False])
def test_a_service_is_said_to_be_asked_if_it_was(run: Run, takes: bool) -> None:
    """One that answers lookups too late for a program is asked nevertheless, unless it refuses."""
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler, _: object) -> object:
        if request.path == "/lookup":
            time.sleep(0.6)
            return {"winners": {}, "digests": []}
        asked.append(request.path)
        return {"id": "1", "state": "queued", "progress": {}} if takes else request.send_error(503)

    with http_service.service(answer) as url:
        done = run(url)
    assert (done.returncode, asked) == (0, ["/tune"]), done.stderr
    said = f"0 of 1 convolutions had a winner on CPU; the service was {'asked' if takes else 'not asked'} to tune"
    assert said in done.stderr
    assert ("could not be asked to tune" in done.stderr) is not takes


def test_a_file_cannot_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program.py").touch()
    arguments = ["run", "--source", str(tmp_path / "winners.json"), "--on-miss", "tune", str(tmp_path / "program.py")]
    assert main(arguments) == 2
    assert "expected the address of a service" in capsys.readouterr().err
