"""Documentation as tests: references written from the code, programs on the pages run, nothing left undocumented."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from api.dispatch import build_parser
from api.reference import ENVIRONMENT, cli_reference, http_reference, openapi
from strategies.registry import strategies

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OUR_VARIABLES = re.compile(r"\bAUTOTUNE_[A-Z][A-Z_]*\b")
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def commands() -> dict[str, object]:
    """Every command's parser by its whole name."""
    from api.reference import _commands

    return {name: command for name, command, _ in _commands(build_parser())}


def _has_commands(parser: object) -> bool:
    """`autotune token` does nothing itself: its actions do."""
    return any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)  # type: ignore[attr-defined]


def test_command_line_reference_is_current() -> None:
    assert (DOCS / "cli.md").read_text() == cli_reference(), "write it anew: make docs"


def test_http_reference_is_current() -> None:
    assert (DOCS / "http.md").read_text() == http_reference(openapi()), "write it anew: make docs"


@pytest.mark.parametrize("name", commands())
def test_help_has_examples_that_parse(name: str) -> None:
    parser = commands()[name]
    lines = [line.strip() for line in (parser.epilog or "").splitlines()]  # type: ignore[attr-defined]
    examples = [line for line in lines if line.startswith(f"{name} ") or line == name]
    assert examples, f"{name} --help shows no example"
    for example in examples:
        words = shlex.split(example.split(" > ")[0].split("   ")[0])
        build_parser().parse_args(words[1:])


@pytest.mark.parametrize("name", [name for name, parser in commands().items() if not _has_commands(parser)])
def test_every_command_can_speak_json(name: str) -> None:
    options = [option for action in commands()[name]._actions for option in action.option_strings]  # type: ignore[attr-defined]
    assert "--json" in options, "add_json(parser), and say in its help what it means where that is not one document"


def test_every_variable_is_documented() -> None:
    sources = [path for package in ("api", "autotune", "db", "strategies") for path in (ROOT / package).rglob("*.py")]
    found = {name for path in sources for name in OUR_VARIABLES.findall(path.read_text())}
    assert found <= ENVIRONMENT.keys(), "add them to api/reference.py and write docs/cli.md anew: make docs"
    assert {name for name in ENVIRONMENT if name.startswith("AUTOTUNE_")} <= found, "nobody reads these any more"


def test_every_strategy_is_explained() -> None:
    text = (DOCS / "how-it-works.md").read_text()
    missing = [item.name for item in strategies() if f"- `{item.name}`:" not in text]
    assert not missing, "explain them in docs/how-it-works.md"
    table, figure = (ROOT / "README.md").read_text(), (DOCS / "images" / "strategies.svg").read_text()
    for item in strategies():
        assert f"| `{item.name}` |" in table, "README's table"
        assert f">{item.name}</text>" in figure, "docs/images/strategies.svg"


@pytest.mark.parametrize("page", sorted([*DOCS.rglob("*.md"), ROOT / "README.md"]), ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


SETTING_UP = ("make", "source", "mkdir", "cd", "export")
"""What run_page has done already: this checkout, a folder, the variables. tests/test_walk.py does these, too."""


def run_page(page: str, folder: Path) -> list[str]:
    """Write the files on a page and run its commands, in order; what each printed."""
    environ = os.environ | {
        "AUTOTUNE_DB": str(folder / "autotune.db"), "PYTHONPATH": f"{ROOT}:{folder}", "DEV": "CPU",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    environ.pop("AUTOTUNE_URL", None)
    said, left_running, pipe = list[str](), list[subprocess.Popen[bytes]](), subprocess.PIPE
    for block in BLOCK.finditer((DOCS / page).read_text()):
        if block["kind"] == "python":
            assert block["file"], "a program on a page needs a name: <!-- file: NAME.py -->"
            (folder / block["file"]).write_text(block["text"])
        elif block["kind"] == "console":
            for command in block["text"].splitlines():
                words = shlex.split(command)
                if words[0] in SETTING_UP:
                    continue
                if words[0] == "autotune":  # of this checkout, wherever the installed one points
                    words = [sys.executable, "-m", "api.cli", *words[1:]]
                if words[-1] == "&":
                    left_running.append(subprocess.Popen([*words[:-1], "--json"], cwd=folder, env=environ, stdout=pipe))
                    assert left_running[-1].stdout.readline(), f"{command} said nothing"  # type: ignore[union-attr]
                    continue
                if words == ["kill", "%1"]:
                    end(left_running)
                    continue
                done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                said.append(done.stdout)
    assert not left_running, "a page ends what it started"
    return said


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """As `kill` does; each must have ended well."""
    while processes:
        process = processes.pop()
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.mark.slow
def test_tutorial_runs(tmp_path: Path) -> None:
    said = run_page("tutorial.md", tmp_path)
    assert any("1x16x32x32 16x16x3x3 padding 1" in text for text in said)
    assert any("hits=3" in text for text in said), "the model's convolutions found no winner"
    assert "<svg" in (tmp_path / "winners.svg").read_text()
    assert "16x16x3x3 padding 1 on CPU done" in said[-1]


def test_what_is_in_the_graph_is_what_the_page_shows(tmp_path: Path) -> None:
    [said] = run_page("how-it-works.md", tmp_path)
    assert f"```text\n{said}```" in (DOCS / "how-it-works.md").read_text()


def test_added_strategy_works(tmp_path: Path) -> None:
    assert run_page("adding-a-strategy.md", tmp_path)[0].count("tile") == 2
