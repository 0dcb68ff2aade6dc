"""The wheel holds every file, and works in an empty environment outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("strategies", "autotune", "db", "api")
SHAPE = ("1x8x16x16", "8x8x3x3", "--padding", "1")

APPLY = """
import json, sys
import autotune
from autotune.compiler import ensure_c_compiler
from tinygrad import Tensor

assert autotune.__file__.startswith(sys.prefix), autotune.__file__
ensure_c_compiler()
x, w = (Tensor.randn(*shape, device="CPU").realize() for shape in ((1, 8, 16, 16), (8, 8, 3, 3)))
expected = x.conv2d(w, padding=1).numpy()
autotune.install(sys.argv[1])
got = x.conv2d(w, padding=1).numpy()
stats = autotune.stats()
print(json.dumps({
    "error": float(abs(got - expected).max() / abs(expected).max()),
    "hits": stats.hits, "misses": stats.misses, "fallbacks": stats.fallbacks,
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of `command`, run as a user would: with nothing set that these tests, or this project, use."""
    ours = ("AUTOTUNE_", "PYTEST_", "PYTHON")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours) and name != "CC"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("tinygrad_autotune-*-py3-none-any.whl")
    return built


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert names >= {f"{package}/py.typed" for package in PACKAGES}


@pytest.mark.slow
def test_the_wheel_tunes_and_applies_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", environment, cwd=elsewhere)
    pip = (environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--require-hashes", "-r", ROOT / "requirements" / "run.txt", cwd=elsewhere)
    run(*pip, "--no-deps", wheel, cwd=elsewhere)

    database = elsewhere / "winners.db"
    tune = (environment / "bin" / "autotune", "tune", *SHAPE, "--trials", "3", "--device", "CPU", "--db", database)
    tuned: Any = json.loads(run(*tune, "--json", cwd=elsewhere))
    applied: Any = json.loads(run(environment / "bin" / "python", "-c", APPLY, database, cwd=elsewhere))
    assert applied["fallbacks"] == applied["misses"] == 0, (tuned, applied)
    assert applied["hits"] or '"direct"' in json.dumps(tuned), (tuned, applied)
    assert applied["error"] <= 1e-4


OTHER_TINYGRAD = """
import autotune
autotune.install("nowhere.json")
with autotune.forced("four_buffer", tile=4), autotune.tuned("nowhere.json"):
    pass
autotune.uninstall()
print(autotune.stats().convolutions, autotune.refresh(), autotune.explain_last())
"""


@pytest.mark.parametrize("inside", ["", "import enum\nclass Ops(enum.Enum):\n    ADD = 1\nclass UOp: pass\n"])
def test_a_tinygrad_that_lacks_what_the_hook_imports(inside: str, tmp_path: Path) -> None:
    """It warns, once, and does nothing, as with any other that is not supported."""
    for name, text in (("__init__", "class Tensor: pass"), ("uop/__init__", ""), ("uop/ops", inside)):
        path = tmp_path / "tinygrad" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    about = tmp_path / "tinygrad-0.13.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: tinygrad\nVersion: 0.13.0\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", OTHER_TINYGRAD], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 0 ()\n"
    assert done.stderr.count("autotune: inactive: tinygrad 0.13.0 is not supported: install tinygrad 0.14.x") == 1
