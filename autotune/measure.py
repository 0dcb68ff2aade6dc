"""Measuring candidates, inside the child process: compile, verify, then time in interleaved rounds.

What Python can catch becomes a Measurement here; crashes, hangs and memory are the parent's (see local_runner).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from autotune.job import Budget
from autotune.measurement import Kernel, Measurement, Status
from autotune.option_search import Options, with_options
from autotune.reference import processors
from autotune.runner import TIMED, TRIED, Request
from autotune.timing import Times, drift, interleaved, medians_in_turn
from autotune.verify import Case, Verdict, prepare_cases, verify
from strategies.candidate import Candidate
from strategies.graph.apply import NotApplicableError
from strategies.graph.compiling import LoweringTimeoutError, Pool
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey

WARM_S = {"METAL": 0.25}
"""How long the yardstick runs before the first round. Apple GPUs idle at a low clock and raise it under load; for how
long they take, see docs/metal.md."""
WARM_ELSEWHERE_S = 0.03

Emit = Callable[[dict[str, Any]], None]

DIRECT = Candidate.of("direct")
YARDSTICK = "yardstick"
KERNELS_S = 0.02
"""How long the kernels of a candidate are timed one by one, at least three times over."""
BEAM_FLAG = "BEAM"
"""With it set, tinygrad compiles while it searches, on the device."""
QUICK_ROUND_S = 0.005
"""A first look, two rounds of this length, spares those that cannot win the verification."""
OVERESTIMATED = 10.0
"""By how much `Program.arithmetic` may be above what is computed: see strategies.graph.work. Seen: 10.1, for
`deferred_mhat`, whose transforms tinygrad moves out of the loops."""
WORKERS = min(16, processors())


class Bench:
    """What is kept warm between requests: the yardstick of the current key with its reference results, the processes
    that compile, what programs were measured, the options tried on each kernel, and the most operations per second that
    any of them reached."""

    def __init__(self) -> None:
        self._for: tuple[str, int] | None = None
        self._direct: Program | None = None
        self._cases: tuple[Case, ...] = ()
        self.pool = Pool(WORKERS)
        self.programs: dict[str, Measurement] = {}
        self.options: dict[object, dict[Options, float]] = {}
        self.peak, self.direct_s = 0.0, 0.0

    def of(self, key: ConvKey, seed: int) -> tuple[Program, tuple[Case, ...]]:
        if self._direct is None or self._for != (key.digest, seed):
            if self._for is None or self._for[0] != key.digest:
                expect_device(key)
                self._direct, self.programs, self.peak = Program(key.shape, DIRECT, key.device.device), {}, 0.0
                self.options = {}
            assert self._direct is not None
            self._cases = ()  # of a large convolution they are gigabytes: never two sets at once
            self._cases = prepare_cases(key.shape, self._direct, seed)
            self._direct.load(self._cases[0].x, self._cases[0].w)
            self._for = (key.digest, seed)
        return self._direct, self._cases


class WrongDeviceError(RuntimeError):
    """This process sees another device, or other code generation flags, than the key names."""


_bench = Bench()


def pool() -> Pool:
    """The processes of this process that compile."""
    return _bench.pool


def measure(request: Request, *, emit: Emit) -> list[Measurement]:
    """One Measurement per candidate of the request, in order. `emit` hears what begins and what is final.

    First all are scheduled, then compiled, several at a time, and only then is anything timed: nothing else runs
    beside a timing. Whoever a first short look shows to be hopeless is not verified; all others are, before they are
    timed in earnest.
    """
    emit({"event": "begin", "phase": "prepare"})
    direct, cases = _bench.of(request.key, request.seed)
    tried = [0] * len(request.candidates)
    if request.options is not None:
        request, tried = _with_options(request, request.options, emit)
    trial = _Trial(request, tried, emit)
    for index, candidate in enumerate(request.candidates):
        trial.begin("prepare", index)
        trial.sort(index, _scheduled(request, index, candidate))
    twins = trial.without_twins() if request.keep == 0 else {}
    _compile(trial)
    if trial.programs:
        begun, several = time.perf_counter(), len(trial.programs)
        verdicts = _verify(trial, direct, cases)
        timed = _time(trial, direct, verdicts)
        timed_s = round((time.perf_counter() - begun) / several, 4)
        for index, measurement in timed.items():
            _bench.programs[trial.programs[index].graph] = measurement
            trial.final(index, replace(measurement, conditions={**measurement.conditions, TIMED: timed_s}))
    for index, other in twins.items():
        trial.final(index, _same(trial.results[other], request.candidates[index]))
    return [trial.results[index] for index in range(len(request.candidates))]


def _same(known: Measurement, candidate: Candidate) -> Measurement:
    return replace(known, candidate=candidate, reason=f"the same program as {known.candidate}")


def _with_options(request: Request, budget: Budget, emit: Emit) -> tuple[Request, list[int]]:
    """The request for its candidates with options for their kernels, and how many were tried for each. Each trial has
    the time of one timing."""

    def searched(index: int, candidate: Candidate) -> tuple[Candidate, int]:
        try:
            return with_options(
                request.key, candidate, budget=budget, seed=request.seed, hints=request.hints, pool=_bench.pool,
                at_once=WORKERS, memory=_bench.options,
                begins=lambda: emit({"event": "begin", "phase": "time", "index": index}),
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - what cannot even be scheduled says why when it is measured
            return candidate, 0

    made = [searched(index, candidate) for index, candidate in enumerate(request.candidates)]
    return replace(request, candidates=tuple(c for c, _ in made)), [tried for _, tried in made]


class _Trial:
    """What became of the candidates of one request: final measurements, and the programs still in the running."""

    def __init__(self, request: Request, tried: Sequence[int], emit: Emit) -> None:
        self.request, self._tried, self._emit = request, tried, emit
        self.results: dict[int, Measurement] = {}
        self.programs: dict[int, Program] = {}

    def begin(self, phase: str, index: int | None = None) -> None:
        self._emit({"event": "begin", "phase": phase} | ({} if index is None else {"index": index}))

    def final(self, index: int, measurement: Measurement) -> None:
        if self._tried[index]:
            conditions = {**measurement.conditions, TRIED: self._tried[index]}
            measurement = replace(measurement, conditions=conditions)
        self.results[index] = measurement
        self._emit({"event": "measured", "index": index, "measurement": measurement.to_json()})

    def without_twins(self) -> dict[int, int]:
        """Leaves one of those candidates in the running that are the same program; the others, and whose they are."""
        firsts: dict[str, int] = {}
        twins = {i: first for i, p in self.programs.items() if (first := firsts.setdefault(p.graph, i)) != i}
        for index in twins:
            del self.programs[index]
        return twins

    def sort(self, index: int, prepared: Program | Measurement) -> None:
        if isinstance(prepared, Measurement):
            self.programs.pop(index, None)
            self.final(index, prepared)
        else:
            self.programs[index] = prepared


def _scheduled(request: Request, index: int, candidate: Candidate) -> Program | Measurement:
    """The candidate's graph, or the Measurement that says why it goes no further."""
    key = request.key
    try:
        program = Program(
            key.shape, candidate, key.device.device, frozen_weights=key.policy.frozen_weights, compiled=False
        )  # fmt: skip
    except NotApplicableError as error:
        return Measurement(key=key, candidate=candidate, status=Status.INAPPLICABLE, reason=str(error))
    except Exception as error:  # noqa: BLE001 - tinygrad raises anything; each is a fact to record
        return Measurement(key=key, candidate=candidate, status=Status.COMPILE_ERROR, reason=_reason(error))
    if request.keep == 0 and (known := _bench.programs.get(program.graph)) is not None:
        return _same(known, candidate)
    if index >= request.keep and _bench.peak:
        least_s = program.arithmetic / OVERESTIMATED / _bench.peak
        if least_s > request.hopeless * _bench.direct_s:
            reason = f"too slow to win: {least_s:.2g} s at the most operations per second seen here; not compiled"
            return Measurement(key=key, candidate=candidate, status=Status.PRUNED, reason=reason)
    return program


