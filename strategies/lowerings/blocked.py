"""Our own: the product as a register-blocked matrix product over tiles flattened across batch and space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.candidate import Value
from strategies.graph import Conv, Lowered, Plan, Ranges, Stage, winowrite
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.registry import strategy
from strategies.transform import TILES

_OURS: Mapping[str, Value] = {"vectors": "compiler", "output": "lanes", "ghat_by": "lanes"}
_TILE_4: Mapping[str, Value] = {"tile": 4, "xhat_by": "lanes"}
"""In F(2, 3) little is computed of what is gathered."""
_COUTS_INNERMOST: Mapping[str, Value] = {"cout_block": 16, "mhat": "GOTAto", "ghat": "AGOCo"}
CPU: Sequence[Mapping[str, Value]] = (
    {**_OURS, "cout_block": 8, "tile": 2},
    {**_OURS, **_TILE_4, "cout_block": 8, "product": "AGOT"},
    {**_OURS, **_COUTS_INNERMOST, "tile": 2, "tile_block": 8, "product": "AGOT"},
    {**_OURS, **_TILE_4, **_COUTS_INNERMOST, "tile_block": 4},
    {**_OURS, **_COUTS_INNERMOST, "tile": 2, "tile_block": 4, "product": "AGOT"},
)
"""Of bench/recorded/cpu.jsonl.gz, those that with `im2col`'s leave least to be found, over all its shapes; transforms
in lanes came later, and are faster with each of these."""
_SPREAD: Mapping[str, Value] = {
    "kernels": "heuristics", "cout_block": 4, "xhat": "AGCTt", "ghat": "AGCOo", "mhat": "AGOoTt", "product": "AGOT",
}  # fmt: skip
GPU: Sequence[Mapping[str, Value]] = ({**_SPREAD, "tile_block": 8}, {**_SPREAD, "tile_block": 16})
"""What neighbouring threads touch lies together, and threads are left to tinygrad's heuristics."""


WAYS = ("element", "lanes")
"""In lanes elements are gathered first, and many tiles (couts, channels) are transformed at a time, in vectors."""


def by_hand(chosen: Mapping[str, Any]) -> bool:
    return bool(chosen.get("kernels", "hand") == "hand")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    tile: int = param(4, TILES, "outputs per tile and axis, m of F(m, 3)")
    cout_block: int = param(4, (2, 4, 8, 16), "couts computed together, in registers")
    tile_block: int = param(16, (4, 7, 8, 14, 16, 32), "tiles computed together, in registers")
    channel_block: int = param(1, (1, 2, 4), "channels unrolled in the product")
    xhat: str = param("GTCAt", ("GTCAt", "AGTCt", "GTACt", "AGCTt"), "layout of XHAT")
    ghat: str = param("AGOoC", ("AGOoC", "AGOCo", "GOACo", "GOCAo", "AGCOo"), "layout of GHAT")
    mhat: str = param("GOTAot", ("GOTAot", "AGOoTt", "AGOTot", "GTOAot", "GOTAto", "GTOAto"), "layout of MHAT")
    product: str = param("AGTO", ("AGTO", "AGOT", "GTOA", "GOTA", "GTAO"), "loops of the product, outermost first")
    vectors: str = param(
        "tinygrad", ("tinygrad", "compiler"), "who joins the product's stores: tinygrad, by four, or the C compiler"
    )
    kernels: str = param(
        "hand", ("hand", "product", "heuristics"), "which kernels tinygrad's heuristics leave alone: all, one, none"
    )
    cores: str = param(
        "one",
        ("one", "all"),
        "which of a CPU's cores the kernels made by hand use",
        when=by_hand,
    )
    output: str = param(
        "auto",
        ("auto", "inline", "staged", "lanes"),
        "where the last transform goes; in lanes: at the end of a kernel of our own, in vectors",
    )
    xhat_by: str = param("element", WAYS, "whether XHAT is transformed element by element or in lanes", when=by_hand)
    ghat_by: str = param("element", WAYS, "whether GHAT is", when=by_hand)

    @staticmethod
    def presets(key: ConvKey | None) -> Sequence[Mapping[str, Value]]:
        if key is None or key.device.device == "CPU":
            return CPU
        shape = key.shape
        return () if shape.cin // shape.groups % 4 == 0 else GPU  # where its channels divide, shared_memory is for GPUs


@strategy("blocked", Blocked)
def blocked(conv: Conv, params: Blocked, ranges: Ranges) -> Lowered | None:
    """Tiles of all images in one row, cut into blocks; cout_block x tile_block sums of the product live in registers.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  XHAT[T, c, a, t], GHAT[a, O, o, c], MHAT[O, T, a, o, t] = REDUCE(XHAT * GHAT; c), y = (At x At) MHAT
                                                      4 kernels; 5 where the output is no multiple of the tile

    T and O count blocks, t and o the elements in one. With t innermost the product reads vectors, and no buffer has
    planes a multiple of 4096 bytes apart, which would send all points' stores to the same set of the cache.
    """
    hand = params.kernels == "hand"
    threaded = hand and params.cores == "all"
    # the loop that walks GHAT's innermost axis is the innermost: every point's stores go on from where they were
    weight_loops = "GOoCA" if params.ghat.endswith("C") else "GCOoA" if params.ghat == "AGCOo" else "GOCoA"
    plan = Plan(
        tile=params.tile,
        xhat=Stage(
            layout=params.xhat,
            loops="GTCtA" if hand else "",
            upcast="A",
            by_hand=hand,
            threaded=threaded,
            lanes="t" if hand and params.xhat_by == "lanes" else "",
        ),
        ghat=Stage(
            layout=params.ghat,
            loops=weight_loops if hand else "",
            upcast="A",
            by_hand=hand,
            threaded=threaded,
            lanes=(weight_loops[-2]) if hand and params.ghat_by == "lanes" else "",
        ),
        mhat=Stage(
            layout=params.mhat,
            loops=f"{params.product}{params.mhat[-2:] if params.mhat[-2:] == 'to' else 'ot'}",
            upcast="ot",
            by_hand=params.kernels != "heuristics",
            joined=params.vectors == "tinygrad",
            threaded=threaded,
        ),
        output=params.output,
        cout_block=params.cout_block,
        tile_block=params.tile_block,
        channel_block=params.channel_block,
    )
    return winowrite(conv, plan, ranges)
