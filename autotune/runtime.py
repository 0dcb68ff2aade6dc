"""Installing the hook: the public face of `autotune` in a user's program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.compiler import CCompilerError, ensure_c_compiler
from autotune.decisions import Decisions, Forced, Winners
from autotune.hook import Hook
from autotune.report import Report, Stats
from autotune.snapshot import Snapshot
from autotune.sources import SourceError, open_source
from autotune.warn import warn_once
from strategies.graph import frozen, seam
from strategies.key import Policy
from strategies.locks import ForkLock
from strategies.registry import get_strategy

if TYPE_CHECKING:
    from autotune.sources.asking_source import AskingSource

SOURCE_VARIABLE = "AUTOTUNE_SOURCE"


class NoSourceError(ValueError):
    """`install` was given no source and AUTOTUNE_SOURCE names none."""


_lock = ForkLock(reentrant=True)
_stats_lock = ForkLock()
"""Of its own: a thread that schedules counts while another, which holds `_lock`, waits for it to finish."""
_stack: list[tuple[Decisions, Policy]] = []
"""What was installed, the innermost last; the last one acts."""
_stats = Stats()
_last: tuple[Report, ...] = ()


def install(
    source: str | os.PathLike[str] | None = None,
    *,
    guesses: bool = False,
    policy: Policy | None = None,
    frozen_weights: bool = False,
    snapshot: str | os.PathLike[str] | None = None,
    tune: bool = False,
) -> None:
    """Apply winners to every convolution that tinygrad schedules from now on, in all threads of this process.

    `source` is the address of a service (`http://127.0.0.1:8000`), a SQLite database, an exported JSON file or
    `starter`, which comes with the package; by
    default what AUTOTUNE_SOURCE names. `guesses` admits winners that were never measured on this device. `policy`
    is what the winners were tuned under. A TinyJit that has captured keeps its lowering until it is reset.

    With `frozen_weights` (also a field of the policy) you promise that weights do not change: what a winner computes
    of a weight alone is computed once and kept, until the weight's buffer is gone. Weights that are written over in
    place are not noticed: call `refresh()`. Not for training.

    `snapshot` is a file in which the winners that were looked up are kept, and from which they come when the source
    cannot be asked: without a network, say.

    `tune` asks the service to tune what it does not know yet. That waits until this program has ended, or for a worker
    on another machine: it never competes with this program for the device. Needs the address of a service.

    Replaces what was installed before. With a tinygrad that is not supported it warns and does nothing. Raises
    NoSourceError, or SourceError for an address of a kind that is not read.
    """
    policy = _policy(policy, frozen_weights)
    looked = _winners(source, policy, guesses=guesses, snapshot=snapshot, tune=tune, caller="install")
    with _lock:
        _clear()
        _push(looked, policy)


def uninstall() -> None:
    """Leave tinygrad as it was. Does nothing if nothing is installed."""
    with _lock:
        _clear()
        seam.detach()


@contextmanager
def tuned(
    source: str | os.PathLike[str] | None = None,
    *,
    guesses: bool = False,
    policy: Policy | None = None,
    frozen_weights: bool = False,
    snapshot: str | os.PathLike[str] | None = None,
    tune: bool = False,
) -> Iterator[None]:
    """As `install`, within the block; what was installed before acts again after it."""
    policy = _policy(policy, frozen_weights)
    looked = _winners(source, policy, guesses=guesses, snapshot=snapshot, tune=tune, caller="tuned")
    with _within(looked, policy):
        yield


@contextmanager
def forced(
    strategy: str, *, policy: Policy | None = None, frozen_weights: bool = False, **params: Any
) -> Iterator[None]:
    """One candidate on every convolution that it applies to, within the block: `forced("hybrid_grid", tile=4)`.

    `policy` and `frozen_weights` as in `install`: `tensor_cores_tf32` applies where the policy allows TF32. Raises
    UnknownStrategyError or ParameterError, each of which says what there is.
    """
    item = get_strategy(strategy)
    with _within(Forced(item.candidate(params), item.applies), _policy(policy, frozen_weights)):
        yield


def refresh() -> int:
    """Transform every frozen weight again, after new values were written into its buffer.

    Captured jits see the new values too. Weights that were replaced by other tensors need no refresh. Returns how many
    filters were transformed.
    """
    return frozen.refresh()


def stats() -> Stats:
    """What the hook did in this process so far."""
    with _stats_lock:
        return _stats


def explain_last() -> tuple[Report, ...]:
    """What was done with each convolution of the last schedule that had any, on whose word, or why nothing was.

    Of any thread; a captured TinyJit schedules nothing. `print(*autotune.explain_last(), sep="\\n")` is the listing.
    """
    with _stats_lock:
        return _last


def _policy(policy: Policy | None, frozen_weights: bool) -> Policy:
    policy = policy or Policy()
    return replace(policy, frozen_weights=True) if frozen_weights else policy


def _winners(
    source: str | os.PathLike[str] | None,
    policy: Policy,
    *,
    guesses: bool,
    snapshot: str | os.PathLike[str] | None,
    tune: bool,
    caller: str,
) -> Winners:
    """Of `source`, by default what AUTOTUNE_SOURCE names. Raises NoSourceError, or SourceError."""
    spec = source if source is not None else os.environ.get(SOURCE_VARIABLE, "")
    if not os.fspath(spec):
        raise NoSourceError(f"no source of winners: give a URL or a file to {caller}(), or set {SOURCE_VARIABLE}")
    kept = Snapshot(Path(snapshot).expanduser()) if snapshot is not None else None
    if not tune:
        return Winners(open_source(spec), guesses=guesses, warn=warn_once, where=os.fspath(spec), snapshot=kept)
    asking = _asking(spec, policy)
    return Winners(
        asking, guesses=guesses, warn=warn_once, where=os.fspath(spec), snapshot=kept, unasked=asking.unasked
    )


def _asking(spec: str | os.PathLike[str], policy: Policy) -> AskingSource:
    """A service that is asked to tune what it does not know. Raises SourceError for a file."""
    from autotune.client import Client
    from autotune.sources.asking_source import AskingSource

    url = os.fspath(spec)
    if not url.startswith(("http://", "https://")):
        raise SourceError(f"expected the address of a service, which can tune, found {url}: start `autotune serve`")
    client = Client(url, token=os.environ.get("AUTOTUNE_TOKEN", ""))
    return AskingSource(open_source(url), client, warn_once, policy)


@contextmanager
def _within(decisions: Decisions, policy: Policy) -> Iterator[None]:
    entry = (decisions, policy)
    with _lock:
        _push(*entry)
    try:
        yield
    finally:
        with _lock:
            if entry in _stack:  # unless uninstall() was called inside
                _stack.remove(entry)
                _activate()
            decisions.close()


def _clear() -> None:
    for decisions, _ in _stack:
        decisions.close()
    _stack.clear()


def _push(decisions: Decisions, policy: Policy) -> None:
    with suppress(CCompilerError):  # tinygrad says so itself, should the program use the CPU
        ensure_c_compiler()
    if os.environ.get("WINO", "0") != "0":
        warn_once("wino", "WINO is set: its convolutions are lowered before the hook sees them, unset it")
    _stack.append((decisions, policy))
    try:
        _activate()
    except seam.UnsupportedTinygradError as error:
        _stack.pop()
        warn_once("inactive", f"inactive: {error}")


def _activate() -> None:
    if not _stack:
        seam.detach()
        return
    decisions, policy = _stack[-1]
    seam.attach(Hook(decisions, policy, _count, _reported).attachment)


def _count(more: Stats) -> None:
    global _stats  # noqa: PLW0603 - the hook is process-wide, so is its tally
    with _stats_lock:
        _stats = Stats(**{f.name: getattr(_stats, f.name) + getattr(more, f.name) for f in fields(Stats)})


def _reported(reports: tuple[Report, ...]) -> None:
    global _last  # noqa: PLW0603 - the hook is process-wide, so is what it did last
    with _stats_lock:
        _last = reports
