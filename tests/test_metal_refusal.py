"""METAL refuses a kernel, at compile or at pipeline creation, or a kernel runs elsewhere: as the tuner and a user's
program meet it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor
from tinygrad.helpers import Context

import autotune
from autotune import measure as measuring
from autotune import tune, warn
from autotune.job import Budget
from autotune.measurement import Measurement, Status
from autotune.reference import convolve
from autotune.runner import Request
from autotune.space import Space
from strategies.candidate import Candidate
from strategies.graph import program
from strategies.graph.device import describe_device
from strategies.key import ConvKey
from strategies.registry import get_strategy
from strategies.shape import ConvShape
from tests.memory_store import MemoryStore
from tests.on_metal import fresh_metal, needs_metal

pytestmark = [needs_metal, pytest.mark.usefixtures(fresh_metal.__name__)]

SHAPE = ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), padding=1)
DIRECT = Candidate.of("direct")
FOUR = get_strategy("four_buffer").candidate({"tile": 2})
PRODUCT = r"data2_(?!144\b)"
"""Of the kernels here, Winograd's product and direct read two buffers; direct's second is the weight, 144 elements."""


@pytest.fixture(autouse=True)
def simple(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(measuring, "_bench", measuring.Bench())
    monkeypatch.setattr(warn, "_warned", set())
    with Context(NOOPT=1, DEV="METAL"):
        yield


def measure(candidate: Candidate) -> Measurement:
    request = Request(key=key(), candidates=(candidate,), rounds=2, round_s=0.001)
    [measurement] = measuring.measure(request, emit=lambda _: None)
    return measurement


def key() -> ConvKey:
    return ConvKey(shape=SHAPE, device=describe_device("METAL", surroundings=False))


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("compile", "CompileError: program_source:1:1: error: refused, as the test asked for"),
        ("pipeline", "RuntimeError: Compiler encountered an internal error, as the test asked for"),
    ],
)
def test_what_metal_refuses_is_a_compile_error_with_its_reason(
    stage: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure(FOUR).times_s
    fresh_again(monkeypatch)
    monkeypatch.setenv("METAL_STAND_IN_REFUSE", f"{stage}:{PRODUCT}")
    refused = measure(FOUR)
    assert (refused.status, refused.reason, refused.times_s) == (Status.COMPILE_ERROR, reason, ())


def test_a_threadgroup_that_the_loaded_kernel_does_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    with Context(NOOPT=0):
        measuring._bench = measuring.Bench()
        assert measure(DIRECT).status is Status.OK
        monkeypatch.setenv("METAL_STAND_IN_THREADS", "8")
        refused = measure(FOUR)
    assert refused.status is Status.COMPILE_ERROR
    assert refused.reason.endswith("METAL allows this kernel 8")


class HereRunner:
    """Measures in this process."""

    at_once = 1

    def measure(self, request: Request, *, should_stop: Callable[[], bool] = lambda: False) -> list[Measurement]:
        measured = measuring.measure(replace(request, rounds=2, round_s=0.001), emit=lambda _: None)
        return [replace(m, attempt=uuid.uuid4().hex) for m in measured]

    def close(self) -> None:
        pass


def test_a_refused_candidate_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster than anything, were it only accepted."""
    monkeypatch.setenv("METAL_STAND_IN_REFUSE", f"pipeline:{PRODUCT}")
    found = Space.of(key())
    space = Space(tuple(item for item in found.strategies if item.name in ("direct", "four_buffer")))
    store = MemoryStore()
    winner = tune.tune(key(), store=store, runner=HereRunner(), budget=Budget(trials=4), space=space)
    assert winner.candidate == DIRECT
    refused = [m for m in store.measurements(key()) if m.status is Status.COMPILE_ERROR]
    assert len(refused) == 3
    assert all(m.candidate.strategy == "four_buffer" and "internal error" in m.reason for m in refused)


@pytest.mark.parametrize("stage", ["compile", "pipeline"])
def test_in_a_users_program_the_convolution_goes_back_to_direct(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=SHAPE.input_shape), rng.normal(size=SHAPE.weight_shape)
    tensors = [Tensor(v.astype(np.float32), device="METAL").realize() for v in (x, w)]
    monkeypatch.setenv("METAL_STAND_IN_REFUSE", f"{stage}:{PRODUCT}")
    before = autotune.stats()
    with autotune.forced("four_buffer", tile=2), pytest.warns(RuntimeWarning, match="tinygrad schedules it alone"):
        y = tensors[0].conv2d(tensors[1], padding=1).numpy()
    after = autotune.stats()
    assert (after.fallbacks - before.fallbacks, after.applied - before.applied) == (1, 0)
    expected = convolve(x.astype(np.float32), w.astype(np.float32), SHAPE)
    assert np.abs(y - expected).max() / np.abs(expected).max() < 1e-5


def test_a_compute_kernel_on_another_device_is_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tinygrad had quietly computed on the CPU: the operands are copied there and the result back."""
    assert measure(DIRECT).status is Status.OK  # the yardstick is in place

    on_metal = program.convolution

    def elsewhere(x: Tensor, w: Tensor, shape: ConvShape) -> Tensor:
        return on_metal(x.to("CPU"), w.to("CPU"), shape).to("METAL")

    monkeypatch.setattr(program, "convolution", elsewhere)
    measured = measure(FOUR)
    assert measured.status is Status.FALLBACK, measured.reason
    assert "ran on CPU" in measured.reason
    assert measured.reason.endswith("not on METAL")
    assert measured.times_s == ()


def fresh_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad.codegen import to_program_cache
    from tinygrad.engine.realize import runtime_cache

    to_program_cache.clear()
    runtime_cache.clear()
    monkeypatch.setattr(measuring, "_bench", measuring.Bench())
