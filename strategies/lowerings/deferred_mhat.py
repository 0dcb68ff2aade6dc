"""MHAT deferred: what the notes' single-kernel investigation tried."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.graph import Conv, Lowered, Plan, Ranges, Stage, winowrite
from strategies.parameter import param
from strategies.presets import elsewhere_than_on_a_cpu
from strategies.registry import strategy
from strategies.transform import TILES


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredMhat:
    tile: int = param(4, TILES, "outputs per tile and axis, m of F(m, 3)")
    form: str = param("nested", ("nested", "unrolled"), "one REDUCE per axis over a table, or one REDUCE per point")
    points: str = param("inner", ("inner", "outer"), "where the points lie in XHAT and GHAT")
    output: str = param("auto", ("auto", "inline", "staged"), "where the last transform goes")
    presets = staticmethod(elsewhere_than_on_a_cpu)


@strategy("deferred_mhat", DeferredMhat)
def deferred_mhat(conv: Conv, params: DeferredMhat, ranges: Ranges) -> Lowered | None:
    """XHAT and GHAT staged; the product is summed where the output transform needs it, MHAT never exists.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  XHAT[c, b, t, a], GHAT[c, o, a], y = (At x At) REDUCE(XHAT * GHAT; c)
                                                      3 kernels; 4 where the output is no multiple of the tile

    `unrolled` writes (m + 2)**2 REDUCEs over one range, which share their loop; `nested` writes one.
    """
    inner = params.points == "inner"
    plan = Plan(
        tile=params.tile,
        xhat=Stage(layout="CGBTA" if inner else "ACGBT"),
        ghat=Stage(layout="CGOA" if inner else "ACGO"),
        output=params.output,
        nested=params.form == "nested",
    )
    return winowrite(conv, plan, ranges)
