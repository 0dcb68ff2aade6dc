"""How exact each tile is: `python bench/accuracy.py [--dtype float32 float16] [--channels 16 64 256]`.

For each dtype and number of channels, the error of tinygrad's own lowering and of Winograd F(m, 3) with every tile m:
max|y - y64| / max|y64|, the largest over the inputs that candidates are verified on, next to the bound that a winner
must keep (docs/adr/0002-verification-bound.md). A tile above the bound never wins.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from autotune.compiler import ensure_c_compiler
from autotune.verify import prepare_cases, verify
from strategies.candidate import Candidate
from strategies.graph.program import Program
from strategies.key import Policy
from strategies.shape import ConvShape
from strategies.transform import TILES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16"])
    parser.add_argument("--channels", nargs="+", type=int, default=[16, 64, 256, 512])
    parser.add_argument("--size", type=int, default=12, help="height and width")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ensure_c_compiler()
    table = Table("dtype", "channels", "direct", *(f"tile {tile}" for tile in TILES), "bound", box=None)
    for dtype in options.dtype:
        for channels in options.channels:
            shape = ConvShape.of(
                (1, channels, options.size, options.size), (channels, channels, 3, 3), padding=1, dtype=dtype
            )
            table.add_row(dtype, str(channels), *_errors(shape, options.device, options.seed))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def _errors(shape: ConvShape, device: str, seed: int) -> list[str]:
    """Of direct, of each tile, and the bound."""
    direct = Program(shape, Candidate.of("direct"), device)
    cases = prepare_cases(shape, direct, seed)
    cells, bound = [f"{max(case.direct_error for case in cases):.1e}"], 0.0
    for tile in TILES:
        program = Program(shape, Candidate.of("hybrid_grid", tile=tile), device)
        verdict = verify(program, cases, shape, Policy())
        bound = verdict.bound
        cells.append(f"{verdict.error:.1e}{' fails' if verdict.fault else ''}")
    return [*cells, f"{bound:.1e}"]


if __name__ == "__main__":
    sys.exit(main())
