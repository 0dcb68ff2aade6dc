"""Compiled candidates looked into, kernel by kernel: `inspect` asks, `answer` runs in the device's child process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from autotune.reference import inputs
from autotune.roofline import Peak
from autotune.statistics import median, median_interval
from autotune.task import run_task
from autotune.timing import interleaved
from autotune.winner import Interval
from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.shape import JsonObject

if TYPE_CHECKING:
    from strategies.graph.program import Program

TIMEOUT_S = 180.0
ROUNDS, ROUND_S = 11, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """One kernel, in order of execution: what it makes (`role`, see CompiledKernel), its own median seconds,
    tinygrad's estimates of its operations and of the bytes that it must move, the least time that these allow, and
    what was compiled.

    `time_s` is None where the device does not time kernels one by one. `share` is floor over time: 1 is as fast as
    the device goes, and small kernels whose data stay in a cache can seem faster.
    """

    name: str
    role: str
    time_s: float | None
    operations: int
    bytes: int
    floor_s: float
    options: tuple[str, ...]
    source_bytes: int
    source: str | None = None

    @property
    def share(self) -> float | None:
        return self.floor_s / self.time_s if self.time_s else None

    @property
    def excess_s(self) -> float:
        """Seconds above the floor: what attacking this kernel could win at most."""
        return max(0.0, self.time_s - self.floor_s) if self.time_s is not None else 0.0

    def to_json(self) -> JsonObject:
        return {**asdict(self), "options": list(self.options), "share": self.share}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**{**values, "options": tuple(data["options"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramCost:
    """One candidate, compiled anew: the time of all of it with its 95% interval over rounds, and of each kernel."""

    candidate: Candidate
    time_s: Interval
    compile_s: float
    workspace_bytes: int
    kernels: tuple[KernelCost, ...]

    @property
    def attack(self) -> int | None:
        """The index of the kernel with most seconds above its floor; None where kernels are not timed."""
        timed = [index for index, kernel in enumerate(self.kernels) if kernel.time_s is not None]
        return max(timed, key=lambda index: self.kernels[index].excess_s, default=None)

    def to_json(self) -> JsonObject:
        return {
            "candidate": self.candidate.to_json(), "time_s": self.time_s.to_json(), "compile_s": self.compile_s,
            "workspace_bytes": self.workspace_bytes, "kernels": [kernel.to_json() for kernel in self.kernels],
            "attack": self.attack,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            candidate=Candidate.from_json(data["candidate"]), time_s=Interval.from_json(data["time_s"]),
            compile_s=data["compile_s"], workspace_bytes=data["workspace_bytes"],
            kernels=tuple(KernelCost.from_json(kernel) for kernel in data["kernels"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Candidates of one key, timed in the same interleaved rounds, and the device's peak that day."""

    programs: tuple[ProgramCost, ...]
    peak: Peak


def inspect(
    key: ConvKey,
    candidates: Sequence[Candidate],
    *,
    peak: Peak | None = None,
    source: bool = False,
    timeout_s: float = TIMEOUT_S,
    on_wait: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Inspection:
    """Compile and time candidates on the key's device, in a process of their own.

    Without `peak` the device is calibrated first, a second or two. `source` asks for the kernels' sources. Raises
    TaskError if it cannot be done, DeviceUnavailableError, DeviceBusyError, RunStoppedError.
    """
    question = {
        "key": key.to_json(), "candidates": [candidate.to_json() for candidate in candidates], "source": source,
        "peak": peak.to_json() if peak is not None else None,
    }  # fmt: skip
    said = run_task("inspect", question, key.device, timeout_s=timeout_s, on_wait=on_wait, should_stop=should_stop)
    programs = tuple(ProgramCost.from_json(program) for program in said["programs"])
    return Inspection(programs=programs, peak=Peak.from_json(said["peak"]))


def answer(question: JsonObject) -> JsonObject:
    """In the child: see `inspect`."""
    from autotune.measure import expect_device
    from strategies.graph.program import Program

    key = ConvKey.from_json(question["key"])
    expect_device(key)
    peak = Peak.from_json(question["peak"]) if question["peak"] is not None else calibrate(key.device.device)
    candidates = [Candidate.from_json(candidate) for candidate in question["candidates"]]
    programs = [
        Program(key.shape, candidate, key.device.device, frozen_weights=key.policy.frozen_weights)
        for candidate in candidates
    ]
    values = inputs(key.shape, "normal", 0)
    for program in programs:
        program.load(*values)
    runs = {str(index): program.run for index, program in enumerate(programs)}
    times = interleaved(runs, yardstick="0", rounds=ROUNDS, round_s=ROUND_S, prune=False)
    by_kernel = _by_kernel(programs)
    costs = [
        ProgramCost(
            candidate=candidate, time_s=median_interval(times[str(index)].times_s), compile_s=program.compile_s,
            workspace_bytes=program.workspace_bytes,
            kernels=_costs(program, by_kernel[index], peak, with_source=question["source"]),
        )
        for index, (candidate, program) in enumerate(zip(candidates, programs, strict=True))
    ]  # fmt: skip
    return {"programs": [cost.to_json() for cost in costs], "peak": peak.to_json()}


def calibrate(device: str) -> Peak:
    """The device's peak, measured here and now: on the CPU also by numpy's matrix product, whose library knows the
    processor's vectors better than a generated kernel does."""
    from strategies.graph.calibrate import multiply_add_rate, stream_rates

    rates = {"multiply-add kernel": multiply_add_rate(device)}
    if device.partition(":")[0] == "CPU":
        rates["numpy's matrix product"] = _matrix_product_rate()
    method = max(rates, key=lambda name: rates[name])
    return Peak(operations_per_s=rates[method], streams=stream_rates(device), method=method)


def _matrix_product_rate() -> float:
    """float32 operations per second, the best of several sizes and runs."""
    best = 0.0
    for size in (384, 512, 768):
        a = np.ones((size, size), np.float32)
        for _ in range(15):
            started = time.perf_counter()
            a @ a
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _by_kernel(programs: Sequence[Program]) -> list[list[float] | None]:
    """Each kernel's median over the rounds, every program in every round; None for a program whose device does not
    time kernels one by one."""
    turns = [[program.run_kernels() for program in programs] for _ in range(ROUNDS + 1)][1:]  # the first warms up
    result: list[list[float] | None] = []
    for index, program in enumerate(programs):
        rounds = [turn[index] for turn in turns]
        whole = all(len(times) == len(program.kernels) and min(times, default=0.0) > 0 for times in rounds)
        result.append([median(times) for times in zip(*rounds, strict=True)] if whole else None)
    return result


def _costs(program: Program, times: Sequence[float] | None, peak: Peak, *, with_source: bool) -> tuple[KernelCost, ...]:
    return tuple(
        KernelCost(
            name=kernel.name, role=kernel.role, time_s=times[index] if times is not None else None,
            operations=kernel.ops, bytes=kernel.bytes, floor_s=peak.floor_s(kernel.ops, kernel.bytes),
            options=kernel.options, source_bytes=len(kernel.source), source=kernel.source if with_source else None,
        )
        for index, kernel in enumerate(program.kernels)
    )  # fmt: skip
