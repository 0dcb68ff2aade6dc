"""bench/beam.py and bench/models.py: BEAM on a device that several processes search on."""

from __future__ import annotations

import fcntl
import importlib
import os
import threading
from pathlib import Path
from types import ModuleType

import pytest
from tinygrad import Context
from tinygrad.codegen.opt import Opt, OptOps

from autotune.device_lock import DeviceLock
from strategies.candidate import Candidate
from strategies.graph.options import ast_digest, beam_choices
from strategies.graph.program import convolution, operands, schedule
from strategies.shape import ConvShape

SMALL = ConvShape.of((1, 4, 10, 10), (4, 4, 3, 3), padding=1)


@pytest.fixture
def beam(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    return importlib.import_module("beam")


def test_timing_waits_for_who_measures_on_the_device_and_compiling_does_not(
    beam: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinygrad.codegen.opt.search.actions", [Opt(OptOps.UPCAST, 0, 2), Opt(OptOps.UNROLL, 0, 2)])
    linear = schedule(convolution(*operands(SMALL, "CPU"), SMALL), Candidate.of("direct"))
    compiled, timed = threading.Event(), threading.Event()

    def note(event: threading.Event, name: str) -> None:
        original = getattr(importlib.import_module("tinygrad.codegen.opt.search"), name)

        def noted(*args: object, **options: object) -> object:
            result = original(*args, **options)
            event.set()
            return result

        monkeypatch.setattr(f"tinygrad.codegen.opt.search.{name}", noted)

    note(compiled, "_try_compile")
    note(timed, "_time_program")
    held, seen = DeviceLock("CPU"), []
    fcntl.flock(held.fileno(), fcntl.LOCK_EX)

    def release() -> None:
        seen.append(compiled.wait(60))
        seen.append(timed.wait(0.3))
        held.close()

    other = threading.Thread(target=release)
    other.start()
    with Context(CACHELEVEL=0, PARALLEL=0), beam.timing_in_turn("CPU"):
        [choice] = beam_choices(linear, 1)
    other.join()
    assert seen == [True, False]
    assert timed.is_set()
    assert choice.options
    with Context(CACHELEVEL=0, PARALLEL=0):  # and no lock is left
        list(beam_choices(linear, 1))


def test_processes_share_gpus_and_processors(beam: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("PARALLEL", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    found = [beam.child_environ("CUDA", slot, 16) for slot in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["3", "5", "3"]
    assert {each["PARALLEL"] for each in found} == {"0"}
    assert beam.child_environ("CUDA", 0, 4)["PARALLEL"] == "4"
    assert beam.child_environ("CPU", 0, 1)["PARALLEL"] == "0"


def test_costliest_kernels_are_searched_first(beam: ModuleType) -> None:
    calls = importlib.import_module("models").costliest_first([("vgg16", 1), ("vgg16", 2)])
    names = {
        digest: [u.vmax + 1 for u in call.src[0].toposort() if u.op.name == "RANGE"] for digest, call in calls.items()
    }
    assert all(ast_digest(call.src[0]) == digest for digest, call in calls.items())
    first, last = list(names.values())[:6], list(names.values())[-6:]
    assert all(3 in loops for loops in first), "3x3 convolutions are most of VGG-16"
    assert not any(3 in loops for loops in last)
