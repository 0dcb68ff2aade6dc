"""What every implementation of `autotune.runner.Runner` must do. A test class per runner inherits this one.

Candidates are those of scripted_child.py, which crash, hang and lie in real child processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from autotune.measurement import Status
from autotune.runner import DeviceUnavailableError, Limits, Request, Runner, RunStoppedError
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

DEVICE = DeviceSpec(device="CPU", arch="scripted", cores=2, tinygrad="0.14.0", driver="1", os="here")
FINE, ALSO_FINE = Candidate.of("direct"), Candidate.of("scripted", do="nothing")

OpenRunner = Callable[..., Runner]


def key(**device: Any) -> ConvKey:
    shape = ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), padding=1)
    return ConvKey(shape=shape, device=DeviceSpec(**{**DEVICE.to_json(), "flags": (), **device}))


def do(deed: str, at: str = "prepare") -> Candidate:
    return Candidate.of("scripted", do=deed, at=at)


def request(*candidates: Candidate, **fields: Any) -> Request:
    limits = Limits(**{"prepare_s": 2.0, "run_s": 2.0, "memory_bytes": 300 << 20, **fields.pop("limits", {})})
    return Request(key=fields.pop("key", key()), candidates=candidates, rounds=3, limits=limits, **fields)


class RunnerContract:
    """Needs a fixture `open_runner`: opens a runner for DEVICE, with the environment of who measures."""

    @pytest.fixture
    def runner(self, open_runner: OpenRunner) -> Runner:
        return open_runner()

    def test_one_measurement_per_candidate_in_order(self, runner: Runner) -> None:
        measured = runner.measure(request(FINE, do("wrong"), ALSO_FINE))
        assert [m.candidate for m in measured] == [FINE, do("wrong"), ALSO_FINE]
        assert [m.status for m in measured] == [Status.OK, Status.WRONG, Status.OK]
        assert [m.times_s for m in measured] == [(1e-3,) * 3, (), (3e-3,) * 3]
        assert all(m.key == key() for m in measured)
        assert len({m.attempt for m in measured}) == 3
        assert all(m.attempt and m.measured_at > 0 and m.conditions["host"] for m in measured)

    def test_what_a_candidate_does_is_data(self, runner: Runner) -> None:
        measured = runner.measure(request(do("segfault"), FINE, do("hang"), do("garbage")))
        assert [str(m.status) for m in measured] == ["crashed", "ok", "timeout", "crashed"]
        assert "SIGSEGV" in measured[0].reason

    def test_the_same_request_again_is_measured_again(self, runner: Runner) -> None:
        first, second = (runner.measure(request(FINE)) for _ in range(2))
        assert first[0].attempt != second[0].attempt

    def test_flags_come_with_the_key(self, runner: Runner) -> None:
        [measured] = runner.measure(request(FINE, key=key(flags=(("BEAM", "2"),))))
        assert measured.conditions["environment"]["BEAM"] == "2"
        assert measured.conditions["environment"]["DEV"] == "CPU"

    def test_told_to_stop_it_stops_and_the_device_is_free(self, runner: Runner) -> None:
        begun = time.monotonic()
        slow = request(do("hang"))
        patient = Request(key=slow.key, candidates=slow.candidates, limits=Limits(prepare_s=600.0))
        with pytest.raises(RunStoppedError):
            runner.measure(patient, should_stop=lambda: time.monotonic() > begun + 1.5)
        assert runner.measure(request(FINE))[0].ok
        assert time.monotonic() - begun < 30

    def test_another_device_is_refused(self, runner: Runner) -> None:
        with pytest.raises(ValueError, match="this runner measures on"):
            runner.measure(request(FINE, key=key(device="METAL")))

    def test_a_device_that_cannot_be_used_is_an_error(self, open_runner: OpenRunner) -> None:
        with pytest.raises(DeviceUnavailableError, match="no such device, not here") as caught:
            open_runner(SCRIPT_DEVICE="absent").measure(request(FINE))
        assert caught.value.measured == ()

    def test_closing_is_idempotent(self, runner: Runner) -> None:
        runner.close()
        runner.close()
