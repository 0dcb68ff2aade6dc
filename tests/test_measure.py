"""Measuring with real kernels: every way that a candidate can end is a Measurement with its reason."""

from __future__ import annotations

import itertools
import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from tinygrad.helpers import Context

from autotune import measure as measuring
from autotune.measure import WrongDeviceError, measure
from autotune.measurement import Measurement, Status
from autotune.runner import Limits, Request
from strategies import registry
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.match import Conv
from strategies.graph.program import Program
from strategies.graph.winowrite import Plan, Stage, winowrite
from strategies.key import ConvKey, Policy
from strategies.registry import Strategy, get_strategy, register_strategy
from strategies.shape import ConvShape

SHAPE = ConvShape.of((2, 4, 12, 12), (8, 4, 3, 3), padding=1)
FOUR = get_strategy("four_buffer").candidate({"tile": 4})
DIRECT = Candidate.of("direct")


@dataclass(frozen=True)
class Nothing:
    pass


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Without tinygrad's optimisations: compiling is most of the time here."""
    measuring._bench = measuring.Bench()
    with Context(NOOPT=1):
        yield


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Candidate]:
    """Registers a lowering for the length of a test."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def add(lower: Callable[..., Any]) -> Candidate:
        register_strategy(Strategy(name="added", params=Nothing, lower=lower, applies=lambda key: True, about=""))
        return Candidate.of("added")

    return add


def key(shape: ConvShape = SHAPE, **policy: Any) -> ConvKey:
    return ConvKey(shape=shape, device=describe_device("CPU"), policy=Policy(**policy))


def run(
    *candidates: Candidate, key: ConvKey, rounds: int = 3, **options: Any
) -> tuple[list[Measurement], list[dict[str, Any]]]:
    """Nothing is stopped early unless `options` say so: how fast a kernel is, is not what these tests are about."""
    events: list[dict[str, Any]] = []
    options = {"hopeless": math.inf, **options}
    request = Request(key=key, candidates=candidates, rounds=rounds, round_s=0.001, **options)
    return measure(request, emit=events.append), events


def one(candidate: Candidate, **policy: Any) -> Measurement:
    [measurement], _ = run(candidate, key=key(**policy))
    return measurement


def test_good_candidates() -> None:
    [direct, tuned], events = run(DIRECT, FOUR, key=key(), rounds=4)
    for measurement, kernels in ((direct, 1), (tuned, 4)):
        assert measurement.status in (Status.OK, Status.PRUNED)
        assert len(measurement.kernels) == kernels
        assert len(measurement.times_s) == len(measurement.yardstick_times_s) > 1
        assert all(0 < time < 1 for time in measurement.times_s)
        assert measurement.compile_s > 0
        assert measurement.error is not None
        assert measurement.error_bound is not None
        assert 0 < measurement.error <= measurement.error_bound
        assert {kernel.device for kernel in measurement.kernels} == {"CPU"}
        assert all(kernel.ops > 0 and kernel.bytes > 0 and kernel.source_bytes > 0 for kernel in measurement.kernels)
        assert len(measurement.fingerprint) == 32
        assert Measurement.from_json(measurement.to_json()) == measurement
    assert direct.status is Status.OK
    assert direct.workspace_bytes == 0 < tuned.workspace_bytes
    assert direct.fingerprint != tuned.fingerprint
    phases = [e["phase"] for e in events if e["event"] == "begin"]
    assert [phase for phase, _ in itertools.groupby(phases)] == ["prepare", "time", "verify", "time"]
    assert [e["index"] for e in events if e["event"] == "measured"] == [0, 1]


def test_equal_programs_share_a_fingerprint() -> None:
    item = get_strategy("four_buffer")
    [a, b], _ = run(item.candidate({"output": "auto"}), item.candidate({"output": "inline"}), key=key())
    assert a.candidate != b.candidate
    assert a.fingerprint == b.fingerprint  # tiles of 4 cover 12 exactly


def test_a_strategy_that_does_not_apply() -> None:
    strided = ConvShape.of((1, 4, 12, 12), (8, 4, 3, 3), stride=2)
    [direct, tuned], _ = run(DIRECT, FOUR, key=key(strided))
    assert direct.status is Status.OK
    assert (tuned.status, tuned.times_s) == (Status.INAPPLICABLE, ())
    assert "does not apply" in tuned.reason


def test_a_candidate_of_another_release() -> None:
    for candidate in (Candidate.of("of_tomorrow"), Candidate.of("four_buffer", tile=8)):
        measurement = one(candidate)
        assert measurement.status is Status.COMPILE_ERROR
        assert measurement.reason


def test_wrong_numbers(added: Callable[..., Candidate]) -> None:
    def nearly(conv: Conv, params: Nothing, ranges: Any) -> Any:
        right = winowrite(conv, Plan(tile=2, ghat=Stage(layout="AGOC")), ranges)
        return replace(right, value=right.value * (1 + 1e-3)) if right is not None else None

    measurement = one(added(nearly))
    assert measurement.status is Status.WRONG
    assert "above the bound" in measurement.reason
    assert measurement.error == pytest.approx(1e-3, rel=0.1)
    assert measurement.times_s == ()


def test_a_policy_that_asks_for_more_than_winograd_gives() -> None:
    assert one(FOUR, max_error=1e-9).status is Status.WRONG


def test_a_graph_that_cannot_be_compiled(added: Callable[..., Candidate]) -> None:
    def broken(conv: Conv, params: Nothing, ranges: Any) -> Any:
        return conv.reduce.replace(src=conv.reduce.src[:1])  # its ranges are left open

    [bad, good], events = run(added(broken), DIRECT, key=key())
    assert bad.status is Status.COMPILE_ERROR
    assert bad.reason
    assert "\n" not in bad.reason
    assert good.status is Status.OK
    assert [(e["index"], e["measurement"]["status"]) for e in events if e["event"] == "measured"] == [
        (0, "compile_error"), (1, "ok"),
    ]  # fmt: skip


def test_a_compiler_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Program:
        raise subprocess.CalledProcessError(1, "clang", stderr=b"error: no such register\nmore\n")

    monkeypatch.setattr(measuring._bench, "of", lambda key, seed: (None, ()))
    monkeypatch.setattr(Program, "compile", refuse)
    measurement = one(FOUR)
    assert (measurement.status, measurement.reason) == (Status.COMPILE_ERROR, "error: no such register")


def test_more_workspace_than_allowed() -> None:
    needed = one(FOUR).workspace_bytes
    assert one(FOUR, max_workspace_bytes=needed).status in (Status.OK, Status.PRUNED)
    measurement = one(FOUR, max_workspace_bytes=needed - 1)
    assert measurement.status is Status.INAPPLICABLE
    assert measurement.reason == f"needs {needed} bytes of workspace, the policy allows {needed - 1}"
    assert one(DIRECT, max_workspace_bytes=0).status is Status.OK


def test_a_kernel_that_ran_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Program

    class Elsewhere(real):  # type: ignore[misc, valid-type]
        def compile(self, limit_s: float = math.inf) -> None:
            super().compile(limit_s)
            if self.candidate != DIRECT:
                self.kernels = tuple(replace(kernel, device="PYTHON") for kernel in self.kernels)

    monkeypatch.setattr(measuring, "Program", Elsewhere)
    measurement = one(FOUR)
    assert measurement.status is Status.FALLBACK
    assert "ran on PYTHON, not on CPU" in measurement.reason


def test_a_candidate_that_cannot_win(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Program

    class Slow(real):  # type: ignore[misc, valid-type]
        def run(self) -> float:
            seconds = super().run()
            return 10.0 if self.candidate == FOUR else seconds

    monkeypatch.setattr(measuring, "Program", Slow)
    [pruned], _ = run(FOUR, key=key(), rounds=9, hopeless=2.0)
    assert (pruned.status, pruned.reason, pruned.error) == (Status.PRUNED, "too slow to win", None)
    assert pruned.times_s == (10.0,)
    assert len(pruned.yardstick_times_s) == 1
    [kept], _ = run(FOUR, key=key(), rounds=3, keep=1, hopeless=2.0)
    assert (kept.status, len(kept.times_s)) == (Status.OK, 3)


def test_the_limit_is_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not slower than direct, and stopped all the same: something twice as fast is known."""
    real = Program

    class Steady(real):  # type: ignore[misc, valid-type]
        def run(self) -> float:
            super().run()
            return 1e-3

    monkeypatch.setattr(measuring, "Program", Steady)
    [pruned], _ = run(DIRECT, key=key(), rounds=9, hopeless=0.5)
    assert pruned.status is Status.PRUNED
    assert len(pruned.times_s) == 2


