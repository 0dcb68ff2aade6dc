"""Whom to blame when a child breaks, and how the others of the request are measured all the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from autotune.measurement import Measurement, Status
from autotune.runner import DeviceUnavailableError, Request
from autotune.watchdog import SHARED, Breakage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one child made of one request: final measurements by index, and how it broke, if it did.

    `fresh` says that the child had seen nothing before this request.
    """

    measured: dict[int, Measurement]
    breakage: Breakage | None
    fresh: bool


Run = Callable[[Request, bool], Outcome]
"""Give a request to a child; a fresh one if True, else the warm one if there is one."""


def measure_isolated(request: Request, run: Run) -> list[Measurement]:
    """One measurement per candidate, in order, through as many children as it takes.

    A candidate that exceeds a time limit is `timeout` there and then. One that crashes is believed to be the cause
    only if its child had seen no other candidate: memory may have been ruined or filled by an earlier one. Else it
    is tried once more alone in a fresh child. Those that were fine beside it are measured again together, so that
    their rounds stay paired. Raises DeviceUnavailableError, with what was final by then.
    """
    final: dict[int, Measurement] = {}
    suspects: dict[int, Measurement] = {}
    groups: deque[tuple[int, ...]] = deque([tuple(range(len(request.candidates)))])
    try:
        while groups:
            group = groups.popleft()
            alone = len(group) == 1
            part = replace(request, candidates=tuple(request.candidates[i] for i in group))
            outcome = run(part, alone and group[0] in suspects)
            measured = {group[i]: measurement for i, measurement in outcome.measured.items()}
            broken = outcome.breakage
            if broken is None or len(measured) == len(group):
                final.update(measured)
                continue
            final.update({i: measurement for i, measurement in measured.items() if not measurement.ok})
            rest = tuple(i for i in group if i not in final)
            at = group[broken.index] if broken.index != SHARED else SHARED
            blamed = rest if alone else tuple(i for i in rest if i == at)
            failures = {i: failure(request, i, broken) for i in blamed or rest}
            others = tuple(i for i in rest if i not in failures)
            # a time limit hit by work for all of them (SHARED) would be hit again by each
            timed_out = broken.status is Status.TIMEOUT and (blamed or at == SHARED)
            if timed_out or (alone and outcome.fresh):
                final.update(failures)
                groups.extend([others] if others else [])
            else:  # blamed alone, the others together; if it broke at nobody in particular, each alone
                suspects.update(failures)
                groups.extend((i,) for i in failures)
                groups.extend([others] if others else [])
    except DeviceUnavailableError as error:
        known = suspects | final
        raise DeviceUnavailableError(str(error), [known[i] for i in sorted(known)]) from error
    return [final[i] for i in range(len(request.candidates))]


def failure(request: Request, index: int, broken: Breakage) -> Measurement:
    """The measurement of a candidate that broke its child."""
    return Measurement(key=request.key, candidate=request.candidates[index], status=broken.status, reason=broken.reason)
