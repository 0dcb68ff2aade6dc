"""Where the rewrite enters tinygrad, and the only place that changes it.

`get_kernel_graph` looks `run_rangeify` up in its module at every call, so that name can be replaced at any time; the
functions inside tinygrad's PatternMatchers cannot (they hold copied globals). The schedule cache is keyed before this
point: `changed()` must empty it whenever the lowering of anything may have changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import tinygrad.schedule
import tinygrad.schedule.rangeify as rangeify
from tinygrad.uop.ops import Ops, UOp, graph_rewrite

from strategies.graph.kron import Ranges
from strategies.graph.match import Conv, match

Rewriter = Callable[[Sequence[Conv], Ranges], Sequence[UOp | None]]
"""Gets every convolution of a graph at once, returns for each what replaces its REDUCE, or None to leave it."""

SUPPORTED = "0.14"

_lock = threading.RLock()
_original: Callable[..., UOp] | None = None


class UnsupportedTinygradError(RuntimeError):
    """This tinygrad does not have the seam that the rewrite needs."""


def attach(rewriter: Rewriter) -> None:
    """Rewrite the convolutions of every graph scheduled from now on; replaces a rewriter attached before."""
    global _original
    with _lock:
        if (fault := seam_fault()) is not None:
            raise UnsupportedTinygradError(fault)
        if _original is None:
            _original = rangeify.run_rangeify
        original = _original

        def run_rangeify(sink: UOp, debug: bool = False) -> UOp:
            return rewrite(original(sink, debug), rewriter)

        rangeify.run_rangeify = run_rangeify
        changed()


def detach() -> None:
    """Leave tinygrad as it was."""
    global _original
    with _lock:
        if _original is not None:
            rangeify.run_rangeify, _original = _original, None
            changed()


def changed() -> None:
    """Forget schedules made with another lowering. In place: tinygrad's own functions hold the dictionary."""
    tinygrad.schedule.schedule_cache.clear()


def seam_fault() -> str | None:
    """Why the seam cannot be used with this tinygrad, or None."""
    from importlib.metadata import version

    found = version("tinygrad")
    if found.split(".")[:2] != SUPPORTED.split("."):
        return f"tinygrad {found} is not supported: install tinygrad {SUPPORTED}.x"
    for module, name in ((rangeify, "run_rangeify"), (rangeify, "pm_remove_bufferize"), (tinygrad.schedule, "schedule_cache")):
        if not hasattr(module, name):
            return f"tinygrad {found} has no {module.__name__}.{name}: reinstall tinygrad {SUPPORTED}.x"
    return None


def rewrite(sink: UOp, rewriter: Rewriter) -> UOp:
    """`sink`, rangeified, with the convolutions that `rewriter` answers for replaced."""
    if not any(u.op is Ops.REDUCE for u in sink.toposort()):
        return sink
    # removable STAGEs hide operands from each other wherever a value has several consumers, as in autograd's graphs
    clean = graph_rewrite(sink, rangeify.pm_const_buffer_folding + rangeify.pm_remove_bufferize, name="before winowrite")
    nodes = clean.toposort()
    convs = [conv for u in nodes if u.op is Ops.REDUCE and (conv := match(u)) is not None]
    if not convs:
        return sink
    first = max((u.arg[0] for u in nodes if u.op is Ops.RANGE), default=-1) + 1
    replacements = {
        conv.reduce: new for conv, new in zip(convs, rewriter(convs, Ranges(first)), strict=True) if new is not None
    }
    if not replacements:
        return sink
    return _replace(clean, replacements)


def _replace(root: UOp, replacements: dict[UOp, UOp]) -> UOp:
    """Replace each REDUCE, also inside the replacements of others: one convolution's input holds the one before it.

    A STAGE that holds a REDUCE stays one. What is rewritten need hold no REDUCE any more, and tinygrad would inline
    one convolution's output transform into every element of the next one's input transform.
    """
    done: dict[UOp, UOp] = {}
    holds_reduce: dict[UOp, bool] = {}
    for u in root.toposort():
        holds_reduce[u] = u.op is Ops.REDUCE or (u.op is not Ops.STAGE and any(holds_reduce[s] for s in u.src))
        if (new := replacements.get(u)) is not None:
            done[u] = _translate(new, done)
            continue
        sources = tuple(done[s] for s in u.src)
        kept = u if sources == u.src else u.replace(src=sources)
        if u.op is Ops.STAGE and holds_reduce[u.src[0]] and kept.arg.removable:
            kept = kept.replace(arg=replace(kept.arg, removable=False))
        done[u] = kept
    return done[root]


def _translate(new: UOp, done: dict[UOp, UOp]) -> UOp:
    """A replacement in terms of what its own sources became."""
    for u in new.toposort(gate=lambda u: u not in done):
        if u in done:
            continue
        sources = tuple(done[s] for s in u.src)
        done[u] = u if sources == u.src else u.replace(src=sources)
    return done[new]


__all__ = ["Rewriter", "SUPPORTED", "UnsupportedTinygradError", "attach", "changed", "detach", "rewrite", "seam_fault"]
