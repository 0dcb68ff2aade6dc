"""The runtime hook: at every schedule, each convolution's key is looked up and its winner applied.

It never breaks the program it runs in: whatever fails leaves the graph as tinygrad made it, is counted as a fallback
and warned of once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.decisions import Answer, Decisions
from autotune.report import Outcome, Report, Stats, tally
from autotune.warn import warn_once
from strategies.candidate import Candidate
from strategies.graph.apply import NotApplicableError, lower
from strategies.graph.device import describe_device
from strategies.graph.fitting import MisfitError
from strategies.graph.frozen import FrozenWeights
from strategies.graph.seam import Attachment
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.registry import get_strategy

if TYPE_CHECKING:
    from strategies.graph.lowered import Lowered
    from strategies.graph.match import Conv
    from strategies.graph.ranges import Ranges

Reports = tuple[Report, ...]
DIRECT = Candidate.of("direct")
"""tinygrad's own lowering as it is: nothing is replaced."""


class _Thread(threading.local):
    """What this thread's present schedule came to so far."""

    reports: Reports = ()
    kernels: Stats = Stats()
    """Those that were to have options: how many have them, how many cannot."""


class Hook:
    """The rewriter that is attached to tinygrad: it counts, it explains, it warns, it never raises.

    `last` hears the reports of each schedule that has convolutions, also when tinygrad's cache has it.
    """

    def __init__(
        self,
        decisions: Decisions,
        policy: Policy,
        count: Callable[[Stats], None],
        last: Callable[[Reports], None] = lambda _: None,
    ) -> None:
        self._decisions, self._count, self._last = decisions, count, last
        self._thread = _Thread()
        self._reported: dict[bytes, Reports] = {}
        self._kernels: dict[bytes, Stats] = {}
        """Both by graph, as long as tinygrad's cache may hold its schedule."""
        self._policies = tuple(_narrower(policy))
        self.attachment = Attachment(
            rewriter=self, wanted=self._wanted, before=self._before, scheduled=self._scheduled, failed=self._failed,
            fitted=self._fitted,
            frozen=FrozenWeights(self._not_kept) if policy.frozen_weights else None,
        )  # fmt: skip

    def __call__(self, convs: Sequence[Conv], ranges: Ranges) -> list[Lowered | None]:
        """What replaces each convolution. Counted once it is clear that tinygrad took it: see `_scheduled`."""
        with self._timed():
            known = self._known(convs)
            lowered = [_lowered(conv, each, answer, ranges) for conv, (each, answer) in zip(convs, known, strict=True)]
            self._explain(report for _, report in lowered)
            return [new for new, _ in lowered]

    def _wanted(self, convs: Sequence[Conv]) -> list[bool]:
        """Which of them are to be replaced. Where none is, this was all, and is reported."""
        with self._timed():
            known = self._known(convs)
            wanted = [answer.candidate is not None and answer.candidate != DIRECT for _, answer in known]
            if not any(wanted):
                self._explain(_left(conv, each, answer) for conv, (each, answer) in zip(convs, known, strict=True))
            return wanted

    def _known(self, convs: Sequence[Conv]) -> list[tuple[tuple[ConvKey, ...], Answer]]:
        """The keys of each convolution and what is known of them: nothing, if anything goes wrong."""
        try:
            keys = self._keys(convs)
            return list(zip(keys, self._answers(keys), strict=True))
        except Exception as error:  # noqa: BLE001 - the program goes on whatever happens here
            why = f"the hook failed: {_line(error)}"
            warn_once("hook", f"the hook failed, tinygrad goes on alone: {_line(error)}")
            return [((), Answer(candidate=None, origin=why, failed=True)) for _ in convs]

    def _before(self) -> None:
        self._thread.reports, self._thread.kernels = (), Stats()
        with self._timed():
            try:
                if self._decisions.refresh():
                    self._reported, self._kernels = {}, {}
                    self.attachment.changed()
            except Exception as error:  # noqa: BLE001 - the program goes on whatever happens here
                warn_once("hook", f"the hook failed, tinygrad goes on alone: {_line(error)}")

    def _scheduled(self, graph: bytes) -> None:
        if new := self._thread.reports:
            kernels, self._thread.reports, self._thread.kernels = self._thread.kernels, (), Stats()
            self._reported[graph], self._kernels[graph] = new, kernels
            self._count(tally(new))
            self._count(kernels)
        if known := self._reported.get(graph):
            self._last(known)

    def _fitted(self, misfit: MisfitError | None, seconds: float) -> None:
        """Of one kernel, amid a schedule."""
        self._count(Stats(seconds=seconds))
        kernels = self._thread.kernels
        if misfit is None:
            self._thread.kernels = replace(kernels, kernels_with_options=kernels.kernels_with_options + 1)
        else:
            warn_once("options", f"options found for a kernel do not fit it here, tinygrad chooses: {_line(misfit)}")
            self._thread.kernels = replace(kernels, option_fallbacks=kernels.option_fallbacks + 1)

    def _failed(self, graph: bytes, error: Exception) -> None:
        """A rewritten graph could not be scheduled; or, counted as applied before, not be compiled or given memory."""
        warn_once("graph", f"a rewritten graph failed, tinygrad schedules it alone: {_line(error)}")
        if not self._thread.reports and (counted := self._reported.pop(graph, ())):
            self._count(tally(counted, sign=-1))
            self._count(self._kernels.pop(graph, Stats()).taken_back())
            self._thread.reports = counted
        self._thread.kernels = Stats()
        why = f"its graph failed: {_line(error)}"
        self._thread.reports = tuple(
            replace(e, outcome=Outcome.FALLBACK, reason=why) if e.outcome in (Outcome.APPLIED, Outcome.DIRECT) else e
            for e in self._thread.reports
        )
        self._scheduled(graph)

    def _not_kept(self, error: Exception) -> None:
        warn_once("frozen", f"a filter is transformed at every run, its transform could not be kept: {_line(error)}")

    def _keys(self, convs: Sequence[Conv]) -> list[tuple[ConvKey, ...]]:
        """What to look up for each convolution, best first; nothing for one that no key describes."""
        names = dict.fromkeys(conv.device for conv in convs)
        devices = {name: describe_device(name, surroundings=False) for name in names}
        return [self._keys_of(conv, devices[conv.device]) for conv in convs]

    def _keys_of(self, conv: Conv, device: DeviceSpec) -> tuple[ConvKey, ...]:
        shape = conv.shape
        if shape is None:
            return ()
        return tuple(ConvKey(shape=shape, device=device, policy=policy) for policy in self._policies)

    def _answers(self, keys: Sequence[tuple[ConvKey, ...]]) -> list[Answer]:
        """One answer per convolution, from one question for all of them."""
        flat = iter(self._decisions.answers([key for each in keys for key in each]))
        return [_best([next(flat) for _ in each]) for each in keys]

    def _explain(self, reports: Iterator[Report]) -> None:
        self._thread.reports = (*self._thread.reports, *reports)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._count(Stats(seconds=time.perf_counter() - started))


