"""Where the rewrite enters tinygrad, and the only place that changes it.

Five names are replaced, all looked up in their module at every call, so that it can be done at any time (functions
inside tinygrad's PatternMatchers cannot: these hold copied globals):

- `tinygrad.schedule.rangeify.run_rangeify`, after which convolutions are REDUCEs over ranges: the rewrite itself;
- `tinygrad.tensor.create_linear_with_vars`, around it: the begin and end of scheduling one graph;
- `tinygrad.schedule.rangeify.pm_no_indexing_calls`, a rewrite of the calls of kernels once these are split: there they
  get the options that are meant for them (see `fitting`);
- `memory_plan_rewrite` of `tinygrad.schedule` and `tinygrad.engine.jit`, where a schedule, or all that a jit captured,
  has its buffers: what is computed of frozen weights is taken out of it (see `frozen`);
- `tinygrad.engine.realize.compile_linear`, just before a schedule runs: one that we rewrote and that does not compile,
  does not load or finds no memory is made anew without us. What a jit captures runs later, as a part of all that it
  captured: it is compiled and loaded as soon as it is scheduled.

tinygrad caches schedules by graph, in front of the first name. What acts is therefore made part of the graph: the SINK
of each function carries, in its `arg`, who is attached, as of when, and the code generation flags in force. So a switch
of lowerings never meets a schedule of another kind, not even one that another thread is just making.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import tinygrad.engine.jit
import tinygrad.engine.realize
import tinygrad.schedule
import tinygrad.tensor
from tinygrad.engine.realize import capturing, lower_and_compile
from tinygrad.helpers import CAPTURING, NUM_CPU_THREADS, Context
from tinygrad.schedule import rangeify
from tinygrad.uop.ops import KernelInfo, Ops, PatternMatcher, UOp, UPat

from strategies.graph.device import flags_in_force
from strategies.graph.fitting import Heard, fitted
from strategies.graph.frozen import FrozenWeights, weight_slots
from strategies.graph.limits import allocate, load
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.ranges import Ranges
from strategies.graph.remembered import remembered
from strategies.graph.rewrite import Rewriter, Wanted, all_wanted, rewrite
from strategies.locks import ForkLock
from strategies.supported import TINYGRAD as SUPPORTED

_NAMES = (
    (rangeify, "run_rangeify"), (rangeify, "pm_remove_bufferize"), (rangeify, "pm_const_buffer_folding"),
    (tinygrad.tensor, "create_linear_with_vars"), (tinygrad.schedule, "schedule_cache"),
    (tinygrad.schedule, "memory_plan_rewrite"), (tinygrad.engine.jit, "memory_plan_rewrite"),
    (tinygrad.engine.realize, "compile_linear"), (rangeify, "pm_no_indexing_calls"), (rangeify, "DEVICE_MAX_BUFS"),
)  # fmt: skip


class UnsupportedTinygradError(RuntimeError):
    """This tinygrad does not have the seam that the rewrite needs."""


_numbers = itertools.count(1)


@dataclass(slots=True, kw_only=True)
class Attachment:
    """What acts on every graph that is scheduled.

    `wanted` is asked before the rewriter which of these convolutions it would replace; where that is none, the rewriter
    is not asked, and most of what looking costs is saved. What is not to be replaced keeps its loops.

    `before` is called ahead of each schedule, cached or not, and may call `changed`; `scheduled` after it, with the
    graph's key, which is another one under other flags. Where a rewritten graph cannot be scheduled, or later not be
    compiled or given memory, `failed` hears why, and the graph is scheduled once more, and from then on, as tinygrad
    alone would. Without `failed`, errors are raised. With `frozen`, what is computed of weights alone is computed once
    and kept there. `fitted` hears of every kernel that was to have options: None where it has them, the reason where
    tinygrad decides instead, and the seconds that the trial took; without `fitted`, the reason is raised.
    """

    rewriter: Rewriter
    wanted: Wanted = all_wanted
    before: Callable[[], None] = lambda: None
    scheduled: Callable[[bytes], None] = lambda _: None
    failed: Callable[[bytes, Exception], None] | None = None
    frozen: FrozenWeights | None = None
    fitted: Heard | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    rewritten: set[bytes] = field(default_factory=set)
    """Keys of graphs in which something was replaced."""
    plain: set[bytes] = field(default_factory=set)
    """Keys of graphs that failed."""

    def changed(self) -> None:
        """Whatever the rewriter would answer now, it may be something else than before."""
        self.number = next(_numbers)
        self.rewritten, self.plain = set(), set()
        if self.frozen is not None:
            self.frozen.forget()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rescue:
    """How a schedule that we rewrote is made anew without us."""

    attachment: Attachment
    graph: bytes
    schedule: Callable[[], Any]

    def plain(self, error: Exception) -> Any:
        """The schedule as tinygrad alone makes it, because of this error of ours. Raises it if nobody is to hear."""
        if self.attachment.failed is None:
            raise error
        self.attachment.failed(self.graph, error)
        self.attachment.plain.add(self.graph)
        return self.schedule()


class _Thread(threading.local):
    """What this thread is scheduling under: fixed when it begins, whatever is attached meanwhile."""

    def __init__(self) -> None:
        self.rewritten: set[bytes] = set()
        """The attachment's when it began. Another thread may tell the attachment of a change: it then has another."""

    block: Attachment | None = None
    """Of the innermost `attached` block that this thread is in: it acts in place of what is attached for all."""
    attachment: Attachment | None = None
    graph: bytes = b""
    """Its key and the mark that it is scheduled under."""
    call: UOp | None = None
    """The function and its arguments; None where functions are nested and an argument's slot says nothing."""


