"""What a service removes by itself, and settings of it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from served import until
from values import a_key, a_measurement

from api.housekeeping import Housekeeping
from api.jobs import JobRunner
from api.settings import Settings, SettingsError
from autotune.job import Budget, JobState
from db import open_store


@pytest.mark.parametrize(("retention_s", "left"), [(1000.0, ["2"]), (0.0, ["0", "1", "2"])])
def test_old_measurements_go_by_themselves(tmp_path: Path, retention_s: float, left: list[str]) -> None:
    with open_store(tmp_path / "a.db", clock=lambda: 5000.0) as store:
        for number in range(3):
            store.record(a_measurement(str(number), measured_at=float(number)))
        housekeeping = Housekeeping(store, retention_s, first_s=0.0, every_s=0.02)
        housekeeping.start()
        if retention_s:
            until(lambda: len(store.measurements(a_key())) == 1)
        housekeeping.stop()
        housekeeping.stop()
        assert [m.attempt for m in store.measurements(a_key())] == left


def test_what_is_to_be_kept_is_a_setting() -> None:
    assert Settings.from_environment({}).retention_s == 365 * 86400.0
    assert Settings.from_environment({"AUTOTUNE_RETENTION": "90d"}).retention_s == 90 * 86400.0
    assert Settings.from_environment({"AUTOTUNE_RETENTION": "0"}).retention_s == 0.0
    assert Settings.from_environment({"AUTOTUNE_MOST_LOST": "5"}).most_lost == 5
    for name, value in (("AUTOTUNE_RETENTION", "soon"), ("AUTOTUNE_MOST_LOST", "0")):
        with pytest.raises(SettingsError, match=name):
            Settings.from_environment({name: value})


def test_a_lane_for_which_there_is_no_thread_is_opened_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.lanes import LocalLanes
    from tests.served import NoRunner, OneDevice, key_of, scripted_tune

    refused, start = [], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("lane ") and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr("api.jobs.IDLE_S", 0.05)
    monkeypatch.setattr("api.jobs.threading.Thread.start", refuse)
    with open_store(tmp_path / "a.db") as store:
        job = store.submit([key_of()], Budget(trials=1))
        runner = JobRunner(store, LocalLanes(OneDevice(), lambda _: NoRunner()), tune=scripted_tune(0.0))
        runner.start()
        try:
            until(lambda: store.job(job.id).state is JobState.DONE)
        finally:
            runner.stop()
    assert len(refused) == 2
