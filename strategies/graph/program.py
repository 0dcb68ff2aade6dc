"""One convolution, compiled: what the tuner runs and looks into."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.codegen import to_program_cache
from tinygrad.engine.jit import graph_split_rewrite
from tinygrad.engine.realize import ExecContext, compile_linear, link_linear, pm_exec
from tinygrad.helpers import BEAM
from tinygrad.uop.ops import Ops, UOp

from strategies.candidate import Candidate, Option
from strategies.graph import seam
from strategies.graph.apply import NotApplicableError, lower
from strategies.graph.compiling import compile_kernels, kernels_of
from strategies.graph.fitting import MisfitError
from strategies.graph.frozen import FrozenWeights
from strategies.graph.limits import limited, load
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.options import ast_digest, kernel_calls, with_options
from strategies.graph.ranges import Ranges
from strategies.graph.work import arithmetic
from strategies.registry import get_strategy
from strategies.shape import ConvShape

Array = np.ndarray[Any, Any]
NONE: Mapping[str, Sequence[Option]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """A kernel of a program. `ops` and `bytes` are tinygrad's estimates, `bytes` of what it must move at least.

    `role` is what it makes, told from the buffers that it touches: XHAT (reads the input alone), GHAT (the weight
    alone), product, tiles (of the output, where they do not cover it exactly), output, or convolution (all of it).
    """

    name: str
    role: str
    device: str
    ops: int
    bytes: int
    source: str
    options: tuple[str, ...]


class Program:
    """A convolution of `shape` lowered by `candidate` on `device`, with inputs of its own.

    Building schedules it and, unless `compiled` is false, compiles it; nothing runs before `run`. `options` are put on
    the kernels whose `ast_digest` they are filed under, `unmatched` are those that no kernel has. With `frozen_weights`
    it is compiled as it runs where weights are promised not to change: the filter transform runs when inputs are
    loaded, and is no part of it. Raises NotApplicableError, KernelLimitError, or whatever tinygrad raises for a kernel
    that it cannot compile or that the driver refuses.
    """

    def __init__(
        self, shape: ConvShape, candidate: Candidate, device: str, *, compiled: bool = True,
        options: Mapping[str, Sequence[Option]] = NONE, frozen_weights: bool = False, until: str = "",
    ) -> None:  # fmt: skip
        self.shape, self.candidate, self.device = shape, candidate, Device.canonicalize(device)
        self._x, self._w = operands(shape, self.device)
        self._y = convolution(self._x, self._w, shape)
        self._frozen = FrozenWeights() if frozen_weights else None
        if frozen_weights:
            self._w.assign(Tensor.zeros_like(self._w)).realize()  # only what there is can be frozen
        linear = schedule(self._y, candidate, self._frozen, until=until)
        self.unmatched = set(options) - {ast_digest(call.src[0]) for call in kernel_calls(linear)}
        self.linear = with_options(linear, options)
        self.compile_s = 0.0
        if compiled:
            self.compile()

    @property
    def buffers(self) -> int:
        """How many buffers its kernels fill, the output's included."""
        return len({call.src[1 + call.src[0].arg.outs[0]] for call in self._calls})

    def compile(self, limit_s: float = math.inf) -> None:
        """What `__init__` leaves to be done if it is not to compile. Raises LoweringTimeoutError where tinygrad spends
        more than `limit_s` seconds of processor time on one kernel."""
        begun, kernels_s = time.perf_counter(), 0.0
        with limited(self.device):
            if limit_s < math.inf and BEAM.value < 1:  # BEAM searches on the device, and takes the time that it needs
                kernels_s = compile_kernels(self.linear, self.device, limit_s)
            self._linear = compile_linear(self.linear, profile=True)
        load(self._linear)
        self.compile_s = kernels_s or time.perf_counter() - begun
        roles = roles_of(self._calls, *(t.uop.base for t in (self._x, self._w, self._y)))
        self.kernels = tuple(_kernel(call, role) for call, role in zip(self._calls, roles, strict=True))
        self.workspace_bytes = _workspace(self._linear, (self._x.uop, self._w.uop, self._y.uop))
        self._launch = _in_graphs(self._linear, self.device)
        self._one_by_one = link_linear(self._linear.replace(src=tuple(self._calls)))

    @property
    def graph(self) -> str:
        """Digest of the schedule: programs that share it are the same, which is known before anything is compiled."""
        names: dict[UOp, int] = {}
        parts = [
            repr((call.src[0].key, [names.setdefault(buffer, len(names)) for buffer in call.src[1:]]))
            for call in self.linear.src
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    @property
    def arithmetic(self) -> int:
        """Floating-point operations as the graph alone tells: see strategies.graph.work."""
        return arithmetic(kernels_of(self.linear))

    @property
    def fingerprint(self) -> str:
        """Digest of the kernels in order: candidates that come out as the same program share it."""
        parts = [f"{call.src[0].arg.global_size}{call.src[0].arg.local_size}{kernel.source}"
                 for call, kernel in zip(self._calls, self.kernels, strict=True)]  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def load(self, x: Array, w: Array) -> None:
        """Set the inputs, arrays of the shape's `input_shape` and `weight_shape`, rounded to its dtype."""
        for target, values in ((self._x, x), (self._w, w)):
            narrow = Tensor(values.astype(np.float32, copy=False), device=self.device).cast(target.dtype)
            target.assign(narrow).realize()
        if self._frozen is not None:
            self._frozen.refresh()

    def inputs(self) -> tuple[Array, Array]:
        """The inputs as the kernels see them, in float64."""
        return _float32(self._x).astype(np.float64), _float32(self._w).astype(np.float64)

    def output(self) -> Array:
        """What the last run computed, in float32."""
        return _float32(self._y)

    def poison(self) -> None:
        """Overwrite the output with NaN, so that an element that is never written shows."""
        self._y.assign(self._y.full_like(float("nan"))).realize()

    def run(self) -> float:
        """Run once; seconds on the device, from its own clock where it has one."""
        return sum(_launched(self._launch))

    def repeated(self, times: int) -> Callable[[], float]:
        """What runs it so often in a row and gives the seconds of one: where the device has graphs, in one graph, as in
        a network that a jit captured. What a graph's launch costs is then shared; a kernel of the next run begins as
        soon as the buffers that it touches are free.
        """
        launch = _in_graphs(self._linear.replace(src=self._linear.src * times), self.device)
        return lambda: sum(_launched(launch)) / times

    def run_kernels(self) -> list[float]:
        """Run once, each kernel launched by itself also where `run` launches a graph; its seconds on the device.

        As many as `kernels`, unless the device's driver launches them in its own way.
        """
        return _launched(self._one_by_one)

    @property
    def _calls(self) -> list[UOp]:
        return [call for call in self._linear.src if call.src[0].op is Ops.PROGRAM]


def _in_graphs(linear: UOp, device: str) -> UOp:
    """A compiled schedule as it is launched: in graphs where the device has them."""
    return link_linear(linear if Device[device].graph is None else graph_split_rewrite(linear))


def _launched(linked: UOp) -> list[float]:
    """Run it once; its launches' seconds on the device."""
    context = ExecContext(update_stats=False, wait=True)
    return [t or 0.0 for call in linked.src for t in pm_exec.rewrite(call, context)]


def forget_compiled() -> None:
    """Lower and compile again what was compiled before in this process: for who wants to know how long it takes."""
    to_program_cache.clear()


def operands(shape: ConvShape, device: str) -> tuple[Tensor, Tensor]:
    """Input and weight in buffers of their own, not set yet."""
    dtype = getattr(dtypes, shape.dtype)
    empty = (Tensor.empty(*size, dtype=dtype, device=device) for size in (shape.input_shape, shape.weight_shape))
    x, w = (t.contiguous().realize() for t in empty)
    return x, w


def convolution(x: Tensor, w: Tensor, shape: ConvShape) -> Tensor:
    """The user's convolution of this shape."""
    flat = tuple(side for pad in reversed(shape.padding) for side in pad)
    # one number where one will do, as users write it: tinygrad compares `stride == dilation == 1`
    stride, dilation = (v[0] if len(set(v)) == 1 else v for v in (shape.stride, shape.dilation))
    dtype = None if shape.acc_dtype == "float32" else getattr(dtypes, shape.acc_dtype)  # tinygrad's default
    return x.conv2d(w, groups=shape.groups, stride=stride, dilation=dilation, padding=flat, dtype=dtype)


def schedule(y: Tensor, candidate: Candidate, frozen: FrozenWeights | None = None, *, until: str = "") -> UOp:
    """The kernels of `y` with its convolutions lowered by `candidate`, as far as `until`, not compiled; those that
    transform `frozen` weights have run and are left out. Raises NotApplicableError."""
    applied = 0

    def rewriter(convs: Sequence[Conv], ranges: Ranges) -> list[Lowered | None]:
        nonlocal applied
        result = [lower(conv, candidate, ranges, until=until) for conv in convs]
        applied += sum(new is not None for new in result)
        return result

    try:
        with seam.attached(rewriter, frozen=frozen):
            linear = y.schedule_linear()
    except MisfitError as error:
        raise NotApplicableError(f"options do not fit their kernel: {error}") from None
    if not applied and get_strategy(candidate.strategy).lower is not None:
        raise NotApplicableError(f"{candidate} does not apply to this convolution")
    return linear


def roles_of(calls: Sequence[UOp], x: UOp, w: UOp, y: UOp) -> list[str]:
    """See CompiledKernel."""
    roles: list[str] = []
    for call in calls:
        touched = {u for s in call.src[1:] for u in s.toposort() if u.op is Ops.BUFFER}
        reads = (x in touched, w in touched)
        if y in touched:
            roles.append("convolution" if any(reads) else "output")
        elif reads[0] != reads[1]:
            roles.append("XHAT" if reads[0] else "GHAT")
        else:
            roles.append("tiles" if "product" in roles else "product")
    return roles


def _kernel(call: UOp, role: str) -> CompiledKernel:
    program = call.src[0]
    info = program.src[0].arg
    estimates = info.estimates
    return CompiledKernel(
        name=info.function_name,
        role=role,
        device=str(call.src[1].device),
        ops=int(estimates.ops) if estimates is not None else 0,
        bytes=int(estimates.mem) if estimates is not None else 0,
        source=str(program.src[2].arg),
        options=tuple(f"{o.op.name}:{o.axis}:{o.arg}" for o in info.applied_opts),
    )


def _workspace(linear: UOp, outside: Sequence[UOp]) -> int:
    """Bytes of the buffers between the kernels, as the memory planner laid them out."""
    ends = {u.base for u in outside}
    buffers = {u for call in linear.src for s in call.src[1:] for u in s.toposort() if u.op is Ops.BUFFER}
    return sum(u.max_numel() * u.dtype.itemsize for u in buffers - ends)


def _float32(t: Tensor) -> Array:
    return t.cast(dtypes.float32).numpy()
