"""`autotune sweep`: every strategy over a row of sizes, beside the notes' figures."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from api.arguments import add_device, add_json, positive
from api.commands.phases import candidates, claims_table
from api.console import CliError, Console, UsageError
from api.notes import Claim, figures
from api.settings import Settings
from api.units import duration, ratio_text
from autotune.statistics import paired_ratio
from autotune.winner import Interval
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.shape import ConvShape, JsonObject

SIZES, CHANNELS, ROUNDS = (24, 32, 48, 64, 96), 16, 15
EXAMPLES = """examples:
  autotune sweep
  autotune sweep --sizes 56,112 --channels 64 --device CUDA --json

3x3 convolutions with padding 1 at batch 1; ratios are over tensor_winograd, paired over interleaved rounds, below 1 is
faster. Every candidate is verified first."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("sweep", help="every strategy over a row of sizes", epilog=EXAMPLES)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), metavar="N[,N]", help="height and width")
    parser.add_argument("--channels", type=positive, default=CHANNELS, metavar="N", help=f"default {CHANNELS}")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _: Settings, console: Console) -> int:
    """Prints a row for each size, then the notes' figures and where the difference comes from."""
    from api.devices import ProbedDevices

    sizes, spec = _sizes(args.sizes), ProbedDevices().describe(args.device)
    rows = []
    for size in sizes:
        if not args.json:
            console.note(f"{size}x{size}: every strategy, {args.rounds} rounds")
        rows.append(_row(size, args, spec, console))
    noted = claims(rows) if args.channels == CHANNELS else []
    if args.json:
        console.json({"origin": figures()["origin"], "rows": rows, "notes": [claim.to_json() for claim in noted]})
        return 0
    console.table(_table(rows))
    if noted:
        console.text(f"\nhybrid_grid over tensor_winograd in the notes ({figures()['origin']}), and here:")
        console.table(claims_table(noted))
    for row in rows:
        if (parts := row["difference_s"]) is not None:
            listed = ", ".join(f"{role} {seconds * 1e6:+.1f} µs" for role, seconds in parts.items())
            console.text(f"{row['size']}x{row['size']}: hybrid_grid minus tensor_winograd, kernel by kernel: {listed}")
    console.text(
        "the notes timed whole calls from Python, 2 to 3 ms whatever the size: most of that is not the kernels, and a "
        "difference of kernels shows only where they are long enough"
    )
    return 0


def claims(rows: list[JsonObject]) -> list[Claim]:
    """The notes' ratio at each size that was measured."""
    ours = {row["size"]: row["strategies"].get("hybrid_grid", {}).get("ratio") for row in rows}
    result = []
    for figure in figures()["sweep"]["figures"]:
        if figure["size"] in ours:
            data = ours[figure["size"]]
            interval = Interval.from_json(data) if data else None
            result.append(Claim(
                what=f"{figure['size']}x{figure['size']}", theirs=figure["new_ms"] / figure["old_ms"],
                ours=interval.median if interval else None, interval=interval,
            ))  # fmt: skip
    return result


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UsageError(f"expected sizes like 24,32,48, found {text!r}")
    return sizes


def _row(size: int, args: argparse.Namespace, spec: DeviceSpec, console: Console) -> JsonObject:
    from autotune.local_runner import LocalRunner
    from autotune.runner import Request

    shape = ConvShape.of((1, args.channels, size, size), (args.channels, args.channels, 3, 3), padding=1)
    key = ConvKey(shape=shape, device=spec, policy=Policy())
    tried = candidates(key, None)
    with LocalRunner(args.device or spec.device, on_wait=console.note) as runner:
        measured = runner.measure(Request(key=key, candidates=tuple(tried.values()), rounds=args.rounds))
    by_name = dict(zip(tried, measured, strict=True))
    base = by_name.get("tensor_winograd")
    if base is None:
        raise CliError(f"tensor_winograd does not apply at {size}x{size}: try larger sizes")
    if not base.times_s:
        raise CliError(f"tensor_winograd cannot be timed at {size}x{size}: {base.status}: {base.reason}")
    strategies = {}
    for name, m in by_name.items():
        rounds = min(len(m.times_s), len(base.times_s))
        ratio = paired_ratio(m.times_s[:rounds], base.times_s[:rounds]).ratio if rounds else None
        strategies[name] = {
            "status": str(m.status), "reason": m.reason, "error": m.error, "kernels": len(m.kernels),
            "time_s": sorted(m.times_s)[len(m.times_s) // 2] if m.times_s else None,
            "ratio": ratio.to_json() if ratio else None,
        }  # fmt: skip
    return {"size": size, "strategies": strategies, "difference_s": _difference(key, tried, console)}


def _difference(key: ConvKey, tried: dict[str, Any], console: Console) -> dict[str, float] | None:
    """Seconds of each kernel of hybrid_grid less those of tensor_winograd's, by what it makes."""
    from autotune.inspection import inspect
    from autotune.peak_cache import PeakCache

    cache = PeakCache.of_user()
    pair = (tried["hybrid_grid"], tried["tensor_winograd"])
    seen = inspect(key, pair, peak=cache.get(key.device), on_wait=console.note)
    cache.keep(key.device, seen.peak)
    mine, theirs = ({kernel.role: kernel.time_s for kernel in program.kernels} for program in seen.programs)
    roles = dict.fromkeys((*mine, *theirs))
    if None in mine.values() or None in theirs.values():
        return None
    return {role: (mine.get(role) or 0.0) - (theirs.get(role) or 0.0) for role in roles}


def _table(rows: list[JsonObject]) -> Table:
    names = list(rows[0]["strategies"])
    table = Table("size", box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        cells = []
        for name in names:
            found = row["strategies"].get(name)
            if found is None or found["time_s"] is None:
                cells.append(found["status"] if found else "-")
                continue
            ratio = "" if name == "tensor_winograd" else f"\n{ratio_text(Interval.from_json(found['ratio']))}"
            cells.append(f"{duration(found['time_s'])}{ratio}")
        table.add_row(f"{row['size']}x{row['size']}", *cells)
    return table
