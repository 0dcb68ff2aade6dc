"""A candidate's options put on the kernels that they are meant for.

Which kernels a graph becomes is known only when tinygrad has split it. Until then the options travel in the graph:

    lowering     CONTIGUOUS(value, arg=request)             request_options: role, axes and options in one Opt
    tinygrad     SINK(..., arg=KernelInfo(request))         a kernel gets the argument of a CONTIGUOUS in it as options
    seam         SINK(..., arg=KernelInfo(real options))    fitted: tinygrad's own choice where they do not fit

They fit where the kernel has exactly these axes and takes all the options, tried on the spot. An option that does not
fit would raise when the kernel is compiled, in the user's program, and leave it unfinished behind.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from tinygrad.codegen.opt import KernelOptError, Opt, OptOps
from tinygrad.codegen.opt.heuristic import hand_coded_optimizations
from tinygrad.codegen.opt.postrange import Scheduler
from tinygrad.codegen.simplify import pm_flatten_range, pm_load_collapse, pm_simplify_ranges, pm_split_ranges
from tinygrad.dtype import dtypes
from tinygrad.helpers import ALLOW_TF32, NOOPT, NUM_CPU_THREADS, USE_TC, Context
from tinygrad.renderer import Renderer
from tinygrad.schedule.multi import multi_pm
from tinygrad.schedule.rangeify import pm_mops
from tinygrad.uop.ops import AxisType, Ops, UOp, axis_letters, graph_rewrite
from tinygrad.uop.symbolic import sym

from strategies.candidate import KernelOptions, Option, kinds_of
from strategies.graph.device import Flags, flags_in_force, opened
from strategies.graph.options import opt_of

MARK = "autotune"
"""Begins the argument of our own Opt, which no option of tinygrad's has."""
MAX_OPTIONS = 32
MAX_IN_REGISTERS = 256
"""Values that options may have computed together by one thread: as many as BEAM tries. Four times as many took a
compiler half a minute."""
MAX_THREADS = 1024
"""Of a work group, on any device that tinygrad knows."""
REGISTERS = frozenset({AxisType.UPCAST, AxisType.UNROLL})
"""Axes whose values one thread computes together: side by side, or summed up without a loop."""
WORKGROUP = frozenset({AxisType.LOCAL, AxisType.WARP, AxisType.GROUP_REDUCE})
"""Axes that the threads of a workgroup divide among them."""
BY_HAND = WORKGROUP | {AxisType.UPCAST, AxisType.THREAD}
"""Axes that no kernel has before options, unless its lowering made them."""
WITH_AMOUNT = frozenset({"UPCAST", "UNROLL", "LOCAL", "GROUP", "GROUPTOP", "THREAD", "PADTO"})
"""Options that take a number of elements; 0 is the whole axis."""


class MisfitError(Exception):
    """Options that a kernel cannot have, or that were not meant for it."""


Heard = Callable[[MisfitError | None, float], None]
"""Is told of a kernel that was to have options: None where it has them, else why not, and the seconds of the trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionRequest:
    """Options for the kernel of this role, if it has these axes, or axes of these kinds. `by_hand`: if they do not fit
    it has none at all."""

    role: str
    axes: str
    options: tuple[Option, ...]
    by_hand: bool


def request_options(value: UOp, role: str, options: KernelOptions, *, by_hand: bool = False) -> UOp:
    """`value`, and a request for the kernel that computes it."""
    # tinygrad takes nothing but Opts here; without `fit` this one does nothing on a CPU
    request = Opt(OptOps.NOLOCALS, None, (MARK, role, options.axes, options.options, by_hand))
    return UOp(Ops.CONTIGUOUS, src=(value,), arg=(request,))


def fitted(call: UOp, kernel: UOp, heard: Heard | None) -> UOp | None:
    """The call with the options that its kernel is to have; None where it stays as it is.

    `heard` is told how a request ended; without it, MisfitError is raised. Opens the device.
    """
    if (request := _request_of(kernel)) is None:
        device = call.src[1].device if len(call.src) > 1 else ()
        of_one = device[0] if isinstance(device, tuple) and device else device
        spared = spare_tensor_cores(kernel, opened(of_one).renderer) if isinstance(of_one, str) else None
        return call.replace(src=(spared, *call.src[1:])) if spared is not None else None
    begun, misfit = time.perf_counter(), None
    try:
        opts = fit(bare(kernel), request.axes, request.options, opened(call.src[1].device).renderer)
        new = _with_options(kernel, opts)
    except MisfitError as error:
        if heard is None:
            raise
        new, misfit = _without_request(kernel, request), MisfitError(f"{request.role}: {error}")
    if heard is not None:
        heard(misfit, time.perf_counter() - begun)
    return call.replace(src=(new, *call.src[1:]))


def _request_of(kernel: UOp) -> OptionRequest | None:
    """What `request_options` asked for this kernel."""
    given = kernel.arg.opts_to_apply
    if not given or not isinstance(given[0].arg, tuple) or given[0].arg[:1] != (MARK,):
        return None
    _, role, axes, options, by_hand = given[0].arg
    return OptionRequest(role=role, axes=axes, options=options, by_hand=by_hand)


def _without_request(kernel: UOp, request: OptionRequest) -> UOp:
    """The kernel as if nothing had been asked for. One that holds loops made by hand, its own or those of another
    convolution in it, is not for tinygrad's heuristics: they would put threads on top of its threads."""
    by_hand = request.by_hand or any(u.op is Ops.RANGE and u.arg[-1] in BY_HAND for u in kernel.toposort())
    return _with_options(kernel, () if by_hand else None)