_switch = ForkLock(reentrant=True)
_thread = _Thread()
_active: Attachment | None = None
"""What acts in threads that are in no block."""
_blocks = 0
"""How many `attached` blocks there are, of all threads."""
_originals: list[tuple[Any, str, Any]] = []
"""What was replaced: module, name, value."""
_rescues: weakref.WeakKeyDictionary[UOp, _Rescue] = weakref.WeakKeyDictionary()
"""By a schedule that we rewrote and that was not run yet."""


def attach(attachment: Attachment) -> None:
    """Act on every graph scheduled from now on, in place of an attachment before.

    Raises UnsupportedTinygradError.
    """
    global _active
    _expect_supported()
    with _switch:
        _active = attachment
        _settle()


def detach() -> None:
    """Leave tinygrad as it was; as soon as the `attached` blocks of other threads are over."""
    global _active
    with _switch:
        _active = None
        _settle()


@contextmanager
def attached(rewriter: Rewriter, *, frozen: FrozenWeights | None = None) -> Iterator[None]:
    """`rewriter` and nothing else in this thread, within the block; what it raises is raised.

    Other threads, blocks of theirs and what is attached for all go on beside it. Raises UnsupportedTinygradError.
    """
    global _blocks
    _expect_supported()
    with _switch:
        _blocks += 1
        _settle()
    outer, _thread.block = _thread.block, Attachment(rewriter=rewriter, frozen=frozen)
    try:
        yield
    finally:
        _thread.block = outer
        with _switch:
            _blocks -= 1
            _settle()


def _expect_supported() -> None:
    if (fault := seam_fault()) is not None:
        raise UnsupportedTinygradError(fault)


def _settle() -> None:
    """Replace tinygrad's names or put them back, as somebody is attached or nobody is."""
    wanted = _active is not None or _blocks > 0
    if wanted and not _originals:
        for module, name, wrap in _wrappers():
            _originals.append((module, name, getattr(module, name)))
            setattr(module, name, wrap(getattr(module, name)))
    elif _originals and not wanted:
        for module, name, original in _originals:
            setattr(module, name, original)
        _originals.clear()
    # schedules made under former attachments are never found again; in place: tinygrad's functions hold the dict
    tinygrad.schedule.schedule_cache.clear()


