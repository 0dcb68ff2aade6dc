"""Measuring candidates, inside the child process: compile, verify, then time in interleaved rounds.

What Python can catch becomes a Measurement here; crashes, hangs and memory are the parent's (see local_runner).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

from autotune.measurement import Kernel, Measurement, Status
from autotune.runner import Request
from autotune.timing import Times, interleaved, medians_in_turn
from autotune.verify import Case, Verdict, prepare_cases, verify
from strategies.candidate import Candidate
from strategies.graph.apply import NotApplicableError
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey

WARM_S = {"METAL": 0.25}
"""How long the yardstick runs before the first round. Apple GPUs idle at a low clock and raise it under load; for how
long they take, see docs/metal.md."""

Emit = Callable[[dict[str, Any]], None]

DIRECT = Candidate.of("direct")
YARDSTICK = "yardstick"
KERNELS_S = 0.02
"""How long the kernels of a candidate are timed one by one, at least three times over."""


class Bench:
    """What is kept warm between requests: the yardstick of the current key with its reference results."""

    def __init__(self) -> None:
        self._for: tuple[str, int] | None = None
        self._direct: Program | None = None
        self._cases: tuple[Case, ...] = ()

    def of(self, key: ConvKey, seed: int) -> tuple[Program, tuple[Case, ...]]:
        if self._direct is None or self._for != (key.digest, seed):
            expect_device(key)
            self._direct = Program(key.shape, DIRECT, key.device.device)
            self._cases = prepare_cases(key.shape, self._direct, seed)
            self._direct.load(self._cases[0].x, self._cases[0].w)
            self._for = (key.digest, seed)
        return self._direct, self._cases


class WrongDeviceError(RuntimeError):
    """This process sees another device, or other code generation flags, than the key names."""


_bench = Bench()


def measure(request: Request, *, emit: Emit) -> list[Measurement]:
    """One Measurement per candidate of the request, in order. `emit` hears what begins and what is final."""
    emit({"event": "begin", "phase": "prepare"})
    direct, cases = _bench.of(request.key, request.seed)
    results: dict[int, Measurement] = {}
    ready: dict[int, tuple[Program, Verdict]] = {}

    def final(index: int, measurement: Measurement) -> None:
        results[index] = measurement
        emit({"event": "measured", "index": index, "measurement": measurement.to_json()})

    for index, candidate in enumerate(request.candidates):
        emit({"event": "begin", "index": index, "phase": "prepare"})
        prepared = _prepare(request.key, candidate)
        if isinstance(prepared, Measurement):
            final(index, prepared)
            continue
        emit({"event": "begin", "index": index, "phase": "verify"})
        verdict = verify(prepared, cases, request.key.shape, request.key.policy)
        if verdict.fault:
            failed = _describe(request.key, candidate, prepared, verdict, Status.WRONG, reason=verdict.fault)
            final(index, failed)
        else:
            ready[index] = (prepared, verdict)
    if ready:
        for index, measurement in _time(request, direct, ready, emit).items():
            final(index, measurement)
    return [results[index] for index in range(len(request.candidates))]


def _prepare(key: ConvKey, candidate: Candidate) -> Program | Measurement:
    """The compiled candidate, or the Measurement that says why there is none."""
    try:
        program = Program(key.shape, candidate, key.device.device, frozen_weights=key.policy.frozen_weights)
    except NotApplicableError as error:
        return Measurement(key=key, candidate=candidate, status=Status.INAPPLICABLE, reason=str(error))
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


def _time(
    request: Request, direct: Program, ready: dict[int, tuple[Program, Verdict]], emit: Emit
) -> dict[int, Measurement]:
    contestants = {YARDSTICK: direct.run} | {str(index): program.run for index, (program, _) in ready.items()}

    def started(name: str) -> None:
        emit({"event": "begin", "phase": "time"} | ({} if name == YARDSTICK else {"index": int(name)}))

    times = interleaved(
        contestants, yardstick=YARDSTICK, rounds=request.rounds, round_s=request.round_s, started=started,
        warm_s=WARM_S.get(request.key.device.device, 0.0),
    )  # fmt: skip
    return {
        index: _describe(
            request.key, request.candidates[index], program, verdict,
            Status.PRUNED if times[str(index)].pruned else Status.OK,
            reason="too slow to win" if times[str(index)].pruned else "",
            times=times[str(index)], yardstick=times[YARDSTICK],
        )
        for index, (program, verdict) in ready.items()
    }  # fmt: skip


def _describe(
    key: ConvKey, candidate: Candidate, program: Program, verdict: Verdict, status: Status, *, reason: str = "",
    times: Times | None = None, yardstick: Times | None = None,
) -> Measurement:  # fmt: skip
    own = times.times_s if times is not None else ()
    return Measurement(
        key=key, candidate=candidate, status=status, reason=reason, times_s=own,
        yardstick_times_s=yardstick.times_s[: len(own)] if yardstick is not None else (),
        compile_s=program.compile_s, error=verdict.error if verdict.error < float("inf") else None,
        error_bound=verdict.bound, workspace_bytes=program.workspace_bytes, fingerprint=program.fingerprint,
        kernels=_kernels(program), measured_at=time.time(),
    )  # fmt: skip


def _kernels(program: Program) -> tuple[Kernel, ...]:
    """With each kernel's own time: all of them in turn, several times over."""
    times = medians_in_turn(program.run_kernels, seconds=KERNELS_S)
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
