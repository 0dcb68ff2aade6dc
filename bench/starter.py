"""The starter bundles that come with the package, one a device: from databases, or tuned for the device at hand.

    python bench/starter.py --from models.db more.db                    every device in them, nothing is measured
    python bench/starter.py --device CUDA --batch 1 32 --budget 5m      this device, tuned first, into --db

Written into autotune/starters/ are the verified winners that are no simulation's, from where
`autotune.install("starter")` applies them where the whole key matches. What a file had before stays, unless there is a
better one of the same key now. Tune while nothing else runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from on_device import start_on

from autotune.bundle import merge, read, write
from autotune.winner import Winner, WinnerState
from db import open_store
from strategies.key import DeviceSpec

HERE = Path(__file__).parent
MOST = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", nargs="+", dest="sources", metavar="DB", help="databases; nothing is tuned")
    parser.add_argument("--models", nargs="*", default=["resnet18", "resnet50", "vgg16"], metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--budget", default="3m", help="of one network at one batch (default %(default)s)")
    parser.add_argument("--db", default=str(HERE / "models.db"), help="default bench/models.db")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "autotune" / "starters", help="default: the package's"
    )
    options = parser.parse_args()
    if options.sources:
        return write_bundles(options.sources, options.out)
    start_on(options.device.upper())
    from models import tune

    from autotune.job import Budget
    from strategies.graph.device import describe_device

    budget_s = Budget.parse(options.budget).seconds or 0.0
    for name in options.models:
        for batch in options.batch:
            tune(name, batch, budget_s, options.db)
    return write_bundles([options.db], options.out, only=describe_device(surroundings=False))


def write_bundles(databases: Sequence[str], out: Path, *, only: DeviceSpec | None = None) -> int:
    """A bundle for each device of which the databases have verified winners; 1 if there is none."""
    found: dict[Path, dict[str, Winner]] = {}
    for database in databases:
        if not Path(database).is_file():
            print(f"expected a database, found no file {database}", file=sys.stderr)
            return 1
        with open_store(database) as store:
            for _, winner in store.winners(limit=MOST):
                device = winner.key.device
                mine = only is None or device.identity() == only.identity()
                if mine and winner.state is WinnerState.VERIFIED and not device.simulated:
                    path = out / f"{slug(device)}.json"
                    if path not in found:
                        found[path] = {known.key.digest: known for known in read(path)} if path.exists() else {}
                    before = found[path].get(winner.key.digest)
                    found[path][winner.key.digest] = merge(before, winner) or before or winner
    out.mkdir(parents=True, exist_ok=True)
    for path, winners in found.items():
        write(path, sorted(winners.values(), key=lambda winner: str(winner.key)))
        print(f"{len(winners)} winners in {path}")
    if not found:
        print(f"no verified winner of a device in {', '.join(databases)}: tune first", file=sys.stderr)
    return int(not found)


def slug(device: DeviceSpec) -> str:
    """The file's name: what a key says of the device, flags in their own file."""
    flags = " ".join(f"{name} {value}" for name, value in device.flags)
    text = f"{device.device} {device.arch} {device.cores} {device.renderer} tinygrad {device.tinygrad} {flags}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:120]


if __name__ == "__main__":
    sys.exit(main())
