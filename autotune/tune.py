"""From a key to its winner: candidates are measured within a budget, the best meet the defaults in a final."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from autotune.job import Budget
from autotune.measurement import Measurement, Status
from autotune.neighbours import option_hints, prior
from autotune.progress import Progress
from autotune.runner import Runner
from autotune.search import Search, program
from autotune.session import Session, Settings, TuneCancelledError
from autotune.space import DEFAULTS, Space
from autotune.statistics import Contestant, decide, median, median_interval, median_ratio
from autotune.store import Store
from autotune.surrogate import Point
from autotune.winner import Winner, WinnerState
from strategies.candidate import Candidate
from strategies.key import ConvKey

CHANCE = 1.25
"""Only candidates that the search saw below this multiple of the better default go to the final."""

CLOSE = 1.1
"""What the search saw within this of its best may be the best: its few rounds do not tell them apart."""

SUSPICIOUS = 0.5
"""A winner in less than this share of the time of everything else in the final is measured once more, alone."""

SAME = 1.25
"""By how much the confirming measurement may differ."""

NEAR, MOST_PROMISING = 1.3, 4
"""Options are searched for the kernels of at most so many candidates, within this multiple of the best."""

MISHAPS = (Status.CRASHED, Status.TIMEOUT)
"""Failures that may come from outside."""

MAX_SECOND_CHANCES = 3


class TuneError(RuntimeError):
    """There is nothing to decide: even `direct` failed. The message says how."""


def tune(
    key: ConvKey,
    *,
    store: Store,
    runner: Runner,
    budget: Budget,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
    now: Callable[[], float] = time.time,
    settings: Settings | None = None,
    since: float | None = None,
    space: Space | None = None,
) -> Winner:
    """Search, decide, record the winner in the store and return it.

    Every measurement is in the store before the next request begins, so that a search killed at any moment goes on
    where it was: candidates measured before are not measured again. `since` is when a resumed job first began (seconds
    since the epoch): what was measured from then on counts as used budget; None: a new job, with all of its budget.
    The final comes on top of a budget in trials, and is kept room for in a budget in seconds; `direct` and
    `tensor_winograd` are measured whatever the budget. Raises TuneError if `direct` fails, TuneCancelledError when
    `should_stop` says so between measurements, DeviceUnavailableError when the device is lost.
    """
    settings = settings or Settings()
    space = space or Space.of(key)
    history, known = _recalled(store, key, space), prior(store, key)
    others = [point for point in known if point.candidate not in space.defaults]  # these are measured anyway
    search = Search(space, seed=seed, history=history, prior=others)
    session = Session(
        key, search, store=store, runner=runner, budget=budget, settings=settings, clock=clock,
        on_progress=on_progress, should_stop=should_stop,
        history=[m for m in history if since is not None and m.measured_at >= since],
        banned={space.completed(w.candidate) for _, w in store.history(key) if w.state is WinnerState.BANNED},
    )  # fmt: skip
    direct, *other_defaults = space.defaults
    _default(session, direct, seed)
    _expect_direct(search.known(direct))
    former = _former(store, session, space)
    if former is not None and session.affords(_finalists(session, space)):
        session.measure([former], rounds=settings.rounds, seed=seed)
        session.report("search")
    for default in other_defaults:
        _default(session, default, seed)
    _search(session, space, seed)
    for candidate in _second_chances(session, space):
        session.measure([candidate], rounds=settings.rounds, seed=seed)
    _alternate(session, space, known, seed)
    session.report("final")
    final = _confirmed(session, space, _final(session, space, seed), seed)
    winner = _decided(session, space, final, seed=seed, now=now())
    store.decide(winner)
    session.report("done")
    return winner


def _recalled(store: Store, key: ConvKey, space: Space) -> list[Measurement]:
    """What is known of a key, oldest first, as far as it still holds: measured under the same driver, system and
    compiler. A failure of `direct` is forgotten: it must not make a key impossible for good."""
    return [
        replace(m, candidate=space.completed(m.candidate)) for m in store.measurements(key)
        if m.key.device.surroundings == key.device.surroundings and (m.ok or m.candidate.strategy != DEFAULTS[0])
    ]  # fmt: skip


def _default(session: Session, default: Candidate, seed: int) -> None:
    if session.search.known(default) is None:
        [measured] = session.measure([default], rounds=session.settings.rounds, seed=seed, keep=1)
        if measured.status in MISHAPS:  # somebody killed the process, the machine hung: it decides a whole search
            session.measure([default], rounds=session.settings.rounds, seed=seed, keep=1)
        session.report("search")


def _former(store: Store, session: Session, space: Space) -> Candidate | None:
    """The winner of another driver, system or compiler, or a guess: measured right after `direct`, being most likely
    to be fast."""
    winner = store.winner(session.key)
    if winner is None or session.search.known(winner.candidate) is not None:
        return None
    return winner.candidate if winner.candidate.strategy in {item.name for item in space.strategies} else None


def _search(session: Session, space: Space, seed: int) -> None:
    """Measure candidates as long as the budget has more than options and the final need."""
    while candidates := _next(session, space):
        session.measure(candidates, rounds=session.settings.rounds, seed=seed)
        session.report("search")


def _next(session: Session, space: Space) -> list[Candidate]:
    """The next candidates to measure, together; none when the budget is used, patience is at its end or nothing is
    left."""
    patience = session.settings.patience
    if patience is not None and session.search.since_better >= patience:
        return []
    return session.search.ask_for(session.affords(_finalists(session, space), session.at_once()))


def _finalists(session: Session, space: Space) -> list[Candidate]:
    """The defaults that work, then the best verified candidates that are other programs than those."""
    search, policy = session.search, session.key.policy
    defaults = [m for c in space.defaults if (m := search.known(c)) is not None and m.ok]
    programs = {program(m) for m in defaults}
    limit = CHANCE * min((search.ratio(m) for m in defaults), default=1.0)
    challengers = [
        m.candidate for m in search.ranked()
        if program(m) not in programs and search.ratio(m) < limit and m.candidate not in session.banned
        and (policy.max_workspace_bytes is None or m.workspace_bytes <= policy.max_workspace_bytes)
    ]  # fmt: skip
    best = search.ratio(search.ranked()[0]) if challengers else 1.0
    settings = session.settings
    near = [c for c in challengers[: settings.close_finalists] if _ratio(search, c) < CLOSE * best]
    chosen = [m.candidate for m in defaults] + max(challengers[: settings.finalists], near, key=len)
    plain = (c.structure for c in chosen)  # options must be worth it
    without = (c for c in plain if c not in session.banned and _ratio(search, c) < math.inf)
    return list(dict.fromkeys([*chosen, *without]))


def _alternate(session: Session, space: Space, known: Sequence[Point], seed: int) -> None:
    """Options of the best candidates' kernels, then more candidates with the rest of the budget. Of what options leave
    over they have their share again, for what was found since: a candidate that came late may have the most to gain."""
    looked: set[Candidate] = set()
    _search_options(session, space, known, seed, looked)
    before = -1
    while session.next_stage() and session.trials > before:
        before = session.trials
        _search(session, space, seed)
        _search_options(session, space, known, seed, looked)
    session.end_options()
    _search(session, space, seed)


def _search_options(
    session: Session, space: Space, known: Sequence[Point], seed: int, looked: set[Candidate]
) -> None:  # fmt: skip
    """Better options for the kernels of the best candidates: how much there is to gain differs from one to the other
    more than they do, so that several get a look; the best, with what was found, gets the rest, and what it leaves over
    goes to the next. Not of those `looked` at before, to which these are added."""

    def search(candidate: Candidate, options: Budget) -> None:
        hints = option_hints([*_own(session), *known], candidate)
        session.measure([candidate], rounds=session.settings.rounds, seed=seed, options=options, hints=hints)
        session.report("search")

    promising = _promising(session, looked)
    looks = session.for_looks(_finalists(session, space), len(promising))
    for candidate, options in zip(promising, looks, strict=False):
        looked.add(candidate)
        search(candidate, options)
    left = promising[: max(1, len(looks))]
    while left and (budget := session.for_options(_finalists(session, space))) is not None:
        best = min(left, key=lambda c: _ratio_with_options(session, c))
        left.remove(best)
        looked.add(best)
        search(best, budget)


def _promising(session: Session, looked: Container[Candidate]) -> list[Candidate]:
    """The best candidates, whose kernels may have better options and were not searched for some before."""
    search = session.search
    ranked = search.ranked()
    done = {m.candidate.structure for m in ranked if m.candidate.kernel_options}
    best = [
        m.candidate for m in ranked
        if search.ratio(m) < NEAR * search.ratio(ranked[0]) and m.candidate not in session.banned
    ]  # fmt: skip
    return [c for c in best if not c.kernel_options and c not in done and c not in looked][:MOST_PROMISING]


def _ratio_with_options(session: Session, candidate: Candidate) -> float:
    """The best known of this structure."""
    known = session.search.ranked()
    return min(session.search.ratio(m) for m in known if m.candidate.structure == candidate)


def _own(session: Session) -> list[Point]:
    """What this search found options for, the fastest first: hints for the kernels of other candidates."""
    search = session.search
    found = [m for m in search.ranked() if m.candidate.kernel_options]
    return [Point(candidate=m.candidate, value=math.log(search.ratio(m))) for m in found]


def _ratio(search: Search, candidate: Candidate) -> float:
    known = search.known(candidate)
    return search.ratio(known) if known is not None else math.inf


def _second_chances(session: Session, space: Space) -> list[Candidate]:
    """Candidates that crashed or took too long while the machine had more to do than it has processors."""
    busy = [
        m for m in session.tried
        if m.status in MISHAPS and float(m.conditions.get("load") or 0.0) > (os.cpu_count() or 1)
    ]  # fmt: skip
    chances = [m.candidate for m in busy[:MAX_SECOND_CHANCES]]
    return chances if session.has_time_for([*_finalists(session, space), *chances]) else []


def _final(session: Session, space: Space, seed: int) -> list[Measurement]:
    """The finalists timed once more, together and in more rounds, verified on other inputs than in the search."""
    finalists = _finalists(session, space)
    only = session.search.known(finalists[0])
    if len(finalists) == 1 and only is not None:
        return [only]
    kept = sum(c in space.defaults for c in finalists)
    return session.measure(
        finalists, rounds=session.settings.final_rounds, seed=seed + 1, keep=kept, race=True
    )  # fmt: skip


def _confirmed(session: Session, space: Space, final: list[Measurement], seed: int) -> list[Measurement]:
    """Without what was suspiciously fast and is not so alone, on other inputs, in another run."""
    timed = sorted((m for m in final if m.ok), key=_final_ratio)
    if len(timed) < 2 or timed[0].candidate in space.defaults:
        return final
    fastest, second = timed[0], timed[1]
    if _final_ratio(fastest) > SUSPICIOUS * _final_ratio(second):
        return final
    [alone] = session.measure([fastest.candidate], rounds=session.settings.final_rounds, seed=seed + 2, keep=1)
    if alone.ok and _final_ratio(alone) < SAME * _final_ratio(fastest):
        return final
    return [m for m in final if m is not fastest]


def _final_ratio(measurement: Measurement) -> float:
    return median_ratio(measurement.times_s, measurement.yardstick_times_s)


def _decided(session: Session, space: Space, final: list[Measurement], *, seed: int, now: float) -> Winner:
    _expect_direct(next(m for m in final if m.candidate == space.defaults[0]))
    measured = {_name(m.candidate, space): m for m in final if m.ok}
    contestants = [Contestant.of(name, m, default=m.candidate in space.defaults) for name, m in measured.items()]
    decision = decide(contestants, seed=seed)
    best, default = measured[decision.winner], measured[decision.default]
    return Winner(
        key=session.key, candidate=best.candidate, state=WinnerState.VERIFIED,
        time_s=median_interval(best.times_s, seed=seed), default=default.candidate,
        default_time_s=median_interval(default.times_s, seed=seed), ratio=decision.comparison.ratio,
        error=best.error, workspace_bytes=best.workspace_bytes, decided_at=now,
        times_s=_times_s(session, space, measured),
        provenance={
            "package": _version(), "host": best.conditions.get("host", ""), "trials": session.trials,
            "used_s": round(session.used_s, 2), "seed": seed, "rounds": decision.comparison.rounds,
            "attempts": {name: m.attempt for name, m in measured.items()},
            "kernels": len(best.kernels),
        },
    )  # fmt: skip


def _times_s(session: Session, space: Space, measured: dict[str, Measurement]) -> dict[str, float]:
    """Median seconds by name; a default too slow for the final as the search saw it."""
    known = {_name(c, space): session.search.known(c) for c in space.defaults}
    slow = {name: median(m.times_s) for name, m in known.items() if m is not None and m.times_s}
    return slow | {name: median(m.times_s) for name, m in measured.items()}


def _expect_direct(measurement: Measurement | None) -> None:
    if measurement is not None and not measurement.ok:
        raise TuneError(
            f"even {DEFAULTS[0]}, tinygrad's own lowering, failed on {measurement.key} "
            f"({measurement.status}): {measurement.reason or 'no reason given'}"
        )


def _name(candidate: Candidate, space: Space) -> str:
    """A contestant's name: `direct`, `tensor_winograd`, `four_buffer(tile=4)`."""
    if candidate in space.defaults:
        return candidate.strategy
    return f"{candidate} {candidate.digest}" if candidate.kernel_options else str(candidate)


def _version() -> str:
    try:
        return version("tinygrad-autotune")
    except PackageNotFoundError:
        return "unknown"


__all__ = ["CHANCE", "Settings", "TuneCancelledError", "TuneError", "tune"]