def _best(answers: Sequence[Answer]) -> Answer:
    """The first that knows something."""
    if not answers:
        return Answer(candidate=None, origin="no key describes it")
    return next((answer for answer in answers if answer.candidate is not None), answers[0])


def _narrower(policy: Policy) -> Iterator[Policy]:
    """The policy, then those that allow or promise less: a winner that was tuned without the promise that weights stay
    holds with it as well, and saves its filter transform, as does one that did not need to be allowed TF32."""
    for tf32 in (True, False) if policy.allow_tf32 else (False,):
        for frozen in (True, False) if policy.frozen_weights else (False,):
            yield replace(policy, allow_tf32=tf32, frozen_weights=frozen)


def _lowered(
    conv: Conv, keys: tuple[ConvKey, ...], answer: Answer, ranges: Ranges
) -> tuple[Lowered | None, Report]:  # fmt: skip
    """What replaces a convolution, and what to say of it."""
    if answer.candidate is None:
        return None, _left(conv, keys, answer)
    try:
        if keys and not get_strategy(answer.candidate.strategy).applies(keys[0]):
            # whoever says that it won: that TF32 may be used, say, the program alone decides
            raise NotApplicableError("its strategy is not for this key")
        new = lower(conv, answer.candidate, ranges)
    except Exception as error:  # noqa: BLE001 - a winner of another release, or a fault of ours
        why = f"{answer.candidate} cannot be applied, tinygrad lowers this one: {_line(error)}"
        warn_once("winner", why)
        return None, _reported(conv, keys, Outcome.FALLBACK, why, answer)
    outcome = Outcome.DIRECT if new is None else Outcome.APPLIED
    return new, _reported(conv, keys, outcome, answer.origin, answer)


def _left(conv: Conv, keys: tuple[ConvKey, ...], answer: Answer) -> Report:
    """What to say of a convolution that stays as tinygrad has it."""
    if answer.candidate is not None:
        return _reported(conv, keys, Outcome.DIRECT, answer.origin, answer)
    return _reported(conv, keys, Outcome.FALLBACK if answer.failed else Outcome.MISS, answer.origin)


def _reported(
    conv: Conv, keys: tuple[ConvKey, ...], outcome: Outcome, reason: str, answer: Answer | None = None
) -> Report:
    return Report(
        device=conv.device, outcome=outcome, reason=reason, key=keys[0] if keys else None,
        candidate=answer.candidate if answer is not None else None,
    )  # fmt: skip


def _line(error: Exception) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:300]
