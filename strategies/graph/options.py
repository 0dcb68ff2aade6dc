"""Kernel options as plain data: what BEAM, a search or tinygrad's heuristics chose for a kernel, kept and put back.

tinygrad calls them Opts. Here an option is `(op, axis, arg)`, as it is written to JSON: `["UPCAST", 1, 4]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinygrad.codegen.opt import Opt, OptOps
from tinygrad.engine.realize import compile_linear
from tinygrad.uop.ops import KernelInfo, Ops, PatternMatcher, UOp, UPat

from strategies.candidate import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """What was chosen for one kernel, and the source it came out as. `ast` is its digest without options."""

    ast: str
    name: str
    options: tuple[Option, ...]
    source: str


def kernel_calls(linear: UOp) -> list[UOp]:
    """The calls of kernels that are not compiled yet, in order; copies are none."""
    return [call for call in linear.src if call.src[0].op is Ops.SINK]


def ast_digest(kernel: UOp) -> str:
    """16 hex digits, equal for kernels that compute the same in the same loops, whatever options they are to have."""
    return str(kernel.replace(arg=KernelInfo()).key.hex()[:16])


def with_options(linear: UOp, chosen: Mapping[str, Sequence[Option]]) -> UOp:
    """`linear` with options put on the kernels whose digest they are filed under. Neither heuristics nor BEAM act
    on these any more."""

    def put(call: UOp) -> UOp:
        kernel = call.src[0]
        options = chosen.get(ast_digest(kernel)) if kernel.op is Ops.SINK else None
        if options is None:
            return call
        info = replace(kernel.arg, opts_to_apply=tuple(map(opt_of, options)))
        return call.replace(src=(kernel.replace(arg=info), *call.src[1:]))

    return linear.replace(src=tuple(map(put, linear.src)))


def replaying(chosen: Mapping[str, Sequence[Option]], met: MutableMapping[str, int]) -> PatternMatcher:
    """The same as a rewrite of the calls of kernels just split, in front of `rangeify.pm_no_indexing_calls`: what a
    TinyJit captures, and what tinygrad caches, has them too. `met` counts kernels that are "searched" or "not".
    """

    # defaults, not a closure: tinygrad takes the functions of patterns apart
    def put(
        call: UOp, kernel: UOp, chosen: Mapping[str, Sequence[Option]] = chosen, met: MutableMapping[str, int] = met
    ) -> UOp | None:
        if kernel.arg.opts_to_apply is not None:
            return None
        options = chosen.get(ast_digest(kernel))
        verdict = "searched" if options is not None else "not"
        met[verdict] = met.get(verdict, 0) + 1
        if options is None:
            return None
        info = replace(kernel.arg, opts_to_apply=tuple(map(opt_of, options)))
        return call.replace(src=(kernel.replace(arg=info), *call.src[1:]))

    pattern = UPat(Ops.CALL, src=(UPat(Ops.SINK, name="kernel"),), allow_any_len=True, name="call")
    return PatternMatcher([(pattern, put)])


def beam_choices(linear: UOp, beam: int) -> Iterator[KernelChoice]:
    """Search each kernel with tinygrad's BEAM of this width, one by one: what is done is known if the rest takes too
    long. Kernels that are alike are searched once."""
    seen: set[str] = set()
    for call in kernel_calls(linear):
        digest = ast_digest(call.src[0])
        if digest not in seen:
            seen.add(digest)
            program = compile_linear(UOp(Ops.LINEAR, src=(call,)), beam=beam).src[0].src[0]
            info = program.src[0].arg
            yield KernelChoice(
                ast=digest, name=info.function_name, options=tuple(map(option_of, info.applied_opts)),
                source=str(program.src[2].arg),
            )  # fmt: skip


def option_of(opt: Opt) -> Option:
    return (opt.op.name, opt.axis, opt.arg)


def opt_of(option: Sequence[Any]) -> Opt:
    """The inverse; a list from JSON becomes the tuple that it was. Raises KeyError for an op that there is not."""
    op, axis, arg = option
    return Opt(OptOps[op], axis, tuple(arg) if isinstance(arg, list | tuple) else arg)
