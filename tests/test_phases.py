"""`autotune phases` and `autotune sweep`: lowerings cut short, and the notes' figures beside ours."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from tinygrad import Tensor

from api.cli import main
from api.commands.phases import claims
from api.commands.sweep import claims as sweep_claims
from api.notes import Claim, figures
from autotune.phases import Phase, phases
from autotune.winner import Interval
from strategies.candidate import Candidate
from strategies.graph import seam
from strategies.graph.apply import NotApplicableError
from strategies.graph.device import describe_device
from strategies.graph.frame import frame
from strategies.graph.lowered import Lowered
from strategies.graph.program import Program
from strategies.graph.winowrite import PHASES, Stage, _mhat, _staged, ghat_of, xhat_of
from strategies.key import ConvKey
from strategies.registry import get_strategy
from strategies.shape import ConvShape

NOOPT = replace(describe_device("CPU"), flags=(("NOOPT", "1"),))
KEY = ConvKey(shape=ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), padding=1), device=NOOPT)


@pytest.mark.parametrize(
    ("strategy", "kernels"),
    [("hybrid_grid", [2, 3, 4, 4]), pytest.param("inline_transforms", [1, 1, 2, 2], marks=pytest.mark.slow)],
)
def test_each_phase_adds_a_part(strategy: str, kernels: list[int]) -> None:
    """XHAT and what reads it; GHAT too; the product instead of either; the real thing."""
    found = phases(KEY, get_strategy(strategy).candidate())
    assert [phase.until for phase in found] == ["XHAT", "+GHAT", "+MHAT", "+output"]
    assert [len(phase.kernels) for phase in found] == kernels
    assert [phase.buffers for phase in found] == kernels
    for phase in found:
        assert phase.reason == ""
        assert phase.time_s is not None
        assert phase.time_s.median > 0
        assert min(phase.schedule_s, phase.compile_s, phase.source_bytes) > 0


def test_runs_in_a_row_count_as_one() -> None:
    """Every kernel runs as often, and what is given is the time of one run."""
    program = Program(KEY.shape, get_strategy("four_buffer").candidate(), "CPU")
    program.load(np.ones(KEY.shape.input_shape), np.ones(KEY.shape.weight_shape))
    program.run()
    expected = program.output()
    program.poison()
    often = program.repeated(5)
    began = time.perf_counter()
    once_s = often()
    assert 0 < once_s * 5 < time.perf_counter() - began
    assert np.array_equal(program.output(), expected)


@pytest.mark.parametrize(("strategy", "device"), [("implicit_gemm", "PYTHON"), ("cache_blocked", "CPU")])
def test_what_is_made_as_one_cannot_be_stopped(strategy: str, device: str) -> None:
    candidate = get_strategy(strategy).candidate()
    for phase in PHASES[:-1]:
        with pytest.raises(NotApplicableError, match="made as one"):
            Program(KEY.shape, candidate, device, compiled=False, until=phase)
    assert Program(KEY.shape, candidate, device, compiled=False, until=PHASES[-1])
    with pytest.raises(ValueError, match="expected one of XHAT"):
        Program(KEY.shape, candidate, device, compiled=False, until="the end")


def test_what_cannot_be_built_says_why() -> None:
    [phase] = phases(KEY, Candidate.of("hybrid_grid", tile=5))
    assert phase.time_s is None
    assert "ParameterError" in phase.reason


def test_the_third_phase_of_the_notes_is_refused() -> None:
    """They returned MHAT at the ranges it is stored over: loops that nothing closes. See docs/notes.md."""
    x, w = Tensor.empty(1, 4, 8, 8), Tensor.empty(4, 4, 3, 3)

    def as_in_the_notes(convs, ranges):
        [conv] = convs
        space = frame(conv, ranges, m=4)
        assert space is not None
        xhat = lambda at: xhat_of(space, ranges, "", at)  # noqa: E731
        ghat = lambda at: ghat_of(space, ranges, "", at)  # noqa: E731
        product = lambda at: _mhat(space, 0, xhat, ghat, at)  # noqa: E731
        mhat = _staged(space, Stage(layout="GBOTA"), "product", "AGBOoTt", product)
        fresh = {letter: [ranges.new(size) for size in space.sizes[letter]] for letter in "AGBOTot"}
        return [Lowered(value=mhat(fresh).cast(conv.reduce.dtype))]

    with seam.attached(as_in_the_notes), pytest.raises(RuntimeError, match=r"verification failed .* Ops.RANGE"):
        x.conv2d(w, padding=1).schedule_linear()


def a_phase(until: str, compile_ms: float, run_us: float) -> Phase:
    run_s = run_us * 1e-6
    return Phase(until=until, compile_s=compile_ms * 1e-3, time_s=Interval(median=run_s, low=run_s, high=run_s))


def test_phases_are_held_against_the_notes() -> None:
    notes = figures()["phases"]["figures"]
    measured = {
        "four_buffer": [a_phase(row["until"], row["new_compile_ms"], row["new_run_us"] or 1) for row in notes],
        "tensor_winograd": [a_phase(row["until"], row["old_compile_ms"], row["old_run_us"] or 1) for row in notes],
    }
    same = claims(measured)
    assert {claim.verdict for claim in same if "deferred" not in claim.what} == {"agrees"}
    assert [claim.verdict for claim in same if "deferred" in claim.what] == ["not measured"] * 2
    assert next(claim.theirs for claim in same if "+MHAT" in claim.what and "run" in claim.what) == pytest.approx(40.75)
    opposite = claims({"four_buffer": measured["tensor_winograd"], "tensor_winograd": measured["four_buffer"]})
    assert "slower here, faster there" in {claim.verdict for claim in opposite}


@pytest.mark.parametrize(
    ("theirs", "low", "high", "verdict"),
    [
        (0.84, 0.7, 0.9, "agrees"), (0.84, 0.7, 1.1, "even here, faster there"), (1.002, 0.99, 1.02, "agrees"),
        (1.2, 0.5, 0.6, "faster here, slower there"), (1.2, 1.04, 1.3, "agrees"),
    ],
)  # fmt: skip
def test_verdicts(theirs: float, low: float, high: float, verdict: str) -> None:
    interval = Interval(median=(low + high) / 2, low=low, high=high)
    assert Claim(what="", theirs=theirs, ours=interval.median, interval=interval).verdict == verdict


def test_the_sweep_of_the_notes() -> None:
    rows = [{"size": 96, "strategies": {"hybrid_grid": {"ratio": [0.8, 0.78, 0.82]}}}, {"size": 7, "strategies": {}}]
    [claim] = sweep_claims(rows)
    assert (claim.what, claim.verdict) == ("96x96", "agrees")
    assert claim.theirs == pytest.approx(0.84, abs=0.001)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep", "--sizes", "24,x"], "expected sizes like 24,32,48"),
        (["sweep", "--sizes", "0"], "expected sizes like 24,32,48"),
        (["phases", "1x4x8x8", "4x4x3x3", "--strategies", "nonsense"], "expected strategies that apply here"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--sizes", "8", "--channels", "4", "--rounds", "7", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert {found["status"] for found in row["strategies"].values()} <= {"ok", "pruned"}
    assert row["strategies"]["tensor_winograd"]["ratio"][0] == 1.0
    assert {"XHAT", "GHAT", "product", "output"} <= row["difference_s"].keys()
    assert main(["phases", "1x4x8x8", "4x4x3x3", "--padding", "1", "--strategies", "four_buffer,tensor_winograd"]) == 0
    text = capsys.readouterr().out
    assert text.count("+MHAT") >= 4
    assert "four_buffer over tensor_winograd" in text
