"""The kernels of a candidate one by one: what options they could have, and how long they take with some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.codegen import to_program
from tinygrad.codegen.opt import OptOps
from tinygrad.codegen.opt.heuristic import hand_coded_optimizations
from tinygrad.codegen.opt.postrange import Scheduler, args_from_ast
from tinygrad.codegen.opt.search import get_kernel_actions
from tinygrad.dtype import AddrSpace, DType
from tinygrad.engine.realize import time_call
from tinygrad.helpers import NOOPT
from tinygrad.renderer import Renderer
from tinygrad.uop.ops import Ops, UOp

from strategies.candidate import Candidate, KernelOptions, Option
from strategies.graph.compiling import LoweringTimeoutError, Pool, compile_kernels
from strategies.graph.fitting import (
    REGISTERS,
    MisfitError,
    axes_of,
    bare,
    extent_of,
    fit,
    scheduler_of,
    spare_tensor_cores,
)
from strategies.graph.limits import limited
from strategies.graph.options import kernel_calls, opt_of, option_of
from strategies.graph.program import convolution, operands, roles_of, schedule
from strategies.shape import ConvShape

Options = tuple[Option, ...]

LOWERING_S = 10.0
"""Processor time for one kernel, as BEAM allows by default."""
AMOUNTS = {"UPCAST": (2, 3, 4, 5, 7, 8, 14, 16, 0), "UNROLL": (2, 3, 4, 7, 8, 0), "LOCAL": (2, 3, 4, 8, 13, 16, 29, 32)}
"""What the amount of an option may be changed to; 0 is all of the axis."""
MOST_IN_REGISTERS = 256
"""Values computed together by one thread, BEAM's limit. Kernels made by hand may begin above it."""


