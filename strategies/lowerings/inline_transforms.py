"""Only MHAT staged: option 2 of the first note."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.graph import Conv, Lowered, Plan, Ranges, Stage, winowrite
from strategies.parameter import param
from strategies.presets import elsewhere_than_on_a_cpu
from strategies.registry import strategy
from strategies.transform import TILES


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineTransforms:
    tile: int = param(2, TILES, "outputs per tile and axis, m of F(m, 3)")
    points: str = param("outer", ("inner", "outer"), "where the points lie in MHAT")
    output: str = param("auto", ("auto", "inline", "staged"), "where the last transform goes")
    presets = staticmethod(elsewhere_than_on_a_cpu)


@strategy("inline_transforms", InlineTransforms)
def inline_transforms(conv: Conv, params: InlineTransforms, ranges: Ranges) -> Lowered | None:
    """MHAT staged; both operands are transformed inside the product, again for every output they serve.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  MHAT[a, o, b, t] = REDUCE((Bt x Bt) x * (G x G) w; c), y = (At x At) MHAT
                                                  2 kernels; 3 where the output is no multiple of the tile
    """
    plan = Plan(
        tile=params.tile,
        mhat=Stage(layout="AGBOT" if params.points == "outer" else "GBOTA"),
        output=params.output,
    )
    return winowrite(conv, plan, ranges)