def seam_fault() -> str | None:
    """Why the seam cannot be used with this tinygrad, or None."""
    try:
        found = version("tinygrad")
    except PackageNotFoundError:
        return f"tinygrad is here without its version: install tinygrad {SUPPORTED}.x as a package"
    if found.split(".")[:2] != SUPPORTED.split("."):
        return f"tinygrad {found} is not supported: install tinygrad {SUPPORTED}.x"
    for module, name in _NAMES:
        if not hasattr(module, name):
            return f"tinygrad {found} has no {module.__name__}.{name}: install tinygrad {SUPPORTED}.x anew"
    return None


def _wrappers() -> tuple[tuple[Any, str, Callable[[Any], Any]], ...]:
    return (
        (rangeify, "run_rangeify", _run_rangeify),
        (rangeify, "pm_no_indexing_calls", lambda original: pm_kernel_options + original),
        (tinygrad.tensor, "create_linear_with_vars", _create_linear_with_vars),
        (tinygrad.schedule, "memory_plan_rewrite", _memory_plan_rewrite),
        (tinygrad.engine.jit, "memory_plan_rewrite", _memory_plan_rewrite),
        (tinygrad.engine.realize, "compile_linear", _compile_linear),
    )


def _run_rangeify(original: Callable[..., UOp]) -> Callable[..., UOp]:
    def run_rangeify(sink: UOp, debug: bool = False) -> UOp:
        ranged = original(sink, debug)
        attachment = _thread.attachment
        if attachment is None:
            return ranged
        before = _thread.graph in _thread.rewritten
        _thread.rewritten.add(_thread.graph)  # should it raise, it is ours
        result = rewrite(ranged, _noting_weights(attachment, _thread.call), attachment.wanted)
        if result is ranged and not before:
            _thread.rewritten.discard(_thread.graph)
        return result

    return run_rangeify


def _fitted(call: UOp, kernel: UOp) -> UOp | None:
    """The call of a kernel that was just split off, with its options; tinygrad's own may be for a device that does not
    open."""
    attachment = _thread.attachment
    if attachment is None or _thread.graph not in _thread.rewritten or not isinstance(kernel.arg, KernelInfo):
        return None
    return fitted(call, kernel, attachment.fitted)


pm_kernel_options = PatternMatcher(
    [(UPat(Ops.CALL, src=(UPat(Ops.SINK, name="kernel"),), allow_any_len=True, name="call"), _fitted)]
)


def _noting_weights(attachment: Attachment, call: UOp | None) -> Rewriter:
    """The attachment's rewriter; what it replaces has its weights noted where they are to be frozen."""
    frozen, graph = attachment.frozen, _thread.graph
    if frozen is None or call is None:
        return attachment.rewriter

    def rewriter(convs: Sequence[Conv], ranges: Ranges) -> Sequence[Lowered | None]:
        answers = attachment.rewriter(convs, ranges)
        frozen.found(graph, weight_slots(convs, [new is not None for new in answers]))
        frozen.called(graph, call.src[1:])
        return answers

    return rewriter


