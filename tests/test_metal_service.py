"""METAL from end to end on the stand-in: a service, its measuring child, the search, the winner, and the hook in a
program of its own. What it timed never leaves the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import metal
import pytest
from metal.compiler import unavailable

from tests.databases import new_database
from tests.served import ROOT, until

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPE = {"input": [1, 4, 8, 8], "weight": [4, 4, 3, 3], "padding": 1, "device": "METAL"}
PROGRAM = """
import json, sys
import numpy as np
import autotune
from tinygrad import Device, Tensor
autotune.install(sys.argv[1])
rng = np.random.default_rng(0)
x, w = (rng.normal(size=size).astype(np.float32) for size in ((1, 4, 8, 8), (4, 4, 3, 3)))
y = Tensor(x).conv2d(Tensor(w), padding=1).numpy()
padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
expected = sum(
    np.einsum("oc,bchw->bohw", w[:, :, i, j], padded[:, :, i : i + 8, j : j + 8]) for i in range(3) for j in range(3)
)
stats = autotune.stats()
print(json.dumps({"device": Device.DEFAULT, "error": float(abs(y - expected).max() / abs(expected).max()),
                  "hits": stats.hits, "misses": stats.misses, "fallbacks": stats.fallbacks}))
"""


@pytest.fixture
def environ() -> dict[str, str]:
    return metal.environment({**os.environ, "DEV": "METAL", "PYTHONPATH": str(ROOT)})


@contextmanager
def running(*arguments: str, environ: dict[str, str]) -> Iterator[str]:
    """`autotune` with these arguments, and the first line that it writes to stderr."""
    command = [sys.executable, "-m", "api.cli", *arguments]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        reader = threading.Thread(target=process.stderr.read)
        reader.start()  # a pipe that nobody reads would stop it
        try:
            yield line
        finally:
            process.terminate()
            process.wait(60)
            reader.join()


@pytest.fixture(params=["local", pytest.param("fleet", marks=pytest.mark.slow)])
def service(request: pytest.FixtureRequest, environ: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Where a service is that measures on METAL: by itself, or by a worker, being on a machine without METAL."""
    with ExitStack() as stack:
        if request.param == "local":
            database, of_service = str(tmp_path / "metal.db"), environ
        else:
            database = stack.enter_context(new_database("postgresql", tmp_path))
            of_service = {**os.environ, "DEV": "CPU", "PYTHONPATH": str(ROOT)}
        line = stack.enter_context(running("serve", "--port", "0", "--db", database, environ=of_service))
        if request.param == "fleet":
            stack.enter_context(running("worker", "--device", "METAL", "--db", database, environ=environ))
        yield line.split()[-1]


def test_tuned_over_http_and_applied_in_a_program(service: str, environ: dict[str, str], tmp_path: Path) -> None:
    with httpx.Client(base_url=service, timeout=60) as http:

        def accepted() -> str | None:
            asked = http.post("/tune", json={**SHAPE, "trials": 3})
            return asked.json()["id"] if asked.status_code == 202 else None

        job = until(accepted, timeout_s=100)  # a worker takes a while to say that it is there

        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = http.get(f"/jobs/{job}").json()
            return found if found["state"] in ("done", "failed", "cancelled") else None

        done = until(ended, timeout_s=500)
        assert done["state"] == "done", json.dumps(done)
        [winner] = http.get("/winners").json()["winners"]
        spec = winner["winner"]["key"]["device"]
        assert (spec["device"], spec["arch"]) == ("METAL", "Apple9 Apple stand-in")
        assert spec["simulated"] == "the METAL stand-in of the tests"
        assert winner["winner"]["error"] < 1e-5
        # times that are none stay here
        assert http.get("/export").json()["winners"] == []
        # a program's lookup has 0.3 s, and the first one takes longest
        query = {"input": "1x4x8x8", "weight": "4x4x3x3", "padding": "1", "device": "METAL"}
        assert http.get("/lookup", params=query).status_code == 200
    applied = program(environ, tmp_path, service)
    assert applied.pop("error") < 1e-5
    assert applied == {"device": "METAL", "hits": 1, "misses": 0, "fallbacks": 0}


def program(environ: dict[str, str], tmp_path: Path, source: str) -> dict[str, Any]:
    """What PROGRAM prints, started as a user would."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), source]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
