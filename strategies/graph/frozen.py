"""Filter transforms computed once and kept, where the caller promises that weights do not change.

After a schedule is bound to its buffers and before its memory is planned, a kernel that reads one frozen weight and
nothing else, the filter transform, computes the same every time. It runs once, into a buffer of its own, and is left
out of the schedule, whose other kernels read that buffer. tinygrad plans the memory of what a TinyJit captured in the
same way, with the jit's inputs as PARAMs by then: a weight that is handed to a jitted function is never taken for
frozen.

A kept transform lives as long as its weight's buffer and whoever keeps it: the FrozenWeights, or a captured jit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from tinygrad.engine.realize import get_call_arg_uops, run_linear
from tinygrad.uop.ops import Ops, UOp

from strategies.graph.match import Conv
from strategies.graph.rebuild import BOUNDARY, expression
from strategies.graph.remembered import remembered
from strategies.locks import ForkLock

_lock = ForkLock(reentrant=True)
_transforms: WeakKeyDictionary[UOp, WeakValueDictionary[UOp, UOp]] = WeakKeyDictionary()
"""Of each weight's buffer, by kernel: the buffer that holds what the kernel makes of the weight."""
_written: WeakKeyDictionary[UOp, frozenset[int]] = WeakKeyDictionary()


def refresh() -> int:
    """Transform every frozen weight again, in place, so that captured jits see it too. How many transforms it were."""
    with _lock:
        return sum(_transform(weight) for weight in list(_transforms))


