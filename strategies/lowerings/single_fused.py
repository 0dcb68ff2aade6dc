"""Nothing staged: one kernel."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.graph import Conv, Lowered, Plan, Ranges, winowrite
from strategies.parameter import param
from strategies.presets import elsewhere_than_on_a_cpu
from strategies.registry import strategy
from strategies.transform import TILES


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFused:
    tile: int = param(2, TILES, "outputs per tile and axis, m of F(m, 3)")
    form: str = param("nested", ("nested", "unrolled"), "how the transforms are written (see deferred_mhat)")
    output: str = param("inline", ("inline", "staged"), "in the consumer's kernel, or whole tiles in one of its own")
    presets = staticmethod(elsewhere_than_on_a_cpu)


@strategy("single_fused", SingleFused)
def single_fused(conv: Conv, params: SingleFused, ranges: Ranges) -> Lowered | None:
    """Both transforms, the product and the output transform in one expression.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  y = (At x At) REDUCE((Bt x Bt) x * (G x G) w; c)
                                                      1 kernel; staged, 2

    No buffer, and every operand transformed again for every output that it serves.
    """
    plan = Plan(tile=params.tile, output=params.output, nested=params.form == "nested")
    return winowrite(conv, plan, ranges)
