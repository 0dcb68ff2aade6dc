"""A starter bundle for the device at hand: `python bench/starter.py --device CUDA --batch 1 32 --budget 5m`.

Tunes the convolutions of the built-in networks as `bench/models.py` does, into `--db`, and writes the winners of this
device into autotune/starters/, from where `autotune.install("starter")` applies them. What the file had before and was
not measured again stays. Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from on_device import start_on

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet18", "resnet50", "vgg16"], metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--budget", default="3m", help="of one network at one batch (default %(default)s)")
    parser.add_argument("--db", default=str(HERE / "models.db"), help="default bench/models.db")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "autotune" / "starters", help="default: the package's"
    )
    options = parser.parse_args()
    start_on(options.device.upper())
    from models import tune

    from autotune.bundle import merge, read, write
    from autotune.job import Budget
    from autotune.winner import WinnerState
    from db import open_store
    from strategies.graph.device import describe_device

    budget_s = Budget.parse(options.budget).seconds or 0.0
    for name in options.models:
        for batch in options.batch:
            tune(name, batch, budget_s, options.db)
    spec = describe_device()
    path = options.out / f"{_slug(f'{spec.device} {spec.arch} {spec.cores} tinygrad {spec.tinygrad}')}.json"
    kept = {winner.key.digest: winner for winner in read(path)} if path.exists() else {}
    with open_store(options.db) as store:
        for _, winner in store.winners(device=spec.device, limit=100_000):
            here = winner.key.device.identity() == spec.identity() and winner.state is WinnerState.VERIFIED
            if here and (better := merge(kept.get(winner.key.digest), winner)) is not None:
                kept[winner.key.digest] = better
    options.out.mkdir(parents=True, exist_ok=True)
    write(path, sorted(kept.values(), key=lambda winner: str(winner.key)))
    print(f"{len(kept)} winners in {path}")
    return 0


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:100]


if __name__ == "__main__":
    sys.exit(main())
