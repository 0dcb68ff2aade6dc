"""`autotune tune`: find the fastest correct lowering of one convolution."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from api.arguments import add_database, add_json, add_shape, policy_of, shape_of
from api.commands.lookup import shape_arguments
from api.commands.remote import client_of, shape_body
from api.console import CliError, Console
from api.documents import winner_document
from api.progress_bar import TuneBar
from api.settings import DEFAULT_BUDGET_S, Settings
from api.tables import winners_table
from autotune.job import Budget
from autotune.winner import Winner
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape

INTERRUPTED = 130
EXAMPLES = """examples:
  autotune tune 1x64x56x56 64x64x3x3 --padding 1
  autotune tune 1x64x56x56 64x64x3x3 --padding 1 --budget 2m --device CPU
  autotune tune 8x32x112 32x16x3 --groups 2 --trials 40 --json"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("tune", help="find the fastest correct lowering of a convolution", epilog=EXAMPLES)
    add_shape(parser)
    parser.add_argument("--budget", metavar="TIME", help="60s, 2m, 1h (default 60s, or as long as --trials take)")
    parser.add_argument("--trials", type=int, metavar="N", help="at most N candidates")
    add_database(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prints the winner next to tinygrad's own lowerings."""
    shape, policy, budget = shape_of(args), policy_of(args), budget_of(args)
    try:
        winner = (_remote if settings.url else _local)(args, settings, console, shape, policy, budget)
    except KeyboardInterrupt:
        kept = "the job goes on without you: see GET /jobs" if settings.url else "what was measured is kept"
        again = f"autotune tune {shape_arguments(args)}{_other_arguments(args)}"
        raise CliError(f"interrupted, {kept}; the same command goes on from there: {again}", INTERRUPTED) from None
    if args.json:
        console.json(winner_document(None, winner))
    else:
        console.table(winners_table([winner], console.width))
    return 0


def _other_arguments(args: argparse.Namespace) -> str:
    """What else was said, as it would be typed again."""
    said = [f" --{name} {shlex.quote(str(getattr(args, name)))}" for name in ("budget", "trials", "db")
            if getattr(args, name) is not None]  # fmt: skip
    return "".join(said) + (" --json" if args.json else "")


def budget_of(args: argparse.Namespace) -> Budget:
    """Raises BudgetError."""
    if args.budget is not None:
        return Budget.parse(args.budget, args.trials)
    return Budget(seconds=DEFAULT_BUDGET_S if args.trials is None else None, trials=args.trials)


def _local(
    args: argparse.Namespace, settings: Settings, console: Console, shape: ConvShape, policy: Policy, budget: Budget
) -> Winner:
    from api.database import open_database
    from api.devices import ProbedDevices
    from autotune.compiler import CCompilerError, ensure_c_compiler
    from autotune.local_runner import LocalRunner
    from autotune.tune import TuneError, tune

    with open_database(settings) as store:  # first: whoever gave a wrong path need not wait for a device
        spec = ProbedDevices().describe(args.device)
        try:
            ensure_c_compiler()
        except CCompilerError:
            if spec.device == "CPU":
                raise
        key = ConvKey(shape=shape, device=spec, policy=policy)
        with LocalRunner(args.device or spec.device, on_wait=console.note) as runner, TuneBar(console, str(key)) as bar:
            show = lambda said: bar.show(said.to_json())  # noqa: E731
            try:
                return tune(key, store=store, runner=runner, budget=budget, on_progress=show)
            except TuneError as error:
                raise CliError(str(error)) from None


def _remote(
    args: argparse.Namespace, settings: Settings, console: Console, shape: ConvShape, policy: Policy, budget: Budget
) -> Winner:
    client = client_of(settings)
    body = shape_body(shape, policy, args.device)
    job = submitted = client.tune({**body, "budget": budget.seconds, "trials": budget.trials})
    with TuneBar(console, str(shape)) as bar:
        for job in client.follow(submitted["id"]):
            bar.show(job["progress"])
    if job["state"] != "done":
        reason = job["error"] or f"the job was {job['state']}"
        raise CliError(f"{reason}; see {settings.url}/jobs/{job['id']}")
    found = client.lookup_keys([ConvKey.from_json(key) for key in job["keys"]])
    if not found:
        raise CliError(f"the job is done, but its winner was revoked: see {settings.url}/winners")
    return next(iter(found.values()))
