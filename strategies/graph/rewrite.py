"""A rangeified graph with its convolutions replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from tinygrad.dtype import AddrSpace
from tinygrad.schedule import rangeify
from tinygrad.uop.ops import Ops, ParamArg, UOp, graph_rewrite

from strategies.graph.buffers import Held, computed_at, loops_of, stored
from strategies.graph.hidden import find
from strategies.graph.lowered import Lowered, Tail
from strategies.graph.match import Conv, is_static_range, zero_gates
from strategies.graph.ranges import Ranges, extent
from strategies.graph.rebuild import BOUNDARY, DIVISIONS, expression
from strategies.shape import MAX_SPATIAL_DIMS

Rewriter = Callable[[Sequence[Conv], Ranges], Sequence[Lowered | None]]
"""Gets every convolution of a graph at once, returns for each what replaces its REDUCE, or None to leave it."""


Wanted = Callable[[Sequence[Conv]], Sequence[bool]]
"""Says of every convolution of a graph whether it will be replaced."""


def all_wanted(convs: Sequence[Conv]) -> list[bool]:
    return [True] * len(convs)


def rewrite(sink: UOp, rewriter: Rewriter, wanted: Wanted = all_wanted) -> UOp:
    """`sink` with the convolutions that `rewriter` answers for replaced; `sink` itself if there are none.

    `wanted` is asked first, as soon as convolutions are known, and again where more is to be seen of them. If none is,
    `rewriter` is not asked.
    """
    nodes = sink.toposort()
    if not any(u.op is Ops.REDUCE and u.arg[0] is Ops.ADD for u in nodes):
        return sink
    ranges = _fresh(nodes)
    found = {u: find(u, ranges) for u in nodes if u.op is Ops.REDUCE}
    passing = _passing(nodes)
    if not any(_hides_operands(reduce, conv, passing) for reduce, conv in found.items()):
        convs = [conv for conv in found.values() if conv is not None]
        if not convs or not any(wanted(convs)):
            return sink
    # removable STAGEs hide operands from each other wherever a value has several consumers, as in autograd's graphs
    clean = graph_rewrite(
        sink, rangeify.pm_const_buffer_folding + rangeify.pm_remove_bufferize, name="before winowrite"
    )
    nodes = clean.toposort()
    ranges = _fresh(nodes)
    convs = _convolutions(nodes, ranges)
    if not convs or not any(will := wanted(convs)):
        return sink
    if divided := _divided(nodes, convs, [conv for conv, each in zip(convs, will, strict=True) if each], ranges):
        clean = _replace(clean, divided, {}, ranges)
        nodes = clean.toposort()
        convs = _convolutions(nodes, ranges)
    shared, private = _sharing(nodes, {conv.node for conv in convs}), _private(nodes)
    convs = [replace(conv, shared=conv.node in shared, private=private.intersection(conv.loops)) for conv in convs]
    kernels = _kernels(nodes, convs)
    convs = [replace(conv, kernel=kernels.get(conv.node)) for conv in convs]
    pairs = zip(convs, rewriter(convs, ranges), strict=True)
    answers = [(conv, new) for conv, new in pairs if new is not None]
    whole = {conv.kernel: new.whole for conv, new in answers if conv.kernel is not None and new.whole is not None}
    placed = [(conv.node, conv.place_read if new.is_read else conv.place, new) for conv, new in answers]
    replacements = {node: place(new.value) for node, place, new in placed if new.whole is None}
    splits = _splits(new.split for _, new in answers)
    return _replace(clean, replacements | splits, whole, ranges) if answers else sink


def _convolutions(nodes: Iterable[UOp], ranges: Ranges) -> list[Conv]:
    return [conv for u in nodes if u.op is Ops.REDUCE and (conv := find(u, ranges)) is not None]


def _divided(nodes: Iterable[UOp], convs: Iterable[Conv], wanted: Iterable[Conv], ranges: Ranges) -> dict[UOp, UOp]:
    """The loops that are the groups and outputs of a `wanted` convolution in one (`Conv.merged`) as two, where one
    kernel alone has them. All its loops are new then: tinygrad nests them in the order in which they were made.

        for r in 6: y[r] = relu(x of group r // 3 * w[r])
        for g in 2: for o in 3: y[g*3 + o] = relu(x of group g * w[g*3 + o])
    """
    merged = {r: parts for conv in wanted for r, parts in conv.merged.items()}
    merged = {r: parts for r, parts in merged.items() if all(_bears(conv, r, parts) for conv in convs)}
    private = _private(nodes) if merged else frozenset[UOp]()
    replacements: dict[UOp, UOp] = {}
    for u in nodes if merged else ():
        loops = loops_of(u.src[1:]) if u.op in (Ops.STAGE, Ops.END) else []
        if merged.keys().isdisjoint(loops) or not all(map(is_static_range, loops)) or not private.issuperset(loops):
            continue
        for r in loops:
            if r not in merged:
                replacements[r] = ranges.new(extent(r), r.arg[-1])
                continue
            group, count = merged[r]
            replacements[group] = ranges.new(count, r.arg[-1])
            inner = extent(r) // count
            replacements[r] = replacements[group] * inner + ranges.new(inner, r.arg[-1])
    return replacements


def _bears(conv: Conv, r: UOp, parts: tuple[UOp, int]) -> bool:
    """Whether a convolution is found as well once a loop is divided: it has the same groups there, or does not cut the
    loop. One that cuts it elsewhere would have what is left of two loops for groups."""
    mine = conv.merged.get(r)
    return mine == parts if mine else not any(u.op in DIVISIONS and r in u.ranges for u in expression(conv.node.src[0]))


def _fresh(nodes: Iterable[UOp]) -> Ranges:
    """Ranges and buffers that the graph does not have yet."""
    ids, slots = [-1], [-1]
    for u in nodes:
        if u.op is Ops.RANGE:
            ids.append(u.arg[0])
        elif u.op is Ops.BUFFER and isinstance(u.arg, ParamArg):
            slots.append(u.arg.slot)
    return Ranges(max(ids) + 1, max(slots) + 1)


def _passing(nodes: Iterable[UOp]) -> frozenset[UOp]:
    """The STAGEs that tinygrad may take away, whose kernels sum nothing."""
    holds_sum: dict[UOp, bool] = {}
    found: list[UOp] = []
    for u in nodes:
        if u.op in BOUNDARY:
            if u.op is Ops.STAGE and u.arg.removable and not holds_sum[u.src[0]]:
                found.append(u)
            holds_sum[u] = False
        else:
            holds_sum[u] = u.op is Ops.REDUCE or any(holds_sum[s] for s in u.src)
    return frozenset(found)


def _hides_operands(reduce: UOp, conv: Conv | None, passing: Collection[UOp]) -> bool:
    """Whether a sum of products, which is this convolution or none, may be another one once tinygrad has taken STAGEs
    away: it reads some of the `passing`, and nothing was found, or not all, or they have padding in them."""
    product = reduce.src[0].src[0] if reduce.src[0].op is Ops.CAST else reduce.src[0]
    if not passing or reduce.arg[0] is not Ops.ADD or product.op is not Ops.MUL:
        return False
    stages = {u.src[0] for u in expression(product) if u.op is Ops.INDEX and u.src[0] in passing}
    if conv is None or len(conv.axes) < MAX_SPATIAL_DIMS:
        return bool(stages)
    return any(next(zero_gates(stage.src[0]), None) is not None for stage in stages)


def _splits(several: Iterable[Mapping[UOp, UOp]]) -> dict[UOp, UOp]:
    """Of several that would split the same loops the first does: the others are then computed in its loops."""
    result: dict[UOp, UOp] = {}
    for split in several:
        if result.keys().isdisjoint(split):
            result |= split
    return result


def _kernels(nodes: Iterable[UOp], convs: Iterable[Conv]) -> dict[UOp, UOp]:
    """The STAGE or END of each convolution that has a `Conv.kernel`, by its node."""
    alone = [conv for conv in convs if not conv.shared and conv.stands_for is None]
    found: dict[UOp, UOp] = {}
    for u in nodes if alone else ():
        loops = frozenset(r for r in u.src[1:] if r.op is Ops.RANGE) if u.op in (Ops.STAGE, Ops.END) else frozenset()
        several = [conv for conv in alone if loops and loops == conv.private == frozenset(conv.loops)]
        if several and (u.op is Ops.STAGE or u.src[0].op is Ops.STORE):
            found |= {conv.node: u for conv in several if _is_elementwise(u.src[0], conv.node)}
    return found


def _is_elementwise(value: UOp, total: UOp) -> bool:
    """Whether a kernel's value is elementwise of this sum: it has no other in it, which would be summed up for each
    element of a lane anew, and no Variable, which a kernel of our own is not given."""
    tail = value.toposort(gate=lambda u: u.op not in BOUNDARY and u is not total)
    variable = any(u.op is Ops.INDEX and u.src[0].addrspace is AddrSpace.ALU for u in tail)
    return total in expression(value) and not variable and not any(u.op is Ops.REDUCE for u in tail)


def _sharing(nodes: Iterable[UOp], convs: Collection[UOp]) -> set[UOp]:
    """Those of the convolutions whose kernel does more than they and what is elementwise of them."""
    found: set[UOp] = set()
    inside: dict[UOp, frozenset[UOp]] = {}
    for u in nodes:
        below = frozenset[UOp]().union(*(inside[s] for s in u.src if s.op not in BOUNDARY))
        is_conv = u in convs
        is_sum = u.op is Ops.REDUCE and not is_conv
        is_given = u.op is Ops.CONTIGUOUS and bool(u.arg)  # options, from the program itself
        if is_sum or is_given or (u.op in (Ops.STAGE, Ops.END) and len(below) > 1):
            found |= below
        inside[u] = below | {u} if is_conv else below
    return found


def _private(nodes: Iterable[UOp]) -> frozenset[UOp]:
    """The ranges that one kernel loops over and no other, and whose kernel can be written anew."""
    nodes = list(nodes)
    loops = Counter(r for u in nodes if u.op in (Ops.STAGE, Ops.END) for r in u.src[1:])
    kept = {s for u in nodes if u.op is not Ops.INDEX for s in u.src if s.op is Ops.STAGE}
    return frozenset(r for r, count in loops.items() if count == 1) - {r for u in kept for r in u.src[1:]}


def _replace(
    root: UOp, replacements: Mapping[UOp, UOp], whole: Mapping[UOp, Callable[[Tail], UOp]], ranges: Ranges
) -> UOp:
    """Replace each REDUCE, also inside the replacements of others: one convolution's input holds the one before it.

    A STAGE that holds a REDUCE stays one. What is rewritten need hold no REDUCE any more, and tinygrad would inline
    one convolution's output transform into every element of the next one's input transform.
    """
    done: dict[UOp, UOp] = {}
    holds_reduce: dict[UOp, bool] = {}
    split: dict[UOp, Held] = {}
    for u in root.toposort():
        holds_reduce[u] = u.op is Ops.REDUCE or (u.op is not Ops.STAGE and any(holds_reduce[s] for s in u.src))
        if (new := replacements.get(u)) is not None:
            done[u] = _translated(new, done, split)
            continue
        if (make := whole.get(u)) is not None:
            done[u] = _made_whole(u, make, done, split, ranges)
            continue
        kept = _with_sources(u, done, split)
        if u.op in (Ops.STAGE, Ops.END) and kept.src[1:] != u.src[1:]:
            kept = _split(u, kept.src, split, ranges)
        elif u.op is Ops.STAGE and holds_reduce[u.src[0]] and kept.arg.removable:
            kept = kept.replace(arg=replace(kept.arg, removable=False))
        done[u] = kept
    return done[root]


def _with_sources(u: UOp, done: Mapping[UOp, UOp], split: Mapping[UOp, Held]) -> UOp:
    """The node over what its sources became."""
    sources = tuple(done.get(s, s) for s in u.src)
    if u.op is Ops.INDEX and (held := split.get(u.src[0])) is not None:
        return held.read(sources[1:])
    return u if sources == u.src else u.replace(src=sources)


def _split(u: UOp, sources: tuple[UOp, ...], split: dict[UOp, Held], ranges: Ranges) -> UOp:
    """A STAGE or END some of whose ranges became several. tinygrad's STAGE cannot have that, a written out one can."""
    if u.op is Ops.END:
        return sources[0].end(*loops_of(sources[1:]))
    sizes = [extent(axis) for axis in u.src[1:]]
    split[u] = stored(sources[0], sources[1:], sizes, device=u.arg.device, slot=ranges.new_buffer())
    return split[u].buffer


def _made_whole(
    u: UOp, make: Callable[[Tail], UOp], done: dict[UOp, UOp], split: dict[UOp, Held], ranges: Ranges
) -> UOp:
    """What takes the place of a STAGE or END whose kernel is made by the lowering of the convolution in it."""

    def made(tail: Tail) -> UOp:  # in terms of what this graph became: whoever reads the buffer reads what fills it
        return _translated(make(tail), done, split)

    if u.op is Ops.END:
        target, value = u.src[0].src[:2]
        return made(Tail(value=value, buffer=target.src[0], index=target.src[1:]))
    sizes = [extent(axis) for axis in u.src[1:]]
    split[u] = computed_at(u.src[0], u.src[1:], sizes, made, device=u.arg.device, slot=ranges.new_buffer())
    return split[u].buffer


def _translated(new: UOp, done: dict[UOp, UOp], split: Mapping[UOp, Held]) -> UOp:
    """A replacement in terms of what its own sources became."""
    for u in new.toposort(gate=lambda u: u not in done, enter_calls=False):  # a kernel's ranges are its own
        if u not in done:
            done[u] = _with_sources(u, done, split)
    return done[new]
