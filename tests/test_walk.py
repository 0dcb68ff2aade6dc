"""A newcomer's walk: every command of README and tutorial, word for word, in one shell, in a clone of its own."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
WALK_S = 1800
PORTS = (8000, 8100)
"""That the pages name."""
SNIPPETS = "snippets.py"
MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "JOBS", "PYTHON")
"""What `make test ARGS=...` would hand on to the walk's own `make run`, which a newcomer types in a fresh shell."""
READY = "until autotune doctor --server http://127.0.0.1:8100 > /dev/null; do sleep 1; done"
RESNET_3X3 = 13
"""Convolutions of ResNet-18 that `make run` tunes."""
SCRIPT = """from tinygrad import Tensor

print((Tensor.rand(1, 64, 56, 56).conv2d(Tensor.rand(64, 64, 3, 3), padding=1)).sum().item() > 0)
"""
"""The reader's own program, of which README only says the name."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * WALK_S)]


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One walk at a time, whichever process of tests it is in: both need the ports that the pages name."""
    with (tmp_path_factory.getbasetemp().parent / "walk.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is committed, with everything of the user's own elsewhere. Skips where a newcomer could not begin."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout that could be cloned")
    for program in ("git", "make", "bash"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    folder = tmp_path_factory.mktemp("walk")
    if why := _no_index(folder / "probe"):
        pytest.skip(f"no package index can be reached: {why}")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder / "clone")], check=True)
    yield folder / "clone"
    shutil.rmtree(folder)  # a virtual environment of gigabytes


def _no_index(folder: Path) -> str:
    """Why nothing can be installed from the index that pip is set to; empty if it can."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    done = subprocess.run([*pip, "--dest", str(folder), "idna"], capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]


def walk(page: Path, clone: Path) -> str:
    """Write the page's programs where it writes them, and run its commands; what all of it printed."""
    for port in PORTS:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something else listens on port {port}, which {page.name} uses")
    script = clone.parent / f"{page.stem}.sh"
    script.write_text("\n".join(["set -euo pipefail", *_lines(page.read_text()), ""]))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOTUNE_", "PYTHON"))}
    environ |= {"XDG_DATA_HOME": str(clone.parent / "data"), "CACHEDB": str(clone.parent / "tinygrad.db"), "DEV": "CPU"}
    environ |= {"PATH": os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if ".venv" not in p)}
    for name in ("VIRTUAL_ENV", *MAKE):
        environ.pop(name, None)
    done = subprocess.run(
        ["bash", str(script)], cwd=clone, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=WALK_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{page.name}, status {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


def _lines(text: str) -> Iterator[str]:
    """The lines of a shell script. Each command is the page's own; two are not left to run as long as they would. Code
    without a file of its own is run as one program, in the end."""
    for block in BLOCK.finditer(text):
        if block["kind"] == "python":
            where = f"> {block['file']}" if block["file"] else f">> {SNIPPETS}"
            yield f"cat {where} <<'END-OF-FILE'\n{block['text']}END-OF-FILE"
        elif block["kind"] == "console":
            for command in block["text"].splitlines():
                yield f"echo '$ {command.replace(chr(39), '')}'"
                if command == "make test":  # all that it runs is found; running it is what this is part of
                    yield "PYTEST_ADDOPTS='--collect-only --quiet --quiet' make test"
                elif re.match(r"autotune serve( *#|$)", command):  # until Ctrl-C, which ends it well
                    yield f"timeout --preserve-status --signal=INT 60 {command}"  # it takes a while to start
                else:
                    yield command
                if command.endswith("&"):
                    yield READY
    yield f"test ! -e {SNIPPETS} || python {SNIPPETS}"


def test_the_tutorial_word_for_word(clone: Path) -> None:
    said = walk(clone / "docs" / "tutorial.md", clone)
    assert "hits=3" in said, f"the model's convolutions found no winner:\n{said[-3000:]}"
    assert "padding 1 on CPU done" in said, f"the program followed no job to its end:\n{said[-3000:]}"
    assert (clone / "first" / "winners.svg").read_text().count("<svg")


def test_the_readme_word_for_word(clone: Path) -> None:
    (clone / "script.py").write_text(SCRIPT)
    said = " ".join(walk(clone / "README.md", clone).split())
    compared = re.search(r"ResNet-18, with the hook .* (\d+) of \d+ convolutions found a winner", said)
    assert compared is not None, said[-5000:]
    assert int(compared[1]) >= RESNET_3X3, said[-5000:]
    assert "$ autotune run script.py # an unmodified program, with winners applied True" in said, said[-5000:]
    assert (clone / "winners.json").exists()