def spare_tensor_cores(kernel: UOp, renderer: Renderer) -> UOp | None:
    """The kernel with what tinygrad's heuristics choose without tensor cores; None where nothing could go wrong.

    tinygrad takes the first axes held in registers for those that its tensor core made (Scheduler._apply_tc_opt names
    them u0, r0 and so on), which is why it insists that tensor cores come before any other option. In a kernel that
    its lowering gave such axes they are others, and the sum is another one.
    """
    if kernel.arg.opts_to_apply is not None or not _has_float32_tensor_cores(renderer):
        return None
    if not any(u.op is Ops.RANGE and u.arg[-1] in REGISTERS for u in kernel.toposort()):
        return None
    try:
        opts = heuristics_without_tensor_cores(kernel, renderer, flags_in_force())
    except KernelOptError:
        return None  # it has none without them either: tinygrad says so when it compiles the kernel
    return _with_options(kernel, opts)


@functools.lru_cache(maxsize=512)
def heuristics_without_tensor_cores(kernel: UOp, renderer: Renderer, _flags: Flags) -> tuple[Opt, ...]:
    """What tinygrad would do to this kernel with TC=0, under the flags in force. Raises KernelOptError."""
    with Context(TC=0):
        return tuple(hand_coded_optimizations(scheduler_of(kernel, renderer)).applied_opts)


def _has_float32_tensor_cores(renderer: Renderer) -> bool:
    """Whether tinygrad would use any: products are in float32 whatever the convolution is in."""
    if not USE_TC or NOOPT or (renderer.target.device in ("CUDA", "NV") and not ALLOW_TF32):
        return False
    return any(core.dtype_in == dtypes.float32 for core in renderer.tensor_cores)


def bare(kernel: UOp) -> UOp:
    """The kernel with neither options nor a request for any."""
    return _with_options(kernel, None)


def _with_options(kernel: UOp, opts: tuple[Opt, ...] | None) -> UOp:
    """With these and nothing else; None leaves them to tinygrad."""
    return kernel.replace(arg=replace(kernel.arg, opts_to_apply=opts))


def fit(kernel: UOp, axes: str, options: tuple[Option, ...], renderer: Renderer) -> tuple[Opt, ...]:
    """The options as tinygrad's, tried on this kernel. Raises MisfitError, and nothing else whatever they are."""
    return _fit(kernel, axes, options, renderer, (flags_in_force(), NUM_CPU_THREADS.value))


@functools.lru_cache(maxsize=512)
def _fit(
    kernel: UOp, axes: str, options: tuple[Option, ...], renderer: Renderer, _outside: tuple[Flags, int]
) -> tuple[Opt, ...]:  # fmt: skip
    if len(options) > MAX_OPTIONS or not all(map(is_well_formed, options)):
        raise MisfitError("no options that a kernel can have")
    opts = tuple(map(opt_of, options))
    try:
        scheduler = scheduler_of(kernel, renderer)
        found = axes_of(scheduler)
        if axes not in (found, kinds_of(found)):
            raise MisfitError(f"they are for {axes}, the kernel has {found}")
        before = extent_of(scheduler, REGISTERS)
        if before > 1 and any(opt.op is OptOps.TC for opt in opts):
            raise MisfitError("tensor cores come before axes held in registers")
        for opt in opts:
            scheduler.apply_opt(opt)
        in_registers, threads = extent_of(scheduler, REGISTERS), extent_of(scheduler, WORKGROUP)
        if in_registers > MAX_IN_REGISTERS * before or threads > MAX_THREADS:
            raise MisfitError("more is computed together than a device bears")
    except MisfitError:
        raise
    except Exception as error:  # noqa: BLE001 - options may come from outside: tinygrad meets some with an assertion
        raise MisfitError(f"{type(error).__name__}: {error}") from None
    return opts


def is_well_formed(option: Option) -> bool:
    """What tinygrad leaves unchecked: it takes negative axes and amounts for what they are in Python."""
    op, axis, arg = option
    if op not in OptOps.__members__ or not (axis is None or 0 <= axis < 64):
        return False
    if op in WITH_AMOUNT:
        return axis is not None and isinstance(arg, int) and (op == "PADTO") <= arg <= MAX_THREADS
    if op == "SWAP":
        return axis is not None and isinstance(arg, int) and 0 <= arg < 64
    if op == "TC":
        return isinstance(arg, tuple) and len(arg) == 3
    return arg is None


def scheduler_of(kernel: UOp, renderer: Renderer) -> Scheduler:
    """What tinygrad applies options to: the kernel after the rewrites with which `full_rewrite_to_sink` begins."""
    sink = graph_rewrite(kernel, multi_pm, name="multi_pm")
    sink = graph_rewrite(sink, pm_mops, name="early movement ops", bottom_up=True)
    sink = graph_rewrite(sink, pm_load_collapse, name="load collapse")
    sink = graph_rewrite(sink, pm_split_ranges + pm_flatten_range, ctx={}, name="split ranges")
    sink = graph_rewrite(sink, sym + pm_flatten_range, name="initial symbolic")
    sink = graph_rewrite(sink, pm_flatten_range + pm_simplify_ranges, ctx={}, name="simplify ranges")
    scheduler = Scheduler(sink, renderer)
    scheduler.convert_loop_to_global()
    return scheduler


def axes_of(scheduler: Scheduler) -> str:
    """The kernel's loops in the order in which options count them, each by the letter of its kind and its extent."""
    pairs = zip(scheduler.axis_types, scheduler.full_shape, strict=True)
    return " ".join(f"{axis_letters[kind]}{size.render() if isinstance(size, UOp) else size}" for kind, size in pairs)


def extent_of(scheduler: Scheduler, kinds: frozenset[AxisType]) -> int:
    """The product over the axes of these kinds."""
    pairs = zip(scheduler.axis_types, scheduler.full_shape, strict=True)
    return math.prod(int(size) for kind, size in pairs if kind in kinds)