class FrozenWeights:
    """The weights that some rewritten convolution reads, and their kept transforms.

    A transform that cannot be computed stays in the schedule, and `failed` hears why; without `failed` it is raised.
    Safe to use from several threads.
    """

    def __init__(self, failed: Callable[[Exception], None] | None = None) -> None:
        self._failed = failed
        self._slots: dict[bytes, frozenset[int]] = {}
        self._weights: WeakSet[UOp] = WeakSet()
        self._kept: WeakKeyDictionary[UOp, list[UOp]] = WeakKeyDictionary()

    def found(self, function: bytes, slots: Iterable[int]) -> None:
        """The arguments, by slot, that are weights of rewritten convolutions in the function of this key."""
        with _lock:
            self._slots[function] = self._slots.get(function, frozenset()) | frozenset(slots)

    def called(self, function: bytes, arguments: tuple[UOp, ...]) -> None:
        """The function is scheduled with these arguments: from now on its weights count as frozen."""
        with _lock:
            for slot in self._slots.get(function, ()):
                if slot < len(arguments) and arguments[slot].op is Ops.BUFFER:
                    self._weights.add(arguments[slot])

    def hoisted(self, linear: UOp, held: AbstractSet[UOp], *, run: bool) -> tuple[UOp, set[UOp]]:
        """The schedule without the kernels that transform frozen weights, and the buffers that hold what they make.

        Buffers in `held` outlive the schedule: kernels that write them stay. Without `run` nothing is computed now:
        only transforms that are there already are made use of.
        """
        with _lock:
            calls = [call for call in linear.src if self._transforms_a_weight(call, held)]
            if not calls:
                return linear, set()
            written = [buffer for call in linear.src for buffer in _outputs(call)]
            kept: dict[UOp, UOp] = {}
            for call in calls:
                out, weight = call.src[1:]
                if written.count(out) == 1 and weight not in written and not _inside(out, linear):
                    transform = self._transform_of(weight, call.src[0], out, run=run)
                    if transform is not None:
                        kept[out] = transform
            left = (c.replace(src=tuple(kept.get(s, s) for s in c.src)) for c in linear.src if c.src[1] not in kept)
            return linear.replace(src=tuple(left)), set(kept.values())

    def refresh(self) -> None:
        """Transform the weights again whose transforms are kept here."""
        with _lock:
            for weight in list(self._kept):
                _transform(weight)

    def forget(self) -> None:
        """Keep nothing of what was known. Captured jits keep the transforms that they read."""
        with _lock:
            self._slots.clear()
            self._weights.clear()
            self._kept.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the transforms that are kept."""
        with _lock:
            return sum(buffer.nbytes() for buffers in self._kept.values() for buffer in buffers)

    def _transforms_a_weight(self, call: UOp, held: AbstractSet[UOp]) -> bool:
        if call.src[0].op is not Ops.SINK or len(call.src) != 3 or call.src[0].variables():
            return False
        out, weight = call.src[1:]
        return (
            weight in self._weights and weight.is_realized and isinstance(weight.device, str)
            and out.op is Ops.BUFFER and out.device == weight.device
            and out not in held and not out.is_realized and _written_slots(call.src[0]) == {0}
        )  # fmt: skip

    def _transform_of(self, weight: UOp, kernel: UOp, out: UOp, *, run: bool) -> UOp | None:
        """The buffer that holds what `kernel` makes of `weight`; it is made here if there is none."""
        known = _transforms.setdefault(weight, WeakValueDictionary())
        if (transform := known.get(kernel)) is None:
            if not run:
                return None
            transform = UOp.new_buffer(out.device, out.max_numel(), out.dtype)
            try:
                _run(kernel, transform, weight)
            except Exception as error:
                if self._failed is None:
                    raise
                self._failed(error)
                return None
            known[kernel] = transform
        mine = self._kept.setdefault(weight, [])
        if transform not in mine:
            mine.append(transform)
        return transform


def weight_slots(convs: Iterable[Conv], replaced: Iterable[bool]) -> Iterator[int]:
    """The slots of PARAMs that replaced convolutions read as their whole weight, and no convolution as its input."""
    convs = list(convs)
    inputs = {leaf for conv in convs for leaf in _leaves(conv.activation)}
    for conv, is_replaced in zip(convs, replaced, strict=True):
        # a Winograd convolution's: of a product, 1x1, either operand may be the one that was called the weight
        winograd = any(axis.is_winograd for axis in conv.axes)
        if is_replaced and winograd and len(leaves := _leaves(conv.weight)) == 1:
            [leaf] = leaves
            if leaf.op is Ops.PARAM and leaf.arg.slot >= 0 and leaf not in inputs:
                yield leaf.arg.slot


def _leaves(value: UOp) -> set[UOp]:
    return {s for u in expression(value) for s in u.src if s.op in BOUNDARY}


def _transform(weight: UOp) -> int:
    transforms = list(_transforms.get(weight, {}).items())
    for kernel, transform in transforms:
        _run(kernel, transform, weight)
    return len(transforms)


def _run(kernel: UOp, out: UOp, weight: UOp) -> None:
    linear = UOp(Ops.LINEAR, src=(kernel.call(out, weight),))
    with remembered(linear):
        run_linear(linear, update_stats=False)


def _outputs(call: UOp) -> set[UOp]:
    """The buffers that a call may write; where nobody says, all that it is given."""
    arguments = get_call_arg_uops(call)
    if call.src[0].op is Ops.SINK:
        arguments = tuple(arguments[slot] for slot in _written_slots(call.src[0]) if slot < len(arguments))
    elif call.src[0].op is Ops.COPY:
        arguments = arguments[:1]
    return {u for argument in arguments for u in argument.toposort() if u.op is Ops.BUFFER}


def _inside(buffer: UOp, linear: UOp) -> bool:
    """Whether some call reads the buffer as part of an argument: stacked with those of other devices."""
    arguments = {s for call in linear.src for s in call.src[1:] if s is not buffer and s.op is not Ops.BUFFER}
    return any(buffer in s.toposort() for s in arguments)


def _written_slots(kernel: UOp) -> frozenset[int]:
    """The arguments that a kernel stores to."""
    if (slots := _written.get(kernel)) is None:
        targets = (u.src[0] for u in kernel.toposort() if u.op is Ops.STORE)
        params = (u for target in targets for u in target.toposort() if u.op is Ops.PARAM)
        slots = _written[kernel] = frozenset(p.arg.slot for p in params if p.arg.slot >= 0)
    return slots
