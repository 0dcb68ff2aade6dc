"""Whether a candidate computes the convolution: held against float64, and never above the bound.

The bound is design, not taste: see docs/adr/0002-verification-bound.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autotune.reference import DISTRIBUTIONS, convolve, inputs
from strategies.key import Policy
from strategies.shape import ConvShape
from strategies.transform import TILES

Array = np.ndarray[Any, Any]

FLOOR = {"float32": 1e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 8e-3}
"""An error that is fine whatever direct's own is: relative to the largest output. TF32 keeps the digits of float16."""

DIRECT_FACTOR = 16.0
CEILING = {"float32": 1e-4, "tf32": 1e-3}
CHUNK = 1 << 16
"""Elements compared at a time: their difference in float64 stays in the cache."""
SPREAD = max(TILES) - 1
"""How far beyond the outputs that read it a non-finite input may spread along each axis: to the rest of their tile."""


class Runnable(Protocol):
    """What verification needs of a compiled convolution."""

    def load(self, x: Array, w: Array) -> None: ...
    def inputs(self) -> tuple[Array, Array]: ...
    def poison(self) -> None: ...
    def run(self) -> float: ...
    def output(self) -> Array: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The largest error over all inputs, what it was held against, and why it fails (empty: it passes)."""

    error: float
    bound: float
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Inputs in float32 with their float64 result, the largest magnitude in it, and direct's own error on them."""

    name: str
    x: Array
    w: Array
    expected: Array
    scale: float
    direct_error: float


def prepare_cases(shape: ConvShape, direct: Runnable, seed: int) -> tuple[Case, ...]:
    """The inputs of every distribution, rounded to the shape's dtype, with direct's error on each."""
    cases = []
    for name in DISTRIBUTIONS:
        direct.load(*inputs(shape, name, seed))
        x, w = direct.inputs()
        expected = convolve(x, w, shape)
        scale = float(np.abs(expected).max()) or 1.0
        error = _error(_run(direct), expected, scale)
        narrow_x, narrow_w = x.astype(np.float32), w.astype(np.float32)  # exact: they are as the kernels saw them
        cases.append(Case(name=name, x=narrow_x, w=narrow_w, expected=expected, scale=scale, direct_error=error))
    return tuple(cases)


def bound(dtype: str, direct_error: float, policy: Policy) -> float:
    """The largest allowed max|y - y64| / max|y64|; `direct_error` is direct's own, the largest of all inputs."""
    digits = "tf32" if dtype == "float32" and policy.allow_tf32 else dtype
    allowed = max(FLOOR[digits], DIRECT_FACTOR * direct_error if math.isfinite(direct_error) else 0.0)
    allowed = min(allowed, CEILING.get(digits, allowed))
    return min(allowed, policy.max_error) if policy.max_error is not None else allowed


def verify(program: Runnable, cases: tuple[Case, ...], shape: ConvShape, policy: Policy) -> Verdict:
    """The verdict over every case; stops at the first that fails. Leaves the first case's inputs loaded if all pass."""
    finite = [case.direct_error for case in cases if math.isfinite(case.direct_error)]
    allowed = bound(shape.dtype, max(finite, default=0.0), policy)
    worst = 0.0
    for case in cases:
        program.load(case.x, case.w)
        error = _error(_run(program), case.expected, case.scale)
        if not error <= allowed:
            fault = f"error {error:.2g} is above the bound {allowed:.2g} on {case.name} inputs"
            return Verdict(error=error, bound=allowed, fault=fault)
        worst = max(worst, error)
    fault = _spread_fault(program, cases[0], shape)
    program.load(cases[0].x, cases[0].w)
    return Verdict(error=worst, bound=allowed, fault=fault)


def _spread_fault(program: Runnable, case: Case, shape: ConvShape) -> str:
    """Put one NaN into the input: outputs far from it, of other images and of other groups, must not see it."""
    position = (shape.batch // 2, shape.cin // 2, *(size // 2 for size in shape.spatial))
    x = case.x.copy()
    x[position] = np.nan
    program.load(x, case.w)
    output = _run(program)
    near = np.zeros(shape.output_shape, bool)
    group, couts = position[1] // (shape.cin // shape.groups), shape.cout // shape.groups
    image: Array = near[position[0]]
    image[(slice(group * couts, (group + 1) * couts), *_around(position[2:], shape))] = True
    if not (np.isfinite(output) | near).all():
        return "a NaN in the input reached outputs that do not read it"
    return ""


def _around(position: tuple[int, ...], shape: ConvShape) -> tuple[slice, ...]:
    """The outputs that read the input's `position`, and SPREAD more on every side."""
    axes = zip(position, shape.padding, shape.kernel, shape.stride, shape.dilation, strict=True)
    result = []
    for at, (before, _), taps, stride, dilation in axes:
        last = (at + before) // stride
        first = -(-(at + before - dilation * (taps - 1)) // stride)
        result.append(slice(max(0, first - SPREAD), max(0, last + 1 + SPREAD)))
    return tuple(result)


def _run(program: Runnable) -> Array:
    program.poison()
    program.run()
    return program.output()


def _error(output: Array, expected: Array, scale: float) -> float:
    """max|y - y64| over `scale`; infinite where an element was not written or is not finite."""
    flat, exact, worst = output.reshape(-1), expected.reshape(-1), 0.0
    for start in range(0, flat.size, CHUNK):
        part = slice(start, start + CHUNK)
        worst = max(worst, float(np.abs(flat[part] - exact[part]).max()))
        if not np.isfinite(flat[part]).all():
            return float("inf")
    return worst / scale
