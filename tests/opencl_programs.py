"""Programs on tinygrad's OpenCL device, run by test_opencl.py in a process of their own: one JSON object a line."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from tinygrad import Device, Tensor
from tinygrad.codegen.opt import Opt, OptOps
from tinygrad.engine.realize import compile_linear

from autotune.verify import prepare_cases, verify
from strategies.candidate import Candidate, Value
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey, Policy
from strategies.registry import get_strategy, strategies
from strategies.shape import ConvShape

SHAPES = (
    ConvShape.of((1, 16, 16, 16), (16, 16, 3, 3), padding=1),
    ConvShape.of((2, 8, 9, 11), (12, 4, 3, 3), padding=1, groups=2),
)
ANY_KERNEL = (
    ConvShape.of((2, 13, 7, 7), (21, 13, 1, 1)),
    ConvShape.of((1, 16, 12, 12), (32, 16, 1, 1), stride=2),
    ConvShape.of((1, 3, 21, 21), (16, 3, 7, 7), stride=2, padding=3),
    ConvShape.of((2, 8, 15, 12), (12, 8, 3, 3), stride=2, padding=1),
    ConvShape.of((1, 6, 11, 13), (10, 6, 5, 5), padding=2),
    ConvShape.of((1, 6, 11, 13), (10, 6, 3, 3), padding=2, dilation=2),
)
"""For `implicit_gemm` alone."""
SMALL = {
    "shared_memory": {"cout_block": 16, "tile_block": 32, "couts": 4, "tiles": 4, "depth": 4},
    "implicit_gemm": {"cout_block": 16, "window_block": 32, "couts": 4, "windows": 4, "depth": 4},
}
IN_TURNS: tuple[dict[str, Value], ...] = ({"weight": "inline"}, {"ahead": True, "parts": 2})


def convolutions() -> Iterator[dict[str, Any]]:
    """Every strategy against float64, on one shape after the other in turns; what needs small blocks on both."""
    key = ConvKey(shape=SHAPES[0], device=describe_device("CL"))
    lowerings = [item for item in strategies() if item.lower is not None and item.applies(key)]
    for turn, shape in enumerate(SHAPES):
        direct = Program(shape, Candidate.of("direct"), "CL")
        cases = prepare_cases(shape, direct, 0)
        for item in (item for i, item in enumerate(lowerings) if i % len(SHAPES) == turn or item.name in SMALL):
            program = Program(shape, item.candidate(SMALL.get(item.name)), "CL")
            verdict = verify(program, cases, shape, Policy())
            yield {"name": f"{item.name} on {shape}", "fault": verdict.fault, "error": verdict.error}


def windows() -> Iterator[dict[str, Any]]:
    """`implicit_gemm` on convolutions of other kernels, its parameters in turns."""
    for turn, shape in enumerate(ANY_KERNEL):
        cases = prepare_cases(shape, Program(shape, Candidate.of("direct"), "CL"), 0)
        values = {**SMALL["implicit_gemm"], **IN_TURNS[turn % len(IN_TURNS)]}
        program = Program(shape, get_strategy("implicit_gemm").candidate(values), "CL")
        verdict = verify(program, cases, shape, Policy())
        yield {"name": f"implicit_gemm on {shape}", "fault": verdict.fault, "error": verdict.error}


def local_memory() -> dict[str, Any]:
    """A sum through local memory, with a barrier: threads in groups, which no CPU kernel has."""
    values = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    x = Tensor(values, device="CL").realize()

    def summed() -> Tensor:
        return x.sum(1).contiguous(arg=(Opt(OptOps.GROUPTOP, 0, 16), Opt(OptOps.LOCAL, 0, 4)))

    [call] = compile_linear(summed().schedule_linear()).src
    source = str(call.src[0].src[2].arg)
    uses = "__local" in source and "barrier(CLK_LOCAL_MEM_FENCE)" in source
    error = float(np.abs(summed().numpy() - values.astype(np.float64).sum(1)).max())
    fault = "" if uses and error < 1e-4 else f"error {error}, {'uses' if uses else 'does not use'} local memory"
    return {"name": "a sum in local memory", "fault": fault, "error": error}


def described() -> dict[str, Any]:
    """Devices of different makers have one architecture in OpenCL: the key has their names."""
    spec = describe_device("CL")
    named = bool(spec.driver) and Device["CL"].device_name in spec.arch  # type: ignore[attr-defined]
    return {"name": "the device's description", "fault": "" if named else f"no name or driver in {spec}", "error": 0.0}


def main() -> int:
    try:
        Device["CL"]
    except Exception as error:  # noqa: BLE001 - whatever a driver says is the reason
        sys.stdout.write(json.dumps({"unavailable": " ".join(f"{type(error).__name__}: {error}".split())[:200]}) + "\n")
        return 0
    for result in itertools.chain((described(), local_memory()), convolutions(), windows()):
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