def test_a_lowering_without_end_is_given_up_and_the_process_goes_on(added: Callable[..., Candidate]) -> None:
    with Context(NOOPT=0):
        endless, _ = run(FOUR, key=key(), limits=Limits(lowering_s=0.02))
        fine, _ = run(FOUR, key=key())
    assert (endless[0].status, fine[0].status) == (Status.TIMEOUT, Status.OK)
    assert "more than 0.02 s of processor time" in endless[0].reason


def test_the_same_program_is_recognised_before_it_is_compiled() -> None:
    item = get_strategy("four_buffer")
    [first], _ = run(item.candidate({"output": "auto"}), key=key())
    [again], events = run(item.candidate({"output": "inline"}), key=key())
    assert again.times_s == first.times_s
    assert again.candidate != first.candidate
    assert again.reason == "the same program as four_buffer(output=auto, tile=4)"
    assert {e["phase"] for e in events if e["event"] == "begin"} == {"prepare"}
    [final], _ = run(item.candidate({"output": "inline"}), key=key(), keep=1)
    assert final.times_s != first.times_s, "in a final everything is measured"


def test_what_is_far_too_much_work_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    run(DIRECT, key=key())
    measuring._bench.peak /= 1e6
    [measurement], _ = run(FOUR, key=key(), hopeless=2.0)
    assert measurement.status is Status.PRUNED
    assert "not compiled" in measurement.reason
    assert measurement.times_s == ()


def test_another_device_than_the_keys() -> None:
    other = replace(key(), device=replace(describe_device("CPU"), cores=512, flags=(("BEAM", "2"),)))
    with pytest.raises(WrongDeviceError, match=r"device.cores: \d+ here, 512 asked") as caught:
        run(DIRECT, key=other)
    assert "tune on the device itself" in str(caught.value)


def test_the_yardstick_stays_warm() -> None:
    run(DIRECT, key=key())
    first = measuring._bench.of(key(), 0)
    run(FOUR, key=key())
    assert measuring._bench.of(key(), 0)[0] is first[0]
    loaded, _ = first[0].inputs()
    assert np.array_equal(loaded, first[1][0].x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types(dtype: str) -> None:
    narrow = ConvShape.of((1, 4, 12), (8, 4, 3), padding=1, dtype=dtype)
    for measurement in run(DIRECT, FOUR, key=key(narrow))[0]:
        assert measurement.status in (Status.OK, Status.PRUNED), measurement.reason
