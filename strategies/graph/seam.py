"""Where the rewrite enters tinygrad, and the only place that changes it.

Two names are replaced, both looked up in their module at every call, so that it can be done at any time (functions
inside tinygrad's PatternMatchers cannot: these hold copied globals):

- `tinygrad.schedule.rangeify.run_rangeify`, after which convolutions are REDUCEs over ranges: the rewrite itself;
- `tinygrad.tensor.create_linear_with_vars`, around it: the begin and end of scheduling one graph.

Schedules are cached by graph, in front of the first: whoever changes what the rewrite would do calls `changed`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import FrameType
from typing import Any

import tinygrad.schedule
import tinygrad.tensor
from tinygrad.schedule import rangeify
from tinygrad.uop.ops import UOp

from strategies.graph.kron import Ranges
from strategies.graph.match import Conv
from strategies.graph.rewrite import rewrite

Rewriter = Callable[[Sequence[Conv], Ranges], Sequence[UOp | None]]
"""Gets every convolution of a graph at once, returns for each what replaces its REDUCE, or None to leave it."""

SUPPORTED = "0.14"
SWITCH_TIMEOUT_S = 60.0
_BUSY = f"another thread has been scheduling for {SWITCH_TIMEOUT_S:g} s: try again"
_NAMES = (
    (rangeify, "run_rangeify"), (rangeify, "pm_remove_bufferize"), (rangeify, "pm_const_buffer_folding"),
    (tinygrad.tensor, "create_linear_with_vars"), (tinygrad.schedule, "schedule_cache"),
)  # fmt: skip


class UnsupportedTinygradError(RuntimeError):
    """This tinygrad does not have the seam that the rewrite needs."""


class SchedulingBusyError(RuntimeError):
    """Another thread went on scheduling for too long to change the lowering under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What acts on every graph. `before` is called ahead of each schedule, cached or not, and may call `changed`.

    `failed` hears what the rewrite or the scheduling of a rewritten graph raised; the graph is then scheduled as
    tinygrad alone would.
    """

    rewriter: Rewriter
    before: Callable[[], None] = lambda: None
    failed: Callable[[Exception], None] | None = None


_switch = threading.RLock()
_idle = threading.Condition()
_in_flight: dict[int, int] = {}
"""Generation that each thread which is scheduling began with."""
_generation = 0
_active: Attachment | None = None
_originals: tuple[Any, Any] | None = None
_thread = threading.local()


def attach(attachment: Attachment) -> None:
    """Act on every graph scheduled from now on, in place of an attachment before.

    Raises UnsupportedTinygradError, or SchedulingBusyError if another thread has been scheduling for a minute.
    """
    global _active, _originals
    with _switch:
        if (fault := seam_fault()) is not None:
            raise UnsupportedTinygradError(fault)
        before, _active = _active, attachment
        try:
            if _originals is None:
                _originals = (rangeify.run_rangeify, tinygrad.tensor.create_linear_with_vars)
                rangeify.run_rangeify = _run_rangeify(*_originals)
                tinygrad.tensor.create_linear_with_vars = _create_linear_with_vars(*_originals)
                _wait_for_unregistered()
            changed()
        except SchedulingBusyError:
            _active = before
            if before is None:
                _restore()
            raise


def detach() -> None:
    """Leave tinygrad as it was."""
    global _active
    with _switch:
        _active = None
        if _originals is not None:
            _restore()
            changed()


@contextmanager
def attached(rewriter: Rewriter) -> Iterator[None]:
    """`rewriter` and nothing else within the block; what it raises is raised."""
    before = _active
    attach(Attachment(rewriter=rewriter))
    try:
        yield
    finally:
        if before is None:
            detach()
        else:
            attach(before)


def changed() -> None:
    """Forget schedules made with another lowering, also those that other threads are just making."""
    global _generation
    with _switch:
        with _idle:
            _generation += 1
            mine, now = threading.get_ident(), _generation
            older = lambda: any(g < now for thread, g in _in_flight.items() if thread != mine)  # noqa: E731
            idle = _idle.wait_for(lambda: not older(), timeout=SWITCH_TIMEOUT_S)
        tinygrad.schedule.schedule_cache.clear()  # in place: tinygrad's functions hold the dictionary
        if not idle:
            raise SchedulingBusyError(_BUSY)


def seam_fault() -> str | None:
    """Why the seam cannot be used with this tinygrad, or None."""
    found = version("tinygrad")
    if found.split(".")[:2] != SUPPORTED.split("."):
        return f"tinygrad {found} is not supported: install tinygrad {SUPPORTED}.x"
    for module, name in _NAMES:
        if not hasattr(module, name):
            return f"tinygrad {found} has no {module.__name__}.{name}: install tinygrad {SUPPORTED}.x anew"
    return None


def _restore() -> None:
    global _originals
    if _originals is not None:
        rangeify.run_rangeify, tinygrad.tensor.create_linear_with_vars = _originals
        _originals = None


def _wait_for_unregistered() -> None:
    """Wait for threads that began to schedule before the seam was there: what they yet put into the cache is stale."""
    deadline = time.monotonic() + SWITCH_TIMEOUT_S
    while any(map(_is_scheduling, _frames_of_others())):
        if time.monotonic() > deadline:
            raise SchedulingBusyError(_BUSY)
        time.sleep(0.005)


def _is_scheduling(frame: FrameType) -> bool:
    return frame.f_code.co_name == "create_linear_with_vars" and frame.f_globals is vars(tinygrad.schedule)


def _frames_of_others() -> Iterator[FrameType]:
    """Every Python frame on the stacks of the other threads, but of those that count as scheduling already."""
    frames = sys._current_frames()  # noqa: SLF001 - CPython documents it
    for thread, innermost in frames.items():
        frame: FrameType | None = innermost
        while frame is not None and thread != threading.get_ident() and thread not in _in_flight:
            yield frame
            frame = frame.f_back


def _run_rangeify(original: Callable[..., UOp], _: object) -> Callable[..., UOp]:
    def run_rangeify(sink: UOp, debug: bool = False) -> UOp:
        ranged = original(sink, debug)
        attachment = _active
        if attachment is None or getattr(_thread, "plain", False):
            return ranged
        try:
            result = rewrite(ranged, attachment.rewriter)
        except Exception as error:
            if attachment.failed is None:
                raise
            attachment.failed(error)
            return ranged
        _thread.rewritten = getattr(_thread, "rewritten", False) or result is not ranged
        return result

    return run_rangeify


def _create_linear_with_vars(_: object, original: Callable[..., Any]) -> Callable[..., Any]:
    def create_linear_with_vars(big_sink: UOp) -> Any:
        attachment = _active
        if attachment is not None:
            attachment.before()
        with _scheduling():
            _thread.rewritten = False
            try:
                return original(big_sink)
            except Exception as error:
                if attachment is None or attachment.failed is None or not _thread.rewritten:
                    raise
                attachment.failed(error)
            _thread.plain = True
            try:
                return original(big_sink)
            finally:
                _thread.plain = False

    return create_linear_with_vars


@contextmanager
def _scheduling() -> Iterator[None]:
    thread = threading.get_ident()
    with _idle:
        outer = _in_flight.get(thread)
        _in_flight[thread] = _generation if outer is None else outer
    try:
        yield
    finally:
        with _idle:
            if outer is None:
                del _in_flight[thread]
            _idle.notify_all()