@dataclass(frozen=True, kw_only=True)
class TunableKernel:
    """One kernel of a candidate, before options. `by_hand`: by default it gets none, not tinygrad's heuristics' own."""

    role: str
    kernel: UOp
    device: str
    by_hand: bool
    pool: Pool | None = None
    _buffers: list[Tensor] = field(default_factory=list)

    @cached_property
    def renderer(self) -> Renderer:
        return Device[self.device].renderer

    @cached_property
    def axes(self) -> str:
        return axes_of(self._scheduler)

    @property
    def default(self) -> Options:
        """What it has if nobody searches."""
        if self.by_hand or NOOPT:
            return ()
        spared = spare_tensor_cores(self.kernel, self.renderer)
        if spared is not None:
            return tuple(map(option_of, spared.arg.opts_to_apply))
        return tuple(map(option_of, hand_coded_optimizations(self._scheduler).applied_opts))

    def chosen(self, options: Options) -> KernelOptions:
        return KernelOptions(axes=self.axes, options=options)

    def more(self, options: Options) -> list[Options]:
        """Those with one option more, of tinygrad's own actions. Threads, which are sure to help, come first."""
        begun = self._with(options)
        most = max(MOST_IN_REGISTERS, extent_of(begun, REGISTERS))
        further = get_kernel_actions(begun, include_0=False, max_up=most).values()
        found = (tuple(map(option_of, scheduler.applied_opts)) for scheduler in further)
        if extent_of(self._scheduler, REGISTERS) > 1:  # see spare_tensor_cores
            found = (o for o in found if o[-1][0] != OptOps.TC.name)
        return sorted(found, key=lambda o: o[-1][0] != OptOps.THREAD.name)

    def other(self, options: Options) -> list[Options]:
        """Those with one option less, or with another amount."""
        found = [options[:i] + options[i + 1 :] for i in range(len(options))]
        for i, (op, axis, arg) in enumerate(options):
            amounts = (amount for amount in AMOUNTS.get(op, ()) if amount != arg)
            found += [(*options[:i], (op, axis, amount), *options[i + 1 :]) for amount in amounts]
        return [o for o in found if self._fits(o)]

    def prepare(self, several: Sequence[Options]) -> None:
        """Compile these side by side, as far as they compile; `runner` then finds them compiled."""
        kernels = []
        for options in several:
            with suppress(MisfitError):
                kernels.append(self._with_opts(options))
        if self.pool is not None:
            linear = UOp(Ops.LINEAR, src=tuple(kernel.call() for kernel in kernels))
            self.pool.compile([linear], self.device, limit_s=LOWERING_S, timeout_s=2 * LOWERING_S)

    def runner(self, options: Options) -> Callable[[], float]:
        """Compiled, a function that runs it once and gives its seconds on the device. Raises MisfitError,
        TimeoutError, or whatever tinygrad and its compilers raise."""
        program = self._compiled(options)
        if not self._buffers:
            buffers = args_from_ast(self.kernel, self.device)[0]
            self._buffers.extend(_filled(buffer.size, buffer.dtype, self.device) for buffer in buffers)
        timer = time_call(program.call(*(t.uop.base for t in self._buffers)))
        return lambda: next(timer)

    def source(self, options: Options) -> str:
        """What is compiled. Raises as `runner`."""
        return str(self._compiled(options).src[2].arg)

    def _with_opts(self, options: Options) -> UOp:
        opts = fit(self.kernel, self.axes, options, self.renderer)
        return self.kernel.replace(arg=replace(self.kernel.arg, opts_to_apply=opts))

    def _compiled(self, options: Options) -> UOp:
        """Raises TimeoutError for what takes too long."""
        linear = UOp(Ops.LINEAR, src=(self._with_opts(options).call(),))
        try:
            with limited(self.device):
                compile_kernels(linear, self.device, LOWERING_S)
        except LoweringTimeoutError as error:
            raise TimeoutError(str(error)) from None
        return to_program(linear.src[0].src[0], self.renderer)

    @cached_property
    def _scheduler(self) -> Scheduler:
        return scheduler_of(self.kernel, self.renderer)

    def _with(self, options: Options) -> Scheduler:
        scheduler = self._scheduler.copy()
        for opt in map(opt_of, options):
            scheduler.apply_opt(opt)
        return scheduler

    def _fits(self, options: Options) -> bool:
        try:
            fit(self.kernel, self.axes, options, self.renderer)
        except MisfitError:
            return False
        return True


def tunable_kernels(
    shape: ConvShape, candidate: Candidate, device: str, *, pool: Pool | None = None
) -> tuple[TunableKernel, ...]:
    """The kernels of a candidate, in order; where two have one role, the first of them; those that are written out by
    hand down to their memory are none. Nothing is compiled."""
    x, w = operands(shape, device)
    y = convolution(x, w, shape)
    calls = kernel_calls(schedule(y, candidate.structure))
    roles = roles_of(calls, *(t.uop.base for t in (x, w, y)))
    found: dict[str, TunableKernel] = {}
    for call, role in zip(calls, roles, strict=True):
        if is_written_out(call.src[0]):
            continue
        by_hand = call.src[0].arg.opts_to_apply == ()
        kernel = TunableKernel(role=role, kernel=bare(call.src[0]), device=device, by_hand=by_hand, pool=pool)
        found.setdefault(role, kernel)
    return tuple(found.values())


def is_written_out(kernel: UOp) -> bool:
    """Whether a kernel has buffers in shared memory or registers already: options would take its loops apart."""
    local = (AddrSpace.LOCAL, AddrSpace.REG)
    return any(u.op is Ops.STAGE or (u.op is Ops.BUFFER and u.addrspace in local) for u in kernel.toposort())


def _filled(size: int, dtype: DType, device: str) -> Tensor:
    """With numbers as they occur: what was left in memory may be not normal, and slow."""
    if not dtypes.is_float(dtype):
        return Tensor.zeros(size, dtype=dtype, device=device).contiguous().realize()
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return Tensor(values, device=device).cast(dtype).contiguous().realize()


__all__ = ["Options", "TunableKernel", "tunable_kernels"]
