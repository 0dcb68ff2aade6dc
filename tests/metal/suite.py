"""Every lowering executed by the METAL stand-in and held against float64: `python tests/metal/suite.py --full`.

A program passes if it stays within what METAL allows, does nothing that METAL does not define, is within the
verification bound on several inputs, leaves a NaN where it belongs, and computes bit for bit the same whatever the
order of its threads.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import metal

metal.install()

from tinygrad.codegen.opt import KernelOptError  # noqa: E402
from tinygrad.device import CompileError  # noqa: E402
from tinygrad.helpers import Context  # noqa: E402

from autotune import verify  # noqa: E402
from autotune.reference import convolve, inputs  # noqa: E402
from metal.cases import Case, full, pairwise  # noqa: E402
from metal.runtime import KernelFaultError  # noqa: E402
from metal.source import describe  # noqa: E402
from strategies.graph.apply import NotApplicableError  # noqa: E402
from strategies.graph.compiling import LoweringTimeoutError  # noqa: E402
from strategies.graph.limits import KernelLimitError  # noqa: E402
from strategies.graph.program import Program  # noqa: E402
from strategies.key import Policy  # noqa: E402
from strategies.shape import ConvShape  # noqa: E402

ORDERS = ("1", "7")
"""Thread orders that must not change a bit: reversed, and at random."""
PASSED = ("ok", "unlowered", "inapplicable", "limit")
"""What is no fault of a kernel: tinygrad's heuristics may fail to lower one, or take too long (a compile error or a
timeout to the tuner), a strategy may not apply, METAL may not allow it (a compile error before it is compiled)."""
LOWERING_S = 30.0
"""Seconds of processor time that tinygrad may take over one kernel."""
STALLED_S = 900.0
"""Without any outcome for so long, something hangs, or a process died."""
INACCURATE_TILE = 6
"""F(6, 3) has an error of its own above the floor: what counts here is that it is below the ceiling."""


COLUMNS = (
    "strategy", "programs", "ok", "with barriers", "with simdgroup matrices", "largest error, float32", "float16",
    "largest source", "threadgroup memory",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`status`: see PASSED; or wrong, fault, limit, refused (by the compiler), error, or "not run" for want of time.
    Sizes of the largest kernel."""

    case: Case
    status: str
    reason: str = ""
    error: float = 0.0
    seconds: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)


def passed(outcome: Outcome) -> bool:
    """Whether the outcome is as it should be."""
    return outcome.status in PASSED


def run(case: Case, lowering_s: float = LOWERING_S) -> Outcome:
    """Execute one case, its kernels lowered within `lowering_s` seconds of processor time each."""
    begun = time.perf_counter()
    try:
        # without a memory planner each buffer has an allocation of its own: what leaves one is in none
        alone = Context(DEV="METAL", PARALLEL=0, TC=int(case.tensor_cores), NO_MEMORY_PLANNER=1)
        with alone, _without_collection():
            program = Program(case.conv, case.candidate, "METAL", compiled=False, frozen_weights=case.frozen)
            program.compile(lowering_s)
            verdict = verify.verify(program, _cases(program, case), case.conv, Policy())
            fault = verdict.fault or _order_fault(program)
    except NotApplicableError as error:
        return Outcome(case=case, status="inapplicable", reason=str(error))
    except LoweringTimeoutError as error:
        return Outcome(case=case, status="unlowered", reason=str(error))
    except KernelLimitError as error:
        return Outcome(case=case, status="limit", reason=str(error))
    except CompileError as error:
        return Outcome(case=case, status="refused", reason=str(error))
    except KernelOptError as error:
        return Outcome(case=case, status="unlowered", reason=str(error))
    except KernelFaultError as error:
        return Outcome(case=case, status="fault", reason=str(error))
    except Exception as error:  # noqa: BLE001 - one program must not end the others; an error is a failure
        return Outcome(case=case, status="error", reason=f"{type(error).__name__}: {error}")
    return Outcome(
        case=case, status="wrong" if fault else "ok", reason=fault, error=verdict.error,
        seconds=time.perf_counter() - begun, sizes=_sizes(program),
    )  # fmt: skip


def _cases(program: Program, case: Case) -> tuple[verify.Case, ...]:
    """Inputs as verification uses them. direct is not run beside: its error is below the floor on these shapes."""
    tile = dict(case.candidate.params).get("tile")
    allowed = verify.CEILING["float32"] if tile == INACCURATE_TILE and case.dtype == "float32" else 0.0
    return tuple(_input(program, case.conv, name, allowed) for name in ("normal", "integers"))


def _input(program: Program, shape: ConvShape, name: str, allowed: float) -> verify.Case:
    program.load(*inputs(shape, name, 0))
    x, w = program.inputs()
    expected = convolve(x, w, shape)
    return verify.Case(
        name=name, x=x.astype(np.float32), w=w.astype(np.float32), expected=expected,
        scale=float(np.abs(expected).max()) or 1.0, direct_error=allowed / verify.DIRECT_FACTOR,
    )  # fmt: skip


def _order_fault(program: Program) -> str:
    expected = _output(program, "0")
    for order in ORDERS:
        if not np.array_equal(expected, _output(program, order)):
            return f"another result with threads in order {order}"
    return ""


def _output(program: Program, order: str) -> np.ndarray:
    os.environ["METAL_STAND_IN_ORDER"] = order
    try:
        program.poison()
        program.run()
        return program.output()
    finally:
        del os.environ["METAL_STAND_IN_ORDER"]


