"""A network's convolutions: how often each occurs, what each costs, and where tuning time pays most."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autotune.job import Budget
from autotune.progress import Progress
from autotune.reference import inputs
from autotune.runner import Runner
from autotune.space import Space
from autotune.statistics import median
from autotune.store import Store
from autotune.task import run_task
from autotune.timing import WARM_UP_RUNS
from autotune.tune import tune
from autotune.winner import APPLICABLE_STATES, Winner
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.shape import ConvShape, JsonObject

RUNS, SECONDS_EACH = 5, 120.0
LEAST_S = 8.0
"""A search that is shorter sees little more than the defaults."""
SETTLED_S = 12.0
"""After so many seconds, about, a search has left a third of what there was to gain: from then on another convolution
may have more to give."""
LEAST_WEIGHT_S = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One convolution of a network: it occurs `count` times, and once takes `direct_s` as tinygrad lowers it."""

    key: ConvKey
    count: int
    direct_s: float

    @property
    def weight_s(self) -> float:
        """Seconds of the network's time."""
        return self.count * self.direct_s


def survey(
    shapes: Mapping[ConvShape, int],
    spec: DeviceSpec,
    *,
    policy: Policy,
    on_wait: Callable[[str], None] = lambda _: None,
) -> list[Part]:
    """The convolutions with what they cost on the device, the costliest first, timed in a process of its own.

    Raises TaskError, DeviceUnavailableError, DeviceBusyError.
    """
    keys = {shape: ConvKey(shape=shape, device=spec, policy=policy) for shape in shapes}
    question = {"keys": [key.to_json() for key in keys.values()]}
    seconds = run_task("survey", question, spec, timeout_s=SECONDS_EACH * (1 + len(keys)), on_wait=on_wait)
    parts = [
        Part(key=key, count=shapes[shape], direct_s=direct_s)
        for (shape, key), direct_s in zip(keys.items(), seconds, strict=True)
    ]
    return sorted(parts, key=lambda part: -part.weight_s)


def answer(question: JsonObject) -> list[float]:
    """In the child: seconds of each key's convolution as tinygrad lowers it."""
    from strategies.graph.program import Program

    seconds = []
    for key in map(ConvKey.from_json, question["keys"]):
        program = Program(key.shape, Candidate.of("direct"), key.device.device)
        program.load(*inputs(key.shape, "normal", 0))
        seconds.append(median([program.run() for _ in range(WARM_UP_RUNS + RUNS)][WARM_UP_RUNS:]))
    return seconds


def tunable(part: Part) -> bool:
    """Whether there is anything to choose from."""
    return len(Space.of(part.key).strategies) > 1


def allotted(parts: Sequence[Part], budget_s: float, *, least_s: float = LEAST_S) -> dict[ConvKey, float]:
    """Seconds of search for each key, so that the last of them brings as much everywhere: where what there is to gain
    is in proportion to the time that a convolution takes, and what is left of it falls exponentially, that is an even
    share, and SETTLED_S more for each factor e in time. What would get less than `least_s` gets nothing, the cheapest
    first; the costliest gets something whatever the budget."""
    chosen = sorted(parts, key=lambda part: -part.weight_s)
    while True:
        logs = [math.log(max(part.weight_s, LEAST_WEIGHT_S)) for part in chosen]
        even_s = budget_s / len(chosen) - SETTLED_S * sum(logs) / len(logs)
        shares_s = [even_s + SETTLED_S * log for log in logs]
        if len(chosen) == 1 or shares_s[-1] >= least_s:
            return {part.key: share_s for part, share_s in zip(chosen, shares_s, strict=True)}
        chosen.pop()


def tune_parts(
    parts: Sequence[Part], budget_s: float, *, store: Store, runner: Runner, again: bool = False,
    on_part: Callable[[Part, float], None] = lambda *_: None,
    on_progress: Callable[[Progress], None] = lambda _: None, clock: Callable[[], float] = time.monotonic,
) -> dict[ConvKey, Winner]:  # fmt: skip
    """Tune what pays within one budget and return the winners by key, those known before included.

    A key that has a winner is not tuned `again` unless asked for. What one search leaves of its time goes to the
    others, as long as it is worth a search: one that is cut short would leave a winner that says little, and that
    nobody looks for again. Raises what `tune` raises.
    """
    known = {part.key: found for part in parts if (found := _known(store, part.key)) is not None}
    open_parts = [part for part in parts if tunable(part) and (again or part.key not in known)]
    open_parts.sort(key=lambda part: -part.weight_s)
    winners, end_at, least_s = dict(known), clock() + budget_s, 0.0  # the first gets something whatever the budget
    while open_parts:
        remaining_s = end_at - clock()
        if remaining_s < least_s:
            break
        part, seconds = open_parts[0], allotted(open_parts, remaining_s)[open_parts[0].key]
        on_part(part, seconds)
        winners[part.key] = tune(
            part.key, store=store, runner=runner, budget=Budget(seconds=seconds), on_progress=on_progress, clock=clock
        )
        open_parts, least_s = open_parts[1:], LEAST_S
    return winners


def _known(store: Store, key: ConvKey) -> Winner | None:
    winner = store.winner(key)
    return winner if winner is not None and winner.state in APPLICABLE_STATES else None
