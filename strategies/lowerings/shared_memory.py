"""For GPUs: the product's operands staged through the memory that a workgroup's threads share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from strategies.candidate import Value
from strategies.graph import Blocking, Conv, Lowered, Ranges, lower_shared_memory
from strategies.key import ConvKey
from strategies.parameter import param
from strategies.registry import has_three_tap_axis, strategy
from strategies.transform import TILES


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemory:
    tile: int = param(4, TILES, "outputs per tile and axis, m of F(m, 3)")
    cout_block: int = param(64, (16, 32, 64, 128), "couts of a workgroup")
    tile_block: int = param(64, (32, 64, 128), "tiles of a workgroup")
    depth: int = param(16, (4, 8, 16, 32), "channels copied to shared memory at a time")
    couts: int = param(8, (4, 8), "couts of a thread")
    tiles: int = param(8, (4, 8), "tiles of a thread")
    ahead: bool = param(False, (False, True), "read the next channels while these are multiplied")
    parts: int = param(1, (1, 2, 4, 8), "parts of the sum over channels, added up by the last transform")
    output: str = param("inline", ("inline", "staged"), "where the last transform goes")

    presets: ClassVar[tuple[Mapping[str, Value], ...]] = (
        {},
        {"cout_block": 32, "tile_block": 32, "couts": 4, "tiles": 4},
        {"cout_block": 32, "tile_block": 32, "couts": 4, "tiles": 4, "tile": 2},
        {"depth": 32},
        {"ahead": True, "depth": 8},
        {"cout_block": 128, "tile_block": 128, "ahead": True, "depth": 8},
        {"cout_block": 32, "tile_block": 32, "couts": 4, "tiles": 4, "tile": 2, "ahead": True, "parts": 4},
    )


def applies(key: ConvKey) -> bool:
    return has_three_tap_axis(key) and key.device.device != "CPU"


@strategy("shared_memory", SharedMemory, applies=applies)
def shared_memory(conv: Conv, params: SharedMemory, ranges: Ranges) -> Lowered | None:
    """Tiles of all images in one row; the product in blocks of cout_block x tile_block, one to a workgroup.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  XHAT[a, c, t], GHAT[a, c, o], MHAT[a, o, t] = XHAT * GHAT by a kernel of our own, y = (At x At) MHAT
                                                      4 kernels; 5 with the output staged

    Every kernel is spread over threads by hand: neighbours have neighbouring tiles, so that all they read and write
    lies together, and where tiles cover the output a thread computes a whole one.
    """
    blocking = Blocking(
        rows=params.cout_block, columns=params.tile_block, depth=params.depth,
        thread_rows=params.couts, thread_columns=params.tiles, ahead=params.ahead, parts=params.parts,
    )  # fmt: skip
    return lower_shared_memory(conv, blocking, ranges, tile=params.tile, inline=params.output == "inline")
