"""`autotune phases`: a lowering built up part by part, what each costs, beside the notes' figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from api.arguments import add_json, add_shape, policy_of, shape_of
from api.console import CliError, Console, UsageError
from api.notes import Claim, figures
from api.settings import Settings
from api.units import amount, duration
from strategies.key import ConvKey

if TYPE_CHECKING:
    from autotune.phases import Phase

EXAMPLES = """examples:
  autotune phases 1x16x32x32 16x16x3x3 --padding 1
  autotune phases 1x64x56x56 64x64x3x3 --padding 1 --strategies tensor_winograd,hybrid_grid --json

XHAT, +GHAT and +MHAT are programs of their own: each element of the output reads one of the intermediate's. What a
strategy does not materialise, they compute where they read it. Nothing compiled before is used again."""

OPEN_LOOPS = (
    "their +MHAT ran 40 times longer than OLD's and recovered with the output transform: it returned MHAT at the very "
    "ranges that it was stored over, loops that nothing closes, so probably every output repeated the product. "
    "tinygrad 0.14 refuses such a graph. Read at the output's own indexes, as here, +MHAT costs what its kernel costs."
)
UNUSED = (
    "their +GHAT compiled in less time than XHAT alone because it returned XHAT: nothing read GHAT, so it was not made."
)


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("phases", help="compile and run time, part by part of a lowering", epilog=EXAMPLES)
    add_shape(parser)
    parser.add_argument("--strategies", metavar="A,B", help="only these (default: all that apply)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _: Settings, console: Console) -> int:
    """Prints a row for each strategy and phase, then the notes' figures of it."""
    from api.devices import ProbedDevices
    from autotune.phases import phases

    key = ConvKey(shape=shape_of(args), device=ProbedDevices().describe(args.device), policy=policy_of(args))
    found = {}
    for name, candidate in candidates(key, args.strategies).items():
        if not args.json:
            console.note(f"compiling and timing {name}")
        found[name] = phases(key, candidate, on_wait=console.note)
    noted = claims(found)
    if args.json:
        console.json({
            "name": str(key), "origin": figures()["origin"], "notes": [claim.to_json() for claim in noted],
            "phases": {name: [phase.to_json() for phase in measured] for name, measured in found.items()},
        })  # fmt: skip
        return 0
    console.table(_table(found))
    if str(key.shape) != figures()["phases"]["shape"]:
        console.note(f"\nthe notes' figures are of {figures()['phases']['shape']}")
    console.text(f"\nNEW over OLD in the notes ({figures()['origin']}), and here:")
    console.table(claims_table(noted))
    console.text(f"{OPEN_LOOPS}\n{UNUSED}")
    return 0


def candidates(key: ConvKey, asked: str | None) -> dict[str, Any]:
    """Each strategy that applies as it is by default. Raises UsageError for a name that is none."""
    from autotune.space import Space

    there = {item.name: item.candidate() for item in Space.of(key).strategies}
    wanted = asked.split(",") if asked else list(there)
    if unknown := [name for name in wanted if name not in there]:
        raise UsageError(f"expected strategies that apply here ({', '.join(there)}), found {', '.join(unknown)}")
    return {name: there[name] for name in wanted}


def claims(found: dict[str, list[Phase]]) -> list[Claim]:
    """The notes' ratios of compiling and running, phase by phase, and what fusing costs over direct."""
    notes = figures()["phases"]
    by_name = {name: {phase.until: phase for phase in measured} for name, measured in found.items()}
    new, old = by_name.get(notes["new"], {}), by_name.get(notes["old"], {})
    result = []
    for row in notes["figures"]:
        pair = (new.get(row["until"]), old.get(row["until"]))
        compiled = [phase.schedule_s + phase.compile_s if phase and phase.time_s else None for phase in pair]
        ran = [phase.time_s.median if phase and phase.time_s else None for phase in pair]
        title = f"{row['until']}, {notes['new']} over {notes['old']}"
        result.append(_claim(f"{title}: compile", row["new_compile_ms"], row["old_compile_ms"], compiled))
        if row["new_run_us"] is not None:
            result.append(_claim(f"{title}: run", row["new_run_us"], row["old_run_us"], ran))
    for row in (row for row in figures()["fused"] if row["shape"] == notes["shape"]):
        pair = (by_name.get("deferred_mhat", {}).get("+output"), by_name.get("direct", {}).get("+output"))
        ran = [phase.time_s.median if phase and phase.time_s else None for phase in pair]
        compiled = [phase.schedule_s + phase.compile_s if phase and phase.time_s else None for phase in pair]
        title = "MHAT deferred, over direct"
        result.append(_claim(f"{title}: compile", row["fused_compile_ms"], row["direct_compile_ms"], compiled))
        result.append(_claim(f"{title}: run", row["fused_run_ms"], row["direct_run_ms"], ran))
    return result


def _claim(what: str, new: float, old: float, ours: Sequence[float | None]) -> Claim:
    mine, theirs = ours
    return Claim(what=what, theirs=new / old, ours=mine / theirs if mine and theirs else None)


def claims_table(noted: Sequence[Claim]) -> Table:
    """A row for each claim."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "notes", "here", "95%", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right")
    for claim in noted:
        interval = f"{claim.interval.low:.2f}-{claim.interval.high:.2f}" if claim.interval is not None else ""
        ours = "-" if claim.ours is None else f"{claim.ours:.2f}"
        table.add_row(claim.what, f"{claim.theirs:.2f}", ours, interval, claim.verdict)
    return table


def _table(found: dict[str, list[Phase]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("strategy", "as far as", "compile", "run", "kernels", "buffers", "source", "names"):
        left = name in ("strategy", "as far as", "names")
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name != "names")
    for name, measured in found.items():
        for phase in measured:
            if phase.time_s is None:
                table.add_row(name, phase.until, "-", "-", "-", "-", "-", phase.reason)
                continue
            table.add_row(
                name, phase.until, duration(phase.schedule_s + phase.compile_s), duration(phase.time_s.median),
                str(len(phase.kernels)), str(phase.buffers), f"{amount(phase.source_bytes)}B", " ".join(phase.kernels),
            )  # fmt: skip
    if not table.rows:
        raise CliError("no strategy applies to this shape")
    return table
