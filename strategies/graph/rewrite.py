"""A rangeified graph with its convolutions replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tinygrad.schedule import rangeify
from tinygrad.uop.ops import Ops, ParamArg, UOp, graph_rewrite

from strategies.graph.kron import Ranges
from strategies.graph.match import Conv, match


def rewrite(sink: UOp, rewriter: Callable[[Sequence[Conv], Ranges], Sequence[UOp | None]]) -> UOp:
    """`sink` with the convolutions that `rewriter` answers for replaced; `sink` itself if there are none."""
    if not any(u.op is Ops.REDUCE and u.arg[0] is Ops.ADD for u in sink.toposort()):
        return sink
    # removable STAGEs hide operands from each other wherever a value has several consumers, as in autograd's graphs
    clean = graph_rewrite(
        sink, rangeify.pm_const_buffer_folding + rangeify.pm_remove_bufferize, name="before winowrite"
    )
    nodes = clean.toposort()
    convs = [conv for u in nodes if u.op is Ops.REDUCE and (conv := match(u)) is not None]
    if not convs:
        return sink
    first = max((u.arg[0] for u in nodes if u.op is Ops.RANGE), default=-1) + 1
    slots = (u.arg.slot for u in nodes if u.op is Ops.BUFFER and isinstance(u.arg, ParamArg))
    answers = zip(convs, rewriter(convs, Ranges(first, max(slots, default=-1) + 1)), strict=True)
    replacements = {conv.reduce: new for conv, new in answers if new is not None}
    return _replace(clean, replacements) if replacements else sink


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
            done[u] = _translated(new, done)
            continue
        sources = tuple(done[s] for s in u.src)
        kept = u if sources == u.src else u.replace(src=sources)
        if u.op is Ops.STAGE and holds_reduce[u.src[0]] and kept.arg.removable:
            kept = kept.replace(arg=replace(kept.arg, removable=False))
        done[u] = kept
    return done[root]


def _translated(new: UOp, done: dict[UOp, UOp]) -> UOp:
    """A replacement in terms of what its own sources became."""
    for u in new.toposort(gate=lambda u: u not in done):
        if u not in done:
            sources = tuple(done[s] for s in u.src)
            done[u] = u if sources == u.src else u.replace(src=sources)
    return done[new]
