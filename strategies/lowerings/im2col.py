"""For CPUs, and any convolution: windows copied out as columns, then one register-blocked product of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strategies.candidate import Value
from strategies.graph import Conv, Lowered, Plan, Ranges, Stage, extent, winowrite
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.registry import strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Im2col:
    cout_block: int = param(4, (1, 2, 4, 6, 8, 16), "couts computed together, in registers")
    window_block: int = param(
        16, (4, 7, 8, 14, 16, 24, 28, 32, 64), "outputs of each cout computed together, in registers"
    )
    columns: str = param("staged", ("staged", "inline"), "whether windows are copied out before the product reads them")
    weight: str = param("inline", ("inline", "staged"), "whether the weight is, couts of a block side by side")
    product: str = param("GTO", ("GTO", "GOT"), "loops over blocks, outermost first: T windows, O couts")
    sums: str = param("GOoTt", ("GOoTt", "GOTot", "GTOot"), "layout of the sums")
    vectors: str = param(
        "compiler", ("compiler", "tinygrad"), "who joins the product's stores: the C compiler, or tinygrad, by four"
    )
    cores: str = param("one", ("one", "all"), "which of a CPU's cores are used")

    @staticmethod
    def presets(key: ConvKey | None) -> Sequence[Mapping[str, Value]]:
        if key is not None and key.shape.cout == key.shape.groups:  # nothing to share a window with
            return ({"cout_block": 1, "window_block": 28, "columns": "inline"},)
        return ({"cout_block": 8}, {"cout_block": 8, "weight": "staged"}, {}, {"cout_block": 8, "window_block": 32})


MOST_BYTES = 256 << 20
"""Of columns: far more than any cache holds, and as much as a program that ran without them may be able to spare."""


def applies(key: ConvKey) -> bool:
    return key.device.device == "CPU"


@strategy("im2col", Im2col, applies=applies)
def im2col(conv: Conv, params: Im2col, ranges: Ranges) -> Lowered | None:
    """Windows of all images in one row, of any kernel, stride and dilation; blocks of their sums live in registers.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  X[T, (c, k), t] = x, Y[O, T, o, t] = REDUCE(w * X; c, k), y = Y
                                                      3 kernels; 2 with the columns inline, one more with the weight

    T and O count blocks, t and o the window_block and cout_block elements of one. No transform adds to the error. With
    t innermost the product reads vectors of neighbouring outputs; the C compiler makes them as wide as the processor's.
    """
    rows, columns, depth = conv.matrix
    if params.columns == "staged" and 4 * math.prod(map(extent, conv.groups)) * depth * columns > MOST_BYTES:
        return None
    threaded = params.cores == "all"
    plan = Plan(
        tile=0,
        xhat=_stage("GTCt", params.columns, threaded),
        ghat=_stage("GOCo", params.weight, threaded),
        mhat=Stage(
            layout=params.sums, loops=f"{params.product}ot", upcast="ot", by_hand=True,
            joined=params.vectors == "tinygrad", threaded=threaded,
        ),
        output="inline", cout_block=min(params.cout_block, rows), tile_block=min(params.window_block, columns),
    )  # fmt: skip
    return winowrite(conv, plan, ranges)


def _stage(layout: str, where: str, threaded: bool) -> Stage | None:
    return Stage(layout=layout, by_hand=True, threaded=threaded) if where == "staged" else None
