"""The winners that come with the package: found by their whole key, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tinygrad import Context, Tensor
from values import a_key, a_winner

import autotune
from autotune.bundle import read, write
from autotune.sources import SourceError, StarterSource, open_source
from autotune.sources.starter_source import STARTERS
from autotune.winner import WinnerState
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.shape import ConvShape

ROOT = Path(__file__).parent.parent


def test_every_bundle_finds_its_own_keys(tmp_path: Path) -> None:
    mine, other = a_key(), a_key(cout=32)
    write(tmp_path / "a.json", [a_winner(mine)])
    write(tmp_path / "b.json", [a_winner(other), a_winner(a_key(cout=16), state="revoked")])
    source = StarterSource(tmp_path)
    elsewhere = replace(mine, device=replace(mine.device, cores=mine.device.cores + 1))
    found = source.lookup([mine, other, elsewhere, a_key(cout=16)])
    assert found.keys() == {mine.digest, other.digest}
    assert source.version() == source.version() is not None


def test_a_damaged_bundle_is_an_error_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SourceError, match=r"a\.json"):
        StarterSource(tmp_path).lookup([a_key()])


def test_what_comes_with_the_package_can_be_read() -> None:
    assert isinstance(open_source("starter"), StarterSource)
    assert open_source("starter").lookup([a_key()]) == {}
    for path in STARTERS.glob("*.json"):
        winners = read(path)
        assert len({winner.key.device.identity().__repr__() for winner in winners}) == 1
        assert {winner.state for winner in winners} == {WinnerState.VERIFIED}


def bundled(out: Path, *databases: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/starter.py", "--from", *map(str, databases), "--out", str(out)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_databases_become_bundles_that_are_applied_where_the_key_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each device; what is not verified, or a simulation's, is in none."""
    with Context(NOOPT=1):
        key = ConvKey(shape=ConvShape.of((1, 2, 8, 8), (4, 2, 3, 3)).canonical(), device=describe_device("CPU"))
        other = replace(key, device=replace(key.device, cores=key.device.cores + 1))
        simulated = replace(key, device=replace(key.device, simulated="a test"))
        guess = replace(key, shape=ConvShape.of((1, 2, 9, 9), (4, 2, 3, 3)).canonical())
        candidate = Candidate.of("hybrid_grid", tile=4, output="auto")
        for name, keys in (("first.db", [key, simulated, guess]), ("second.db", [other, key])):
            with open_store(tmp_path / name) as store:
                for each in keys:
                    state = "guess" if each == guess else "verified"
                    store.decide(replace(a_winner(each, state=state), candidate=candidate))
        out = tmp_path / "starters"
        done = bundled(out, tmp_path / "first.db", tmp_path / "second.db")
        assert done.returncode == 0, done.stderr
        kept = [read(path) for path in sorted(out.glob("*.json"))]
        assert sorted(each.key.device.cores for winners in kept for each in winners) == [
            key.device.cores,
            other.device.cores,
        ]
        monkeypatch.setattr("autotune.sources.starter_source.StarterSource.__init__.__defaults__", (out,))
        before = autotune.stats()
        with autotune.tuned("starter"):
            Tensor.ones(1, 2, 8, 8, device="CPU").contiguous().conv2d(
                Tensor.ones(4, 2, 3, 3, device="CPU").contiguous()
            ).realize()
        assert autotune.stats().applied - before.applied == 1


def test_databases_that_hold_nothing(tmp_path: Path) -> None:
    missing = bundled(tmp_path, tmp_path / "missing.db")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    with open_store(tmp_path / "empty.db"):
        pass
    empty = bundled(tmp_path, tmp_path / "empty.db")
    assert empty.returncode == 1
    assert "no verified winner" in empty.stderr
