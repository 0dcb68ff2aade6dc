"""Guesses in the store: there while tuning is queued, never in front of what was measured."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from api import guesses
from api.answers import Known
from api.commands.winners import stale
from api.devices import ProbedDevices
from api.guesses import MAX_WAITING, guessed, keep_guesses, place
from api.problem import ProblemError
from api.routes.jobs import _keep_guesses
from api.service import Service
from autotune.measurement import Measurement, Status
from autotune.space import Space
from autotune.winner import APPLICABLE_STATES, Interval, Winner, WinnerState
from db import SqlStore, open_store
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

SPEC = DeviceSpec(device="CPU", arch="x86_64", cores=2, tinygrad="0.14.0", os="then")
DIRECT = Candidate.of("direct")


def key(channels: int, spec: DeviceSpec = SPEC) -> ConvKey:
    shape = ConvShape.of((1, channels, 28, 28), (channels, channels, 3, 3), padding=1)
    return ConvKey(shape=shape, device=spec)


def known(store: SqlStore, item: ConvKey) -> Winner:
    """As if its presets had been measured: the last one is fastest, at a quarter of direct's time."""
    presets = Space.of(item).presets
    for number, candidate in enumerate(presets):
        seconds = 1e-3 * 4 ** (-number / (len(presets) - 1))
        store.record(
            Measurement(
                key=item, candidate=candidate, status=Status.OK, times_s=(seconds,) * 3, yardstick_times_s=(1e-3,) * 3,
                attempt=f"{item.digest}{number}", measured_at=time.time(),
            )
        )  # fmt: skip
    quarter = Interval(median=0.25, low=0.24, high=0.26)
    winner = Winner(
        key=item, candidate=presets[-1], state=WinnerState.VERIFIED, time_s=quarter, default=DIRECT,
        default_time_s=Interval(median=1.0, low=1.0, high=1.0), ratio=quarter, decided_at=time.time(),
    )  # fmt: skip
    store.decide(winner)
    return winner


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    return open_store(str(tmp_path / "a.db"))


def test_a_guess_stands_in_until_something_was_measured(store: SqlStore) -> None:
    neighbours = [known(store, key(32)), known(store, key(128))]
    assert keep_guesses(store, [key(64), key(32)]) == 1
    found = store.lookup([key(64).digest])[key(64).digest]
    assert found.state is WinnerState.GUESS
    assert found.state not in APPLICABLE_STATES
    assert found.candidate == neighbours[0].candidate
    assert found.provenance["confidence"] > 0.8
    assert keep_guesses(store, [key(64)]) == 0, "there is one"
    measured = known(store, key(64))
    assert store.winner(key(64)) == measured
    assert keep_guesses(store, [key(64)]) == 0
    assert store.winner(key(64)) == measured


def test_a_lookup_that_misses_has_a_guess_that_nobody_keeps(store: SqlStore) -> None:
    for channels in (32, 128):
        known(store, key(channels))
    found = guessed(store, [key(64)])
    assert found is not None
    assert found.state is WinnerState.GUESS
    assert found.provenance["confidence"] > 0.8
    assert store.winner(key(64)) is None
    assert guessed(store, [key(32)]) is None, "it has a winner, and be it withdrawn"
    assert guessed(store, [key(64), key(256)]) is None


def test_few_lookups_wait_for_a_guess_and_fewer_jobs(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as others:
        for _ in range(MAX_WAITING):
            others.enter_context(place())
        with pytest.raises(ProblemError, match="try again") as refused, place():
            pass
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
    with place():
        pass
    known(store, key(32))
    monkeypatch.setattr(guesses, "_keeping", threading.BoundedSemaphore(1))
    with guesses._keeping:
        assert keep_guesses(store, [key(64)]) == 0
    assert keep_guesses(store, [key(64)]) == 1


def test_what_is_in_the_way_of_guesses_costs_guesses_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.db"
    with open_store(path, busy_timeout_s=0.1) as store, contextlib.closing(sqlite3.connect(path)) as holder:
        known(store, key(32))
        holder.execute("BEGIN IMMEDIATE")
        _keep_guesses(cast("Service", SimpleNamespace(store=store, known=Known())), [key(64)])
        assert "no guesses were kept" in caplog.text
        assert "locked" in caplog.text


def test_a_guess_is_made_of_what_is_given_to_it(store: SqlStore) -> None:
    winner = known(store, key(32))
    assert guessed(store, [key(64)], known=[]) is None
    assert guessed(store, [key(64)], known=[winner]) == guessed(store, [key(64)])


def test_nothing_known_nothing_guessed(store: SqlStore) -> None:
    assert guessed(store, [key(64)]) is None
    assert keep_guesses(store, [key(64)]) == 0


def test_stale_ones_are_listed() -> None:
    here = ProbedDevices().describe("CPU")
    fresh, old, elsewhere = (
        replace(here, os=os_name, device=device)
        for os_name, device in ((here.os, "CPU"), ("Linux 2.4", "CPU"), ("Linux 2.4", "TPU"))
    )
    one = Interval(median=1.0, low=1.0, high=1.0)
    winners = [
        Winner(
            key=key(64, spec), candidate=DIRECT, state=WinnerState.VERIFIED, time_s=one, default=DIRECT,
            default_time_s=one, ratio=one,
        )
        for spec in (fresh, old, elsewhere)
    ]  # fmt: skip
    assert stale(list(enumerate(winners))) == [(1, winners[1])]
