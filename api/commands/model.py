"""`autotune model`: every convolution of a network, tuned where it pays."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING, Any

from rich.table import Table

from api.arguments import add_database, add_device, add_json, add_policy, policy_of
from api.console import CliError, Console, UsageError
from api.networks import Build, load
from api.progress_bar import TuneBar
from api.settings import Settings
from api.units import duration, lowering, ratio_text, share_text
from autotune.compiler import CCompilerError, ensure_c_compiler
from autotune.job import Budget
from autotune.winner import Interval, Winner
from strategies.key import ConvKey
from strategies.shape import JsonObject

if TYPE_CHECKING:
    from autotune.comparison import Comparison
    from autotune.survey import Part

TINYGRAD, HOOK = "tinygrad", "with the hook"
INTERRUPTED = 130
LOCK_TIMEOUT_S = 600.0
EXAMPLES = """examples:
  autotune model resnet18
  autotune model vgg16 --batch 8 --budget 5m --device CUDA
  autotune model mynet:build              build() gives a lazy Tensor, or a network and its input
  autotune model detector.onnx --json

Built in: resnet18, resnet34, resnet50, vgg16, unet, yolo, mobilenet, with random weights. The budget goes to the
convolutions that take most of the network's time, to the others while they bring more, and to none
less than a search is worth. What has a winner is not tuned again."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("model", help="tune every convolution of a network, where it pays", epilog=EXAMPLES)
    parser.add_argument("network", metavar="NETWORK", help="a built-in one, package.module:callable or file.onnx")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="of built-in networks and ONNX (default 1)")
    parser.add_argument("--budget", default="3m", metavar="TIME", help="for all of it: 90s, 3m, 1h (default 3m)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="of the comparison; 0: none (default 9)")
    parser.add_argument("--again", action="store_true", help="tune also what has a winner")
    add_device(parser)
    add_policy(parser)
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prints the convolutions before and after, and the whole network with and without the hook."""
    if args.batch < 1 or args.rounds < 0:
        raise UsageError(f"expected a batch of 1 or more and 0 rounds or more, found {args.batch} and {args.rounds}")
    if settings.url:
        raise UsageError("autotune model works with the device of this machine, not with a service: unset AUTOTUNE_URL")
    budget_s = Budget.parse(args.budget).seconds or 0.0
    if args.device:
        os.environ["DEV"] = args.device.upper()  # before tinygrad is imported, which reads it once
    with contextlib.suppress(CCompilerError):  # tinygrad says it again if it is the CPU's turn
        ensure_c_compiler()
    from autotune.survey import survey
    from strategies.graph.device import describe_device
    from strategies.graph.find import find_convolutions

    build = load(args.network, batch=args.batch)
    shapes = find_convolutions(build)
    if not shapes:
        raise CliError(f"{args.network} has no convolution that the hook would find: there is nothing to tune")
    parts = survey(shapes, describe_device(), policy=policy_of(args), on_wait=console.note)
    try:
        winners = _tuned(args, settings, console, parts, budget_s)
    except KeyboardInterrupt:
        raise CliError(
            "interrupted, what was measured is kept; the same command goes on from there", status=INTERRUPTED
        ) from None
    found = _compared(build, args, settings, console) if args.rounds else None
    document = _document(args, parts, winners, found)
    if args.json:
        console.json(document)
    else:
        _show(document, console)
    return 0


def _tuned(
    args: argparse.Namespace, settings: Settings, console: Console, parts: list[Part], budget_s: float
) -> dict[ConvKey, Winner]:
    from api.database import open_database
    from autotune.local_runner import LocalRunner
    from autotune.survey import tune_parts
    from autotune.tune import TuneError

    device = args.device or parts[0].key.device.device
    said = lambda part, seconds: console.note(f"tuning {part.key.shape}, {part.count} of them, {seconds:.0f} s")  # noqa: E731
    with (
        open_database(settings) as store,
        LocalRunner(device, on_wait=console.note) as runner,
        TuneBar(console, args.network) as bar,
    ):
        try:
            return tune_parts(
                parts, budget_s, store=store, runner=runner, again=args.again, on_part=said,
                on_progress=lambda progress: bar.show(progress.to_json()),
            )  # fmt: skip
        except TuneError as error:
            raise CliError(str(error)) from None


def _compared(build: Build, args: argparse.Namespace, settings: Settings, console: Console) -> Comparison:
    """The whole network with and without the hook, while nobody else measures on the device."""
    from tinygrad import Device

    import autotune
    from autotune.comparison import captured, compare
    from autotune.device_lock import DeviceLock

    lock = DeviceLock(str(Device.DEFAULT))
    try:
        with lock.held(timeout_s=LOCK_TIMEOUT_S, on_wait=console.note):
            runs = {
                TINYGRAD: captured(build, contextlib.nullcontext()),
                HOOK: captured(build, autotune.tuned(settings.db, policy=policy_of(args))),
            }
            return compare(runs, args.rounds)
    finally:
        lock.close()


def _document(
    args: argparse.Namespace, parts: list[Part], winners: dict[ConvKey, Winner], found: Comparison | None
) -> JsonObject:
    """Everything in seconds; a share is of the whole network's time, or None where that was not measured."""
    before_s = found.median_s(TINYGRAD) if found else None
    after_s = found.median_s(HOOK) if found else None
    rows = []
    for part in parts:
        winner = winners.get(part.key)
        now_s = winner.time_s.median if winner else part.direct_s
        rows.append({
            "name": str(part.key.shape), "digest": part.key.digest, "count": part.count, "direct_s": part.direct_s,
            "tuned_s": now_s, "share_before": part.weight_s / before_s if before_s else None,
            "share_after": part.count * now_s / after_s if after_s else None,
            "winner": winner.to_json() if winner else None,
        })  # fmt: skip
    network = None
    if found is not None:
        network = {
            "rounds": args.rounds, "plain_s": before_s, "tuned_s": after_s, "ratio": found.ratio(HOOK).to_json(),
            "difference": found.difference(HOOK),
        }  # fmt: skip
    return {"network": args.network, "batch": args.batch, "convolutions": rows, "whole": network}


def _show(document: JsonObject, console: Console) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("convolution", "times", "direct", "share", "now", "share now", "ratio", "lowering"):
        table.add_column(name, justify="left" if name in ("convolution", "lowering") else "right", overflow="fold")
    for row in document["convolutions"]:
        winner = Winner.from_json(row["winner"]) if row["winner"] else None
        table.add_row(
            row["name"], str(row["count"]), duration(row["direct_s"]), _share(row["share_before"]),
            duration(row["tuned_s"]) if winner else "-", _share(row["share_after"]),
            ratio_text(winner.ratio) if winner else "-", lowering(winner.candidate) if winner else "not tuned",
        )  # fmt: skip
    console.table(table)
    console.text(
        "\ndirect, now: one convolution by itself. share: of the whole network, without and with the hook. ratio: the "
        "winner over the better of tinygrad's own lowerings."
    )
    if (whole := document["whole"]) is not None:
        console.text(
            f"\n{document['network']}, batch {document['batch']}: {duration(whole['plain_s'])} with tinygrad alone, "
            f"{duration(whole['tuned_s'])} with the hook, {ratio_text(Interval.from_json(whole['ratio']))} of the time "
            f"over {whole['rounds']} interleaved rounds; largest difference "
            f"{whole['difference']:.1e} of the largest output"
        )


def _share(share: float | None) -> str:
    return "-" if share is None else share_text(share)