def _compile(trial: _Trial) -> None:
    """Kernels side by side as far as they can be; then each candidate alone, so that a failure has its culprit."""
    request = trial.request
    trial.begin("prepare")
    if BEAM_FLAG not in dict(request.key.device.flags):
        _bench.pool.compile(
            [program.linear for program in trial.programs.values()], request.key.device.device,
            limit_s=request.limits.lowering_s, timeout_s=request.limits.prepare_s / 2,
        )  # fmt: skip
    for index, program in list(trial.programs.items()):
        trial.begin("prepare", index)
        trial.sort(index, _compiled(request, program))


def _compiled(request: Request, program: Program) -> Program | Measurement:
    """The candidate ready to run, or the Measurement that says why there is none."""
    key, candidate = request.key, program.candidate
    try:
        program.compile(request.limits.lowering_s)
    except LoweringTimeoutError as error:
        return Measurement(key=key, candidate=candidate, status=Status.TIMEOUT, reason=str(error))
    except Exception as error:  # noqa: BLE001 - tinygrad and its compilers raise anything; each is a fact to record
        return Measurement(key=key, candidate=candidate, status=Status.COMPILE_ERROR, reason=_reason(error))
    elsewhere = [f"{k.name} ran on {k.device}" for k in program.kernels if k.device != program.device]
    if elsewhere:
        reason = f"{', '.join(elsewhere)}, not on {program.device}"
        return Measurement(key=key, candidate=candidate, status=Status.FALLBACK, reason=reason)
    limit = key.policy.max_workspace_bytes
    if limit is not None and program.workspace_bytes > limit:
        reason = f"needs {program.workspace_bytes} bytes of workspace, the policy allows {limit}"
        return Measurement(key=key, candidate=candidate, status=Status.INAPPLICABLE, reason=reason)
    return program


