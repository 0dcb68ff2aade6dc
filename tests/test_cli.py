"""The command line: exit statuses, one line per error, one document with --json."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import platform
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console as RichConsole
from served import ROOT, body, key_of, served, until, winner_of

from api import dispatch
from api.arguments import Parser
from api.cli import main
from api.commands.worker import check
from api.console import CliError, Console
from api.doctor import Level, examine
from api.progress_bar import TuneBar, describe
from api.server import PortError, listen
from api.settings import Settings, SettingsError, default_database
from api.tables import winners_table
from autotune.bundle import write
from autotune.compiler import CCompilerError
from autotune.fleet import Worker
from autotune.winner import Winner
from db import open_store
from strategies.candidate import Candidate
from strategies.key import ConvKey

SHAPE = ["1x8x16x16", "8x8x3x3", "--padding", "1"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No setting of the person who runs the tests; a database of its own."""
    for name in list(os.environ):
        if name.startswith("AUTOTUNE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "cli.db"))
    return tmp_path / "cli.db"


def autotune(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def quiet(err: str) -> str:
    """Without what is said when others on this machine measure at the same time."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("waiting for CPU"))


def one_line(text: str) -> str:
    assert text.startswith("autotune: ")
    assert text.count("\n") == 1, text
    return text.strip()


FAULTS: list[tuple[list[str], int, str]] = [
    ([], 2, "COMMAND"),
    (["nonsense"], 2, "nonsense"),
    (["tune"], 2, "INPUT, WEIGHT"),
    (["tune", "1x8x16x16"], 2, "WEIGHT"),
    (["tune", "1x8x16x16", "8x8x3"], 2, "same number of dimensions"),
    (["tune", "1x8x16x16", "8x9x3x3"], 2, "8 channels"),
    (["tune", "1x0x16x16", "8x8x3x3"], 2, "between 1 and"),
    (["tune", "1x-8x16x16", "8x8x3x3"], 2, "between 1 and"),
    (["tune", "nonsense", "8x8x3x3"], 2, "1x64x56x56"),
    (["tune", *SHAPE, "--padding", "x"], 2, "padding must look like"),
    (["tune", *SHAPE, "--padding", "-1"], 2, "padding"),
    (["tune", *SHAPE, "--stride", "0"], 2, "stride"),
    (["tune", *SHAPE, "--groups", "3"], 2, "groups"),
    (["tune", *SHAPE, "--groups", "two"], 2, "groups"),
    (["tune", *SHAPE, "--dtype", "int8"], 2, "float32"),
    (["tune", *SHAPE, "--budget", "0"], 2, "above 0"),
    (["tune", *SHAPE, "--budget", "soon"], 2, "60s"),
    (["tune", *SHAPE, "--budget", "nan"], 2, "above 0"),
    (["tune", *SHAPE, "--trials", "0"], 2, "1 or more"),
    (["tune", *SHAPE, "--max-error", "-1"], 2, "max_error"),
    (["tune", *SHAPE, "--max-workspace", "-1"], 2, "max_workspace_bytes"),
    (["tune", *SHAPE, "--device", "a b"], 1, "CPU, CUDA or METAL"),
    (["tune", *SHAPE, "--nonsense"], 2, "nonsense"),
    (["lookup", "1x8"], 2, "WEIGHT"),
    (["winners", "--format", "xml"], 2, "table"),
    (["winners", "--db", ""], 0, ""),
    (["winners", "--db", "/dev/null/x.db"], 1, "/dev/null"),
    (["winners", "--db", "mysql://u:secret@h/x"], 1, "postgresql"),
    (["run"], 2, "SCRIPT"),
    (["sweep", "--rounds", "0"], 2, "expected a whole number of 1 or more, found '0'"),
    (["export", ""], 1, "found no name of one in ''"),
    (["run", "--source", "~nobody-here/w.json", __file__], 2, "expected a file's path"),
    (["run", "no-such-file.py"], 2, "no-such-file.py"),
    (["run", "--source", "rubbish://x", __file__], 2, "found rubbish://"),
    (["run", "--source", "http://", __file__], 2, "address of a service"),
    (["serve", "--port", "70000"], 2, "65535"),
    (["serve", "--port", "x"], 2, "port"),
    (["serve", "--host", "no.such.host.invalid"], 1, "host"),
    (["import", "no-such-file.json"], 1, "no-such-file.json"),
    (["export", "/no/such/directory/file.json"], 1, "/no/such/directory"),
    (["export", "/proc/file.json"], 1, "name another path"),
    (["export"], 2, "FILE"),
]


@pytest.mark.parametrize(("arguments", "status", "says"), FAULTS, ids=range(len(FAULTS)))
def test_fault_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, says: str) -> None:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    if status:
        assert says in one_line(err)
        assert "secret" not in err


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    for command in ("tune", "lookup", "winners", "run", "serve", "export", "import", "doctor"):
        assert main([command, "--help"]) == 0
        assert command in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("autotune ")


def test_bug_is_one_line_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> Parser:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(dispatch, "build_parser", bug)
    assert main([]) == 1
    assert "ZeroDivisionError: first second" in one_line(capsys.readouterr().err)


def test_database_from_the_future(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(environment).close()
    with sqlite3.connect(environment) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = environment.read_bytes()
    for command in (["winners"], ["serve", "--port", "0"], ["export", "-"]):
        assert main(command) == 1
        assert "newer" in one_line(capsys.readouterr().err)
    assert environment.read_bytes() == before


def test_no_database_at_all(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment.write_text("this is not a database, however long it may be" * 100)
    assert main(["winners"]) == 1
    assert str(environment) in one_line(capsys.readouterr().err)


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = autotune("serve", "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert port in one_line(done.stderr)
    assert "--port" in done.stderr


def test_winners_in_each_format(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["winners"]) == 0
    assert "autotune tune" in capsys.readouterr().err
    with open_store(environment) as store:
        store.decide(winner_of(key_of()))
    assert main(["winners"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for shown in ("1x64x56x56 64x64x3x3 padding 1", "2.00 ms", "2.50 ms", "1.00 ms", "four_buffer(tile=4)", "0.50"):
        assert shown in out
    for arguments in (["--json"], ["--format", "json"]):
        assert main(["winners", *arguments]) == 0
        [document] = json.loads(capsys.readouterr().out)["winners"]
        assert Winner.from_json(document["winner"]) == winner_of(key_of())
    assert main(["winners", "--format", "csv", "--device", "cpu"]) == 0
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["input"], row["padding"], row["ratio"], row["state"]) == ("1x64x56x56", "1,1 1,1", "0.5", "verified")
    assert main(["winners", "--device", "METAL", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"winners": []}


def rows(winners: list[Winner], width: int) -> list[str]:
    out = io.StringIO()
    RichConsole(file=out, width=width).print(winners_table(winners, width))
    return out.getvalue().splitlines()


def test_table_uses_the_room_there_is() -> None:
    params = {"tile": 4, "cout_block": 8, "threads": 4}
    wide = replace(winner_of(key_of()), candidate=Candidate.from_json({"strategy": "four_buffer", "params": params}))
    flagged = replace(wide, key=replace(wide.key, device=replace(wide.key.device, flags=(("BEAM", "1"),))))
    assert len(rows([wide], 100)) <= 3, "a heading and at most two lines"
    assert "four_buffer(tile=4, cout_block=8, threads=4)" in rows([wide], 160)[1]
    assert "tile" not in rows([wide], 80)[1]
    assert len(rows([wide], 80)) == 2
    assert "BEAM" not in "".join(rows([wide], 160))
    assert "CPU BEAM=1" in "".join(rows([wide, flagged], 110))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_progress_fits_the_window(width: int) -> None:
    out = io.StringIO()
    console = Console(err=out)
    console.progress = RichConsole(file=out, width=width, force_terminal=True, color_system=None)
    said = {"trials": 12, "best": winner_of(key_of()).candidate.to_json(), "ratio": 0.519, "fraction": 0.5}
    with TuneBar(console, str(key_of())) as bar:
        bar.show(said)
    lines = [line for line in re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "\n", out.getvalue()).splitlines() if "50%" in line]
    assert lines
    assert all(len(line.strip()) <= width for line in lines)
    if width >= 80:
        assert all("━" * 8 in line and "0:00:0" in line and "best four_buffer 0.52" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 220])
def test_table_fits_the_window(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "width", width)
    out = io.StringIO()
    Console(out=out).table(winners_table([winner_of(key_of())], width))
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert "0.50" in out.getvalue()


def test_export_and_import(environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(environment) as store:
        store.decide(winner_of(key_of()))
    file, other = tmp_path / "winners.json", str(tmp_path / "other.db")
    assert main(["export", str(file)]) == 0
    assert main(["export", "-"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (file.read_text(), f"1 winners written to {file}\n")
    assert main(["export", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(file), "winners": 1, "left_out": 0}
    assert main(["export", "-", "--json"]) == 0
    assert capsys.readouterr().out == out
    assert main(["import", str(file), "--db", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"imported": 1, "kept": 0}
    assert main(["winners", "--db", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["winners"][0]["digest"] == key_of().digest


def test_a_device_of_which_nothing_is_known(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(environment) as store:
        store.decide(winner_of(key_of()))
    file = tmp_path / "winners.json"
    assert main(["export", str(file), "--device", "bogus"]) == 1
    assert "no winners on BOGUS: there are some on CPU (1); nothing was written" in one_line(capsys.readouterr().err)
    assert not file.exists()
    assert main(["winners", "--device", "bogus"]) == 0
    assert "no winners on BOGUS: there are some on CPU (1)" in capsys.readouterr().err


def test_no_place_for_the_database(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOTUNE_DB")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    for command in (["winners"], ["tune", *SHAPE]):
        assert main(command) == 1
        said = one_line(capsys.readouterr().err)
        assert "--db or AUTOTUNE_DB" in said
        assert "XDG_CACHE_HOME" in said


def test_no_place_for_what_tinygrad_compiles(environment: Path) -> None:
    done = autotune("tune", *SHAPE, DEV="CPU", XDG_CACHE_HOME="/dev/null", CC="")
    assert done.returncode == 1
    assert "set XDG_CACHE_HOME to another" in one_line(done.stderr)


@pytest.mark.parametrize(("code", "says"), [(errno.EADDRNOTAVAIL, "--host"), (errno.EACCES, "below 1024")])
def test_what_helps_where_nobody_else_listens(code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket.socket, "bind", refused)
    with pytest.raises(PortError, match=says) as caught:
        listen("127.0.0.1", 80)
    assert "end the program" not in str(caught.value)


def test_interrupted_while_it_is_imported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatch, "main", interrupted)
    assert main([]) == 130
    assert one_line(capsys.readouterr().err) == "autotune: interrupted"
    program = "import api.cli, sys; assert 'api.dispatch' not in sys.modules and 'argparse' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_default_database_is_made_where_programs_keep_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AUTOTUNE_DB")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["winners"]) == 0
    assert default_database(os.environ).exists()
    assert default_database(os.environ).is_relative_to(tmp_path)


def test_truncated_import_changes_nothing(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "winners.json"
    write(file, [winner_of(key_of()), winner_of(key_of(32))])
    whole = file.read_bytes()
    for damaged in (whole[:-30], whole[: len(whole) // 2], b"", whole.replace(b"0.5", b"0.4", 1)):
        file.write_bytes(damaged)
        assert main(["import", str(file)]) == 1
        assert str(file) in one_line(capsys.readouterr().err)
    with open_store(environment) as store:
        assert store.winners() == []


def test_unknown_device() -> None:
    done = autotune("tune", *SHAPE, "--device", "nope", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no device NOPE on this machine: expected one of" in one_line(done.stderr)


def test_interrupted_tune_says_that_it_can_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any, **__: Any) -> Winner:
        raise KeyboardInterrupt

    monkeypatch.setattr("autotune.tune.tune", interrupted)
    assert main(["tune", *SHAPE]) == 130
    assert "what was measured is kept; the same command goes on" in one_line(capsys.readouterr().err)
    monkeypatch.setattr("api.devices.ProbedDevices.describe", lambda *_: key_of().device)
    given = ["tune", *SHAPE, "--groups", "1", "--device", "CPU", "--max-error", "1e-6", "--frozen-weights"]
    given += ["--allow-tf32", "--max-workspace", "1000000", "--budget", "2m", "--trials", "7"]
    given += ["--db", str(tmp_path / "my winners.db")]
    assert main(given) == 130
    again = shlex.split(one_line(capsys.readouterr().err).split("goes on from there: ")[1])
    assert dispatch.build_parser().parse_args(again[1:]) == dispatch.build_parser().parse_args(given), (
        "what it says to type is the same"
    )


def test_the_whole_path_with_ctrl_c_in_its_middle(environment: Path, tmp_path: Path) -> None:
    """tinygrad on the CPU, a child that measures, SIGINT to the whole group as a terminal sends it; then again to the
    end, looked up, and applied to a program."""
    command = [sys.executable, "-m", "api.cli", "tune", *SHAPE, "--budget", "10m"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None

        def measured() -> int:
            if not environment.exists():
                return 0
            with open_store(environment) as store:
                return store.counts()["measurements"]

        before = until(lambda: measured() >= 2 and measured(), 90)
        os.killpg(process.pid, signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(20) == 130
    assert "what was measured is kept" in one_line(quiet(err))
    done = autotune("tune", *SHAPE, "--trials", "2", "--json")
    assert (done.returncode, quiet(done.stderr)) == (0, "")
    winner = Winner.from_json(json.loads(done.stdout)["winner"])
    with open_store(environment) as store:
        assert store.winner(winner.key) == winner
        assert len(store.measurements(winner.key)) > before
    found = autotune("lookup", *SHAPE, "--json")
    assert Winner.from_json(json.loads(found.stdout)["winner"]) == winner
    missed = autotune("lookup", "1x8x20x20", *SHAPE[1:], "--json")
    assert missed.returncode == 1
    assert json.loads(missed.stdout)["nearest"][0]["digest"] == winner.key.digest
    assert "autotune tune 1x8x20x20 8x8x3x3 --padding 1" in one_line(missed.stderr)
    program = tmp_path / "program.py"
    program.write_text(
        "import autotune\n"
        "from tinygrad import Tensor\n"
        "Tensor.rand(1, 8, 16, 16).conv2d(Tensor.rand(8, 8, 3, 3), padding=1).realize()\n"
        "print(autotune.stats())\n"
    )
    ran = autotune("run", "--json", str(program))
    assert ran.returncode == 0
    assert "hits=1" in ran.stdout, ran.stdout
    said = json.loads(ran.stderr)
    assert (said["convolutions"], said["hits"], said["fallbacks"]) == (1, 1, 0)
    open_store(tmp_path / "empty.db").close()
    ran = autotune("run", "--db", str(tmp_path / "empty.db"), str(program))
    assert ran.returncode == 0
    assert "0 of 1 convolutions had a winner on " in one_line(ran.stderr)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served(tmp_path / "served.db") as service:
        monkeypatch.setenv("AUTOTUNE_URL", service.url)
        yield service.url


@pytest.mark.usefixtures("url")
def test_commands_talk_to_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lookup", *SHAPE]) == 1
    assert "no winner for" in one_line(capsys.readouterr().err)
    assert main(["tune", "1x64x56x56", "64x64x3x3", "--padding", "1,1", "--trials", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["digest"] == key_of().digest
    assert main(["lookup", "1x64x56x56", "64x64x3x3", "--padding", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document
    assert main(["winners"]) == 0
    assert "four_buffer" in capsys.readouterr().out
    assert main(["tune", *SHAPE, "--device", "NOPE"]) == 1
    assert "no device NOPE" in one_line(capsys.readouterr().err)
    assert main(["tune", "1x13x8x8", "64x13x3x3"]) == 1
    assert "even direct failed on two lines" in one_line(capsys.readouterr().err)


def test_service_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        monkeypatch.setenv("AUTOTUNE_URL", f"http://127.0.0.1:{gone.getsockname()[1]}")
    for command in (["winners"], ["lookup", *SHAPE], ["tune", *SHAPE]):
        assert main(command) == 1
        assert "autotune serve" in one_line(capsys.readouterr().err)
    monkeypatch.setenv("AUTOTUNE_URL", "ftp://nonsense")
    assert main(["winners"]) == 2
    assert "AUTOTUNE_URL" in one_line(capsys.readouterr().err)


def test_serve_listens_and_ends(environment: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "api.cli", "serve", "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(f"autotune: serving {environment} at http://127.0.0.1:")
        second = autotune("serve", "--port", "0")
        assert second.returncode == 1
        assert "another service works on" in one_line(second.stderr)
        (link := tmp_path / "link.db").symlink_to(environment)
        for same in (f"sqlite:///{environment}", str(link)):
            again = autotune("serve", "--port", "0", "--db", same)
            assert "another service works on" in one_line(again.stderr)
        shown = autotune("winners", AUTOTUNE_URL=line.split()[-1])
        assert (shown.returncode, shown.stderr.count("no winners yet")) == (0, 1)
        process.terminate()
        assert (process.wait(15), process.stderr.read()) == (0, "")


def test_a_log_that_nobody_reads_stops_nobody(environment: Path) -> None:
    command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--log-format", "json"]
    reads, writes = os.pipe()
    fcntl.fcntl(reads, 1031, 4096)  # F_SETPIPE_SZ, of Linux: a few lines
    with (
        os.fdopen(reads) as log,
        subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=writes) as own,
    ):
        os.close(writes)
        url = log.readline().split()[-1]
        with httpx.Client(base_url=url, timeout=60) as http:
            assert {http.get("/jobs").status_code for _ in range(100)} == {200}
            assert http.get("/healthz").status_code == 200
        own.terminate()
        assert own.wait(60) == 0
        assert json.loads(log.readline())["logger"] == "autotune.requests"


def test_a_second_service_upgrades_nothing(environment: Path) -> None:
    """The first one, of an older release, could not go on."""
    with open_store(environment) as store:
        store.migrate_back("0007")
    with Path(f"{environment}.serve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = autotune("serve", "--port", "0")
    assert (second.returncode, "another service works on" in one_line(second.stderr)) == (1, True)
    with contextlib.closing(sqlite3.connect(environment)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == ("0007",)


def test_run_gives_the_program_its_own_modules(tmp_path: Path) -> None:
    """Of ours it sees autotune and strategies; api and db are its own, and so are arguments, status and `__main__`."""
    for name in ("api", "db", "strategies", "autotune"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    (tmp_path / "program.py").write_text(
        "import json, sys, api, db, strategies, autotune, strategies.candidate\n"
        "import __main__\n"
        "class Mine: pass\n"
        "def typed(x: int) -> None: pass\n"
        "print(json.dumps({'argv': sys.argv[1:], 'api': api.mine, 'db': db.mine,\n"
        "    'annotation': typed.__annotations__['x'] is int,\n"
        "    'ours': hasattr(autotune, 'install'), 'main': __main__.Mine is Mine, 'file': __file__,\n"
        "    'path': sys.path[0]}))\n"
        "sys.exit(7)\n"
    )
    done = autotune("run", os.path.relpath(tmp_path / "program.py"), "--", "--json", "x y")
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == {
        "argv": ["--", "--json", "x y"], "api": True, "db": True, "ours": True, "main": True, "annotation": True,
        "file": str(tmp_path / "program.py"), "path": str(tmp_path),
    }  # fmt: skip


def test_run_leaves_the_programs_path_as_it_is(tmp_path: Path) -> None:
    """With a safe path Python puts no script's folder in front."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "mine.py").write_text("")
    (tmp_path / "beside.py").write_text("")
    program = tmp_path / "program.py"
    program.write_text("import importlib.util, mine\nprint(importlib.util.find_spec('beside') is None)\n")
    paths = os.pathsep.join((str(tmp_path / "library"), str(ROOT)))
    command = [sys.executable, "-m", "api.cli", "run", "--source", "/nowhere.json", str(program)]
    environ = os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_whatever_stdout_is() -> None:
    """Closed by whoever started the command, or of an encoding that lacks its letters."""
    closed = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'api.cli', *sys.argv[1:]])"
    for command in (["winners"], ["completion", "bash"]):
        done = subprocess.run([sys.executable, "-c", closed, *command], env=os.environ | {"PYTHONPATH": str(ROOT)},
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert (done.returncode, "a bug" in done.stderr) == (0, False), done.stderr
    shown = autotune("explain", "--help", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    measured = autotune("tune", *SHAPE, "--trials", "1", PYTHONIOENCODING="ascii")
    assert (measured.returncode, "?s" in measured.stdout) == (0, True), measured.stderr


def test_doctor(environment: Path) -> None:
    done = autotune("doctor", "--json")
    document = json.loads(done.stdout)
    checks = {check["name"]: check for check in document["checks"]}
    assert (done.returncode, document["healthy"], done.stderr) == (0, True, "")
    assert {"autotune", "tinygrad", "hook", "C compiler", "device CPU", "database"} <= checks.keys()
    assert str(environment) in checks["database"]["found"]
    assert autotune("doctor").stdout.count("\n") >= len(checks)


def test_doctor_names_what_is_wrong(
    environment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.write_text("nonsense" * 1000)
    monkeypatch.setattr("api.doctor.version", lambda _: "0.13.0")
    monkeypatch.setattr("api.doctor.ProbedDevices.names", lambda _: ())
    assert main(["doctor", "--json"]) == 1
    out, err = capsys.readouterr()
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert "tinygrad" in one_line(err)
    assert (checks["tinygrad"]["level"], checks["database"]["level"]) == ("fault", "fault")
    assert "0.14" in checks["tinygrad"]["advice"]


@pytest.mark.parametrize(("default", "level"), [("CPU", Level.FAULT), ("METAL", Level.WARNING)])
def test_no_compiler_is_a_fault_where_the_cpu_is_the_default(
    default: str, level: Level, monkeypatch: pytest.MonkeyPatch, environment: Path
) -> None:
    def none() -> None:
        raise CCompilerError("install clang")

    monkeypatch.setattr("api.doctor.ensure_c_compiler", none)
    monkeypatch.setattr("api.doctor.ProbedDevices.names", lambda _: (default,))
    checks = {check.name: check for check in examine(Settings(db=str(environment)))}
    assert checks["C compiler"].level is level


def test_doctor_that_falls_ill_says_so(monkeypatch: pytest.MonkeyPatch, environment: Path) -> None:
    def ill(_: Settings) -> None:
        raise RuntimeError("dizzy")

    monkeypatch.setattr("api.doctor._devices", ill)
    faults = [check for check in examine(Settings(db=str(environment))) if check.level is Level.FAULT]
    assert [check.found for check in faults] == ["RuntimeError: dizzy"]


def test_settings_come_from_flags_then_environment_then_defaults() -> None:
    environ = {"AUTOTUNE_DB": "e.db", "AUTOTUNE_URL": "http://h:1/", "AUTOTUNE_SOURCE": "s.json", "HOME": "/h"}
    settings = Settings.from_environment(environ, db="f.db", port=0)
    assert (settings.db, settings.url, settings.run_source, settings.port) == ("f.db", "http://h:1", "s.json", 0)
    assert Settings.from_environment(environ).db == "e.db"
    assert Settings.from_environment({"HOME": "/h"}).db == str(default_database({"HOME": "/h"}))
    assert Settings.from_environment({"HOME": "/h"}).run_source.startswith("/h/")
    hosts = {"127.0.0.1": True, "::1": True, "127.0.0.2": True, "0.0.0.0": False, "192.168.0.1": False, "myhost": False}
    assert {host: Settings(db="x", host=host).loopback for host in hosts} == hosts
    for bad in ({"port": -1}, {"host": ""}, {"url": "h:1"}):
        with pytest.raises(SettingsError):
            Settings(db="x", **bad)  # type: ignore[arg-type]


def test_progress_in_words() -> None:
    best = winner_of(key_of()).candidate.to_json()
    said = describe({"trials": 12, "best": best, "ratio": 0.519, "phase": "final"})
    assert said == "final run, best four_buffer 0.52, 12 candidates"
    assert describe({}) == ""
    assert describe({"waiting_for": "CPU is in use"}) == "CPU is in use"


def test_key_of_the_command_line_is_the_key_of_the_service() -> None:
    from api.bodies import ShapeBody
    from api.commands.remote import shape_body
    from api.keys import body_shape, parse_shape

    for arguments, options in (
        (("1x8x16x17", "8x8x3x5"), {"padding": "1,2"}), (("1x8x16", "8x4x3"), {"groups": 2, "padding": "2,0"}),
        (("2x8x16x16", "8x8x3x3"), {"padding": "1,2,3,4", "stride": "2,1", "dilation": "1,2", "dtype": "float16"}),
    ):  # fmt: skip
        shape = parse_shape(*arguments, **options)  # type: ignore[arg-type]
        assert body_shape(ShapeBody(**shape_body(shape, key_of().policy, None))) == shape
    assert isinstance(key_of(), ConvKey)
    assert body()["input"] == list(key_of().shape.input_shape)


def test_devices_are_told_apart_at_every_width() -> None:
    one = winner_of(key_of())
    other = replace(one, key=replace(one.key, device=replace(one.key.device, device="CUDA")))
    for width in (80, 100, 110, 160):
        shown = rows([one, other], width)
        assert "CPU" in shown[1], width
        assert "CUDA" in shown[2], "one line each"


def test_a_worker_is_heard_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(tmp_path / "a.db") as store:
        with pytest.raises(CliError, match="found it last never"):
            check(store, Console())
        store.register(Worker(name=f"{platform.node()}:1:a", device=key_of().device))
        assert check(store, Console(), as_json=True) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["heard"] is True
        assert 0 <= said["silent_s"] < 60
        store.unfit(f"{platform.node()}:1:a", "the device broke")
        with pytest.raises(CliError, match="the device broke"):
            check(store, Console(), as_json=True)
