"""A Winograd lowering built up part by part, as the notes looked for what made it slow: XHAT, +GHAT, +MHAT, +output."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from autotune.reference import inputs
from autotune.statistics import median_interval
from autotune.task import TaskError, run_task
from autotune.timing import interleaved
from autotune.winner import Interval
from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.shape import JsonObject

TIMEOUT_S = 120.0
ROUNDS, ROUND_S = 11, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One candidate as far as `until`. `schedule_s` and `compile_s` with nothing compiled before, `time_s` of one run
    on the device; buffers count the output's, `source_bytes` is of all kernels. `reason` says why there is no more.
    """

    until: str
    schedule_s: float = 0.0
    compile_s: float = 0.0
    time_s: Interval | None = None
    kernels: tuple[str, ...] = ()
    buffers: int = 0
    workspace_bytes: int = 0
    source_bytes: int = 0
    reason: str = ""

    def to_json(self) -> JsonObject:
        time_s = self.time_s.to_json() if self.time_s is not None else None
        return {**asdict(self), "kernels": list(self.kernels), "time_s": time_s}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        time_s = Interval.from_json(data["time_s"]) if data["time_s"] is not None else None
        return cls(**{**data, "kernels": tuple(data["kernels"]), "time_s": time_s})


def phases(
    key: ConvKey, candidate: Candidate, *, timeout_s: float = TIMEOUT_S,
    on_wait: Callable[[str], None] = lambda _: None,
) -> list[Phase]:  # fmt: skip
    """Every phase of a candidate, in order, timed in interleaved rounds in a process of its own; the last alone of
    `direct` and of what is made as one.

    A candidate that hangs, or whose process dies, has its reason in the one phase that is returned. Raises
    DeviceUnavailableError, DeviceBusyError.
    """
    question = {"key": key.to_json(), "candidate": candidate.to_json()}
    try:
        said = run_task("phases", question, key.device, timeout_s=timeout_s, on_wait=on_wait)
    except TaskError as error:
        return [Phase(until="+output", reason=str(error))]
    return [Phase.from_json(phase) for phase in said]


def answer(question: JsonObject) -> list[JsonObject]:
    """In the child: see `phases`."""
    from autotune.measure import expect_device
    from strategies.graph.apply import NotApplicableError
    from strategies.graph.program import Program, forget_compiled
    from strategies.graph.winowrite import PHASES

    key, candidate = ConvKey.from_json(question["key"]), Candidate.from_json(question["candidate"])
    expect_device(key)
    device = key.device.device
    values = inputs(key.shape, "normal", 0)
    Program(key.shape, Candidate.of("direct"), device).run()  # what opening the device leaves to the first kernel
    programs: dict[str, Program] = {}
    schedule_s: dict[str, float] = {}
    for until in PHASES if candidate.strategy != "direct" else PHASES[-1:]:
        forget_compiled()
        begun = time.perf_counter()
        try:
            programs[until] = Program(key.shape, candidate, device, until=until)
        except NotApplicableError:
            if until == PHASES[-1]:
                raise
            continue  # made as one: there is no part of it to be looked at
        schedule_s[until] = time.perf_counter() - begun - programs[until].compile_s
        programs[until].load(*values)
    runs = {until: program.run for until, program in programs.items()}
    times = interleaved(runs, yardstick=PHASES[-1], rounds=ROUNDS, round_s=ROUND_S, prune=False)
    return [
        Phase(
            until=until, schedule_s=schedule_s[until], compile_s=program.compile_s,
            time_s=median_interval(times[until].times_s), kernels=tuple(kernel.name for kernel in program.kernels),
            buffers=program.buffers, workspace_bytes=program.workspace_bytes,
            source_bytes=sum(len(kernel.source) for kernel in program.kernels),
        ).to_json()
        for until, program in programs.items()
    ]  # fmt: skip