def _create_linear_with_vars(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_linear_with_vars(big_sink: UOp) -> Any:
        attachment = _thread.block or _active
        if attachment is None:
            return original(big_sink)
        attachment.before()
        mark = _mark(attachment)
        rewritten = attachment.rewritten  # read after the mark: one of former marks is not looked into any more
        graph = big_sink.src[0].key + mark.encode()  # the buffers behind it are other ones every time
        if graph in attachment.plain:
            attachment.scheduled(graph)
            return original(big_sink)
        rescue = _Rescue(attachment=attachment, graph=graph, schedule=lambda: original(big_sink))
        captured = _captured()
        before = len(captured)
        try:
            linear, variables = _scheduled(original, big_sink, graph, mark, attachment, rewritten)
            if graph in rewritten and attachment.failed is not None:
                for taken in captured[before:]:
                    _runnable(lower_and_compile, taken)
        except Exception as error:
            if graph not in rewritten:
                raise
            del captured[before:]
            return rescue.plain(error)
        attachment.scheduled(graph)
        if graph in rewritten and linear.src:
            _rescues[linear] = rescue
        return linear, variables

    return create_linear_with_vars


def _scheduled(
    original: Callable[..., Any], big_sink: UOp, graph: bytes, mark: str, attachment: Attachment, rewritten: set[bytes]
) -> Any:
    """The schedule under this attachment, which is then this thread's."""
    sinks = [u for u in big_sink.toposort() if u.op is Ops.SINK and u.arg is None]
    outer = (_thread.attachment, _thread.graph, _thread.rewritten, _thread.call)
    call = big_sink if sinks == [big_sink.src[0]] else None
    _thread.attachment, _thread.graph, _thread.rewritten, _thread.call = attachment, graph, rewritten, call
    try:
        if attachment.frozen is not None and call is not None:
            attachment.frozen.called(graph, call.src[1:])
        return original(_marked(big_sink, sinks, mark))
    finally:
        _thread.attachment, _thread.graph, _thread.rewritten, _thread.call = outer


def _compile_linear(original: Callable[..., UOp]) -> Callable[..., UOp]:
    def compile_linear(linear: UOp, *args: Any, **options: Any) -> UOp:
        rescue = _rescues.pop(linear, None)
        if rescue is None or rescue.attachment.failed is None:
            return original(linear, *args, **options)
        try:
            compiled = _runnable(original, linear, *args, **options)
            allocate(compiled)
        except Exception as error:  # noqa: BLE001 - whatever it is, the program did not ask for it
            with Context(CAPTURING=0):
                linear, _ = rescue.plain(error)
            return original(linear, *args, **options)
        return compiled

    return compile_linear


def _captured() -> list[UOp]:
    """The schedules that a jit has captured, if one is just capturing: what it captures is not returned."""
    return getattr(capturing[0], "_linears", []) if capturing and CAPTURING else []


def _runnable(compile_linear: Callable[..., UOp], linear: UOp, *args: Any, **options: Any) -> UOp:
    """The schedule with its kernels compiled and loaded."""
    with remembered(linear):
        compiled = compile_linear(linear, *args, **options)
    load(compiled)
    return compiled


def _memory_plan_rewrite(original: Callable[..., UOp]) -> Callable[..., UOp]:
    def memory_plan_rewrite(linear: UOp, held_bufs: set[UOp] | None = None) -> UOp:
        attachment = _thread.attachment or _thread.block or _active  # a jit plans after it has captured
        if attachment is None or attachment.frozen is None:
            return original(linear, held_bufs)
        held = held_bufs or set()
        linear, kept = attachment.frozen.hoisted(linear, held, run=_may_compile())
        return original(linear, held | kept if kept else held)

    return memory_plan_rewrite


def _may_compile() -> bool:
    """Not beside other threads: tinygrad compiles in one at a time, and only the program knows in which."""
    return all(t is threading.main_thread() or t.daemon for t in threading.enumerate())


def _mark(attachment: Attachment) -> str:
    """What tells a schedule from those made under other conditions."""
    return f"autotune {attachment.number} {flags_in_force()} {NUM_CPU_THREADS.value}"


def _marked(big_sink: UOp, sinks: Sequence[UOp], mark: str) -> UOp:
    """The graph with its functions marked."""
    marked = {u: u.replace(arg=mark) for u in sinks}
    if list(sinks) == [big_sink.src[0]]:  # almost always: one function, nothing nested in it
        return big_sink.replace(src=(marked[big_sink.src[0]], *big_sink.src[1:]))
    return big_sink.substitute(marked, walk=True, enter_calls=True)


__all__ = [
    "SUPPORTED", "Attachment", "Rewriter", "UnsupportedTinygradError", "attach", "attached", "detach", "seam_fault",
]  # fmt: skip
