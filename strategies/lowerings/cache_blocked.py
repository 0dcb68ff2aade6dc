"""For CPUs: Winograd in one kernel, block by block of tiles and couts, whose intermediates never leave the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strategies.candidate import Value
from strategies.graph import Blocks, Conv, Lowered, Ranges, lower_cache_blocked
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.registry import has_three_tap_axis, strategy
from strategies.transform import TILES


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBlocked:
    tile: int = param(4, TILES, "outputs per tile and axis, m of F(m, 3)")
    cout_block: int = param(8, (4, 8, 16), "couts computed together, in registers")
    tile_block: int = param(16, (4, 8, 16, 32), "tiles computed together, in registers")
    together: int = param(1, (1, 2, 4, 8, 16), "blocks of tiles whose XHAT is held at a time")
    lanes: str = param("tiles", ("tiles", "couts"), "what the vectors of the product are of")
    weight: str = param("staged", ("staged", "inline"), "whether GHAT is filled first, or of each block of couts again")
    xhat_by: str = param("lanes", ("lanes", "element"), "whether XHAT is transformed in lanes or element by element")

    @staticmethod
    def presets(_key: ConvKey | None) -> Sequence[Mapping[str, Value]]:
        """Found by hand on one core of an AMD EPYC (AVX-512), each good on other shapes: a search begins with them."""
        return (
            {}, {"weight": "inline", "tile": 2, "cout_block": 4}, {"lanes": "couts", "cout_block": 16, "tile_block": 8},
            {"weight": "inline", "together": 4}, {"lanes": "couts", "cout_block": 16, "tile_block": 4, "together": 4},
        )  # fmt: skip

    @property
    def blocks(self) -> Blocks:
        return Blocks(
            tile=self.tile, couts=self.cout_block, tiles=self.tile_block, together=self.together,
            couts_in_lanes=self.lanes == "couts", staged=self.weight == "staged", gathered=self.xhat_by == "lanes",
        )  # fmt: skip


def applies(key: ConvKey) -> bool:
    return key.device.device == "CPU" and has_three_tap_axis(key)


@strategy("cache_blocked", CacheBlocked, applies=applies)
def cache_blocked(conv: Conv, params: CacheBlocked, ranges: Ranges) -> Lowered | None:
    """`blocked` with its kernels put into each other's loops: what one makes is used while it is in the cache.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  y of some tiles and couts = (At x At) REDUCE((Bt x Bt) x * (G x G) w; c)
                                                  1 kernel; 2 with the weight's transform staged
    """
    return lower_cache_blocked(conv, params.blocks, ranges)