def _verify(trial: _Trial, direct: Program, cases: tuple[Case, ...]) -> dict[int, Verdict]:
    """Leaves in the running what may win and is correct."""
    request = trial.request
    for program in trial.programs.values():  # memory that nobody wrote holds whatever, and what is slow to multiply
        program.load(cases[0].x, cases[0].w)
    quick = _interleaved(trial, direct, rounds=2, round_s=min(QUICK_ROUND_S, request.round_s))
    verdicts: dict[int, Verdict] = {}
    for index, program in list(trial.programs.items()):
        trial.begin("verify", index)
        mine = quick[str(index)]
        if mine.pruned:
            trial.sort(index, _slow(request.key, program, None, mine, quick[YARDSTICK]))
            continue
        verdicts[index] = verify(program, cases, request.key.shape, request.key.policy)
        if fault := verdicts[index].fault:
            trial.sort(index, _describe(request.key, program, verdicts[index], Status.WRONG, reason=fault))
    return verdicts


def _time(trial: _Trial, direct: Program, verdicts: dict[int, Verdict]) -> dict[int, Measurement]:
    request = trial.request
    if not trial.programs:
        return {}
    times = _interleaved(trial, direct, rounds=request.rounds, round_s=request.round_s, race=request.race)
    result = {}
    for index, program in trial.programs.items():
        trial.begin("time", index)  # its kernels, one by one
        mine, yardstick = times[str(index)], times[YARDSTICK]
        _bench.peak = max(_bench.peak, program.arithmetic / min(mine.times_s))
        if mine.pruned:
            result[index] = _slow(request.key, program, verdicts[index], mine, yardstick)
        else:
            result[index] = _describe(request.key, program, verdicts[index], Status.OK, times=mine, yardstick=yardstick)
    return result


def _interleaved(
    trial: _Trial, direct: Program, *, rounds: int, round_s: float, race: bool = False
) -> dict[str, Times]:  # fmt: skip
    contestants = {YARDSTICK: direct.run} | {str(index): program.run for index, program in trial.programs.items()}
    times = interleaved(
        contestants, yardstick=YARDSTICK, rounds=rounds, round_s=round_s, hopeless=trial.request.hopeless, race=race,
        keep=[str(index) for index in range(trial.request.keep)],
        warm_s=WARM_S.get(trial.request.key.device.device, WARM_ELSEWHERE_S),
        started=lambda name: trial.begin("time", None if name == YARDSTICK else int(name)),
    )  # fmt: skip
    _bench.direct_s = median(times[YARDSTICK].times_s)
    return times


def _slow(key: ConvKey, program: Program, verdict: Verdict | None, times: Times, yardstick: Times) -> Measurement:
    return _describe(
        key, program, verdict, Status.PRUNED, reason="too slow to win", times=times, yardstick=yardstick
    )  # fmt: skip


def _describe(
    key: ConvKey, program: Program, verdict: Verdict | None, status: Status, *, reason: str = "",
    times: Times | None = None, yardstick: Times | None = None,
) -> Measurement:  # fmt: skip
    own = times.times_s if times is not None else ()
    return Measurement(
        key=key, candidate=program.candidate, status=status, reason=reason, times_s=own,
        yardstick_times_s=yardstick.times_s[: len(own)] if yardstick is not None else (),
        compile_s=program.compile_s, error=verdict.error if verdict and verdict.error < float("inf") else None,
        error_bound=verdict.bound if verdict else None,
        conditions={"drift": round(drift(yardstick.times_s), 4)} if yardstick is not None else {},
        workspace_bytes=program.workspace_bytes, fingerprint=program.fingerprint,
        kernels=_kernels(program, timed=times is not None and not times.pruned), measured_at=time.time(),
    )  # fmt: skip


def _kernels(program: Program, *, timed: bool) -> tuple[Kernel, ...]:
    """With each kernel's own time, if it is wanted: all of them in turn, several times over."""
    times = medians_in_turn(program.run_kernels, seconds=KERNELS_S) if timed else []
    medians = times if len(times) == len(program.kernels) else [None] * len(program.kernels)
    return tuple(
        Kernel(name=k.name, device=k.device, ops=k.ops, bytes=k.bytes, source_bytes=len(k.source), median_s=median_s)
        for k, median_s in zip(program.kernels, medians, strict=True)
    )


def expect_device(key: ConvKey) -> None:
    """Raises WrongDeviceError if the device and flags here are not the key's."""
    here = describe_device(key.device.device)
    if here.identity() != key.device.identity():
        differences = ConvKey(shape=key.shape, device=here).difference(ConvKey(shape=key.shape, device=key.device))
        listed = ", ".join(f"{name}: {mine!r} here, {theirs!r} asked" for name, (mine, theirs) in differences.items())
        raise WrongDeviceError(f"this is another device than the key's ({listed}): tune on the device itself")


def _reason(error: Exception) -> str:
    """One line: what a compiler said, else the exception."""
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        return str(error.stderr.decode(errors="replace")).strip().splitlines()[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]
