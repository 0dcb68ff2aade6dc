"""The hybrid grid: channels first, OLD's order of the buffers."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.graph import Conv, Lowered, Plan, Ranges, Stage, winowrite
from strategies.parameter import param
from strategies.presets import elsewhere_than_on_a_cpu
from strategies.registry import strategy
from strategies.transform import TILES


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridGrid:
    tile: int = param(4, TILES, "outputs per tile and axis, m of F(m, 3)")
    output: str = param("auto", ("auto", "inline", "staged"), "where the last transform goes")
    presets = staticmethod(elsewhere_than_on_a_cpu)


@strategy("hybrid_grid", HybridGrid)
def hybrid_grid(conv: Conv, params: HybridGrid, ranges: Ranges) -> Lowered | None:
    """Buffers with the points outermost as `tensor_winograd` has them, the product's loops with the couts outermost.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  XHAT[a, c, b, t], GHAT[a, o, c], MHAT[a, o, b, t] = REDUCE(XHAT * GHAT; c), y = (At x At) MHAT
                                                      4 kernels; 5 where the output is no multiple of the tile

    The product's grid is couts x points (the notes' r_16_6_6) instead of points x couts (r_6_6_16).
    """
    plan = Plan(
        tile=params.tile,
        xhat=Stage(layout="ACGBT", loops="CGBTA"),
        ghat=Stage(layout="AGOC", loops="GOCA"),
        mhat=Stage(layout="AGOBT", loops="GOABT"),
        output=params.output,
    )
    return winowrite(conv, plan, ranges)
