"""What a person sees in a terminal: pictures, colours, completion, time left."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import fill, measured
from optuna.study import get_all_study_names, load_study
from rich.console import Console as RichConsole
from served import free_port, served, until

from api.cli import main
from api.plots import bar, ratio_chart
from api.progress_bar import time_left
from api.studies import parameter_importance, studies, trials_of
from autotune.space import Space
from autotune.winner import Interval
from db import open_store

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "a.db"
    with open_store(path) as store:
        fill(store)
    return path


@given(st.floats(0, 5), st.integers(12, 60))
def test_bars_fit_and_grow_with_the_ratio(ratio: float, columns: int) -> None:
    def drawn(value: float) -> str:
        return bar(Interval(median=value, low=value, high=value), columns)

    assert len(drawn(ratio)) == columns
    assert drawn(ratio).count("█") <= drawn(ratio + 0.3).count("█")
    assert ("|" in drawn(ratio)) == (ratio < 1 - 1.5 / columns) or abs(ratio - 1) < 0.15


@pytest.mark.parametrize("width", [60, 80, 200])
def test_chart_fits_the_window(width: int) -> None:
    console = RichConsole(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(ratio_chart(measured(), width))
    lines = captured.get().splitlines()
    assert len(lines) == len(measured()) + 1
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", ["winners.png", "winners.svg"])
def test_winners_are_drawn_into_files(database: Path, tmp_path: Path, name: str) -> None:
    assert main(["winners", "--db", str(database), "--plot", str(tmp_path / name)]) == 0
    start = (tmp_path / name).read_bytes()[:200]
    assert start.startswith(b"\x89PNG") or b"<?xml" in start


def test_a_picture_of_another_kind_is_refused(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["winners", "--db", str(database), "--plot", "winners.gif"]) == 2
    assert "expected a file that ends in .png or .svg" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "autotune"
    script.write_text(capsys.readouterr().out)
    asked = f"""source {script}
complete -p autotune | grep -q _shtab || exit 3
COMP_WORDS=(autotune win); COMP_CWORD=1; _shtab_autotune; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(autotune winners --pl); COMP_CWORD=2; _shtab_autotune; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert done.stdout.split() == ["winners", "--plot"], done.stderr


def test_zsh_gets_a_script_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef autotune")
    assert main(["completion", "zsh", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "zsh", "script": script}


@pytest.mark.parametrize(("colours", "expected"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_off_when_asked(database: Path, colours: dict[str, str], expected: bool) -> None:
    leader, follower = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "api.cli", "winners", "--db", str(database)]
    more = {"TERM": "xterm-256color", "COLUMNS": "160", **colours}
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environ | more, cwd=ROOT)
    os.close(follower)
    said = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        said += part
    os.close(leader)
    assert process.wait(20) == 0
    assert (b"\x1b[32m" in said) == expected  # green: faster than the default


def test_time_left_is_said() -> None:
    assert time_left({"budget": {"seconds": 60, "trials": None}, "used_s": 20.0, "trials": 3}) == "40 s"
    assert time_left({"budget": {"seconds": 600, "trials": None}, "used_s": 0.0, "trials": 0}) == "10 min"
    assert time_left({"budget": {"seconds": None, "trials": 9}, "used_s": 0.0, "trials": 0}) == ""
    assert time_left({"phase": "final", "budget": {"seconds": 60}, "used_s": 20.0}) == ""
    assert time_left({}) == ""


def test_studies_hold_what_was_measured(database: Path) -> None:
    with open_store(database) as store:
        winners = [winner for _, winner in store.winners(limit=100)]
        storage = studies(store, winners)
        timed = [w for w in winners if trials_of(Space.of(w.key), store.measurements(w.key))]
        on_cpu = next(winner for winner in winners if winner.key.device.device == "CPU")
        kept = store.measurements(on_cpu.key)
    names = get_all_study_names(storage)
    assert len(names) == len(timed) > 10
    study = load_study(study_name=next(n for n in names if on_cpu.key.digest[:6] in n), storage=storage)
    space = Space.of(on_cpu.key)
    expected = [m for m in kept if m.ok and space.choices(m.candidate)]
    assert [trial.params["strategy"] for trial in study.trials] == [m.candidate.strategy for m in expected]
    assert 0 < 2.718281828459045**study.best_value < 1


def test_importance_is_a_share(database: Path) -> None:
    with open_store(database) as store:
        winner = next(w for _, w in store.winners(limit=100) if "28x28" in str(w.key) and "CPU" in str(w.key))
        measurements = store.measurements(winner.key)
    space = Space.of(winner.key)
    found = parameter_importance(space, measurements, "blocked")
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert "cout_block" in found
    assert parameter_importance(space, measurements[:3], "blocked") == {}
    same = [replace(m, times_s=m.yardstick_times_s) for m in measurements]
    assert parameter_importance(space, same, "blocked") == {}


def test_page_links_to_optunas_dashboard_while_it_runs(database: Path) -> None:
    with served(database) as service:
        with open_store(database) as store:
            winner = next(w for _, w in store.winners(limit=100) if "28x28" in str(w.key) and "CPU" in str(w.key))
        part = f"/dashboard/importance/{winner.key.digest}?blocked"
        assert "Optuna" not in service.http.get(part).text
        command = [sys.executable, "-m", "api.cli", "studies", "--json", "--db", str(database)]
        command += ["--port", str(free_port())]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                assert process.stdout is not None
                said = json.loads(process.stdout.readline())
                found = until(lambda: re.search(r'href="(http://[^"]+)"', service.http.get(part).text), 60)
                answer = until(lambda: reached(f"{found[1]}/api/studies"), 60)
            finally:
                process.kill()
                process.communicate()
        assert winner.key.digest[:6] in str(answer)
        assert (said["url"], said["database"]) == (found[1], str(database))
        assert said["searches"] == len(answer["study_summaries"])
        assert "Optuna" not in service.http.get(part).text
    with open_store(database) as store:
        assert store.check() == []


def reached(url: str) -> Any:
    try:
        return httpx.get(url).json()
    except httpx.TransportError:
        return None
