"""All four buffers materialised, spatial first: the notes' first working version."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.graph import Conv, Lowered, Plan, Ranges, Stage, winowrite
from strategies.parameter import param
from strategies.presets import elsewhere_than_on_a_cpu
from strategies.registry import strategy
from strategies.transform import TILES


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBuffer:
    tile: int = param(4, TILES, "outputs per tile and axis, m of F(m, 3)")
    output: str = param("auto", ("auto", "inline", "staged"), "where the last transform goes")
    presets = staticmethod(elsewhere_than_on_a_cpu)


@strategy("four_buffer", FourBuffer)
def four_buffer(conv: Conv, params: FourBuffer, ranges: Ranges) -> Lowered | None:
    """XHAT, GHAT and MHAT staged, the points of the transform innermost: each tile's points lie together.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  XHAT[c, b, t, a], GHAT[c, o, a], MHAT[b, o, t, a] = REDUCE(XHAT * GHAT; c), y = (At x At) MHAT
                                                      4 kernels; 5 where the output is no multiple of the tile

    The fourth buffer is the output's. Transforms write whole vectors; the product reads its operands with a stride.
    """
    plan = Plan(
        tile=params.tile,
        xhat=Stage(layout="CGBTA"),
        ghat=Stage(layout="CGOA"),
        mhat=Stage(layout="GBOTA"),
        output=params.output,
    )
    return winowrite(conv, plan, ranges)