def _sizes(program: Program) -> dict[str, int]:
    kernels = [(kernel, describe(kernel.source)) for kernel in program.kernels]
    return {
        "source": max(len(kernel.source) for kernel, _ in kernels),
        "threadgroup": max(sum(size for _, size in about.arrays) for _, about in kernels),
        "parameters": max(len(about.parameters) for _, about in kernels),
        "barriers": sum("threadgroup_barrier" in kernel.source for kernel, _ in kernels),
        "matrices": sum("simdgroup_multiply" in kernel.source for kernel, _ in kernels),
    }


@contextmanager
def _without_collection() -> Iterator[None]:
    """Lowering makes and keeps many small objects; looking through them again and again takes a third of the time."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def main() -> int:
    """Prints what was executed, by strategy, type and tensor cores, then what did not pass: exit status 1 if any."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--full", action="store_true", help="every strategy, tile and blocking on every shape")
    parser.add_argument("--match", metavar="REGEX", help="only programs whose description, as printed, matches")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N equal parts")
    parser.add_argument("--deadline", type=float, default=math.inf, metavar="S", help="what is left by then is not run")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    wanted = re.compile(args.match or "")
    chosen = [case for case in (full() if args.full else pairwise()) if wanted.search(str(case))]
    cases = chosen[part - 1 :: parts]
    begun, outcomes = time.time(), []
    for outcome in executed(cases, args.jobs, begun + args.deadline):
        outcomes.append(outcome)
        took = f"{len(outcomes)} of {len(cases)}, {time.time() - begun:.0f} s"
        sys.stderr.write(f"{took}: {outcome.status} {outcome.case} {outcome.reason}\n")
    took = f"{time.time() - begun:.0f} s, {args.jobs} processes"
    which = f", those with `{args.match}`" if args.match else ""
    title = f"{'full' if args.full else 'pairwise'}{which}, part {args.part}, in {took}: {len(cases)} programs"
    sys.stdout.write(f"{report(outcomes, title)}\n")
    return not all(map(passed, outcomes))


def executed(cases: Sequence[Case], jobs: int, until: float) -> Iterator[Outcome]:
    """Each case's outcome as it ends, in `jobs` processes, the largest shapes first; last, those that have none."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each process would start a thread per core for float64
    left = sorted(cases, key=_work, reverse=True)
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=50) as pool:
        results = pool.imap_unordered(run, left[:])
        try:
            while left:
                outcome = results.next(timeout=min(STALLED_S, max(until - time.time(), 0.0)))
                left.remove(outcome.case)
                yield outcome
        except multiprocessing.TimeoutError:  # the pool replaces a process that died, and waits for its outcome
            pass
    for case in left:
        yield Outcome(case=case, status="not run", reason=f"by the deadline, or none ended for {STALLED_S:.0f} s")


def _work(case: Case) -> int:
    shape = case.conv
    return math.prod(shape.output_shape) * shape.cin // shape.groups


def report(outcomes: list[Outcome], title: str) -> str:
    """Markdown: a row for each strategy, counts by type and tensor cores, why some were not executed, failures."""
    by_strategy: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_strategy[outcome.case.candidate.strategy].append(outcome)
    failed = [outcome for outcome in outcomes if not passed(outcome)]
    lines = [
        f"{title}; {_counts(o.status for o in outcomes)}; **{len(failed)} failed**", "", _machine(), "",
        f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|",
        *(_row(name, by_strategy[name]) for name in sorted(by_strategy)), "",
    ]  # fmt: skip
    for dtype in sorted({o.case.dtype for o in outcomes}):
        for cores in (True, False):
            group = [o.status for o in outcomes if (o.case.dtype, o.case.tensor_cores) == (dtype, cores)]
            lines.append(f"- {dtype}, {'tensor cores' if cores else 'no tensor cores'}: {_counts(group)}")
    skipped = Counter(
        f"{o.case.candidate.strategy}: {o.status}{_why(o)}" for o in outcomes if passed(o) and o.status != "ok"
    )
    lines += ["", *(f"- {count} of {why}" for why, count in sorted(skipped.items()))]
    return "\n".join([*lines, *sorted(f"- FAILED, {o.status}: {o.case}: {o.reason}" for o in failed)])


def _row(name: str, outcomes: list[Outcome]) -> str:
    ok = [o for o in outcomes if o.status == "ok"]
    errors = [max((o.error for o in ok if o.case.dtype == d), default=0.0) for d in ("float32", "float16")]
    return (
        f"| {name} | {len(outcomes)} | {len(ok)} | {sum(o.sizes['barriers'] > 0 for o in ok)} | "
        f"{sum(o.sizes['matrices'] > 0 for o in ok)} | {errors[0]:.1e} | {errors[1]:.1e} | "
        f"{max((o.sizes['source'] for o in ok), default=0):,} | "
        f"{max((o.sizes['threadgroup'] for o in ok), default=0):,} |"
    )


def _why(outcome: Outcome) -> str:
    return "" if outcome.status == "inapplicable" else f": {outcome.reason}"


def _counts(statuses: Iterable[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in Counter(statuses).most_common())


def _machine() -> str:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{processor}, {os.cpu_count()} processors; Python {platform.python_version()}; {platform.platform()}"


if __name__ == "__main__":
    sys.exit(main())
