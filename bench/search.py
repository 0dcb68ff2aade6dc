"""How good the search is: `python bench/search.py replay | guess | stability`.

replay     every sampler on every shape of a recording (bench/record.py), with no device: how many candidates it
           measures until one is within 5% of the best that was recorded; where BEAM=2 was recorded too, how many
           seconds until one is as fast as its result, and how much faster one is after the same time
guess      each recorded shape is held out in turn and guessed from the others: how near the guess comes to the best
stability  tunes one shape several times over from nothing, here and now, and times the winners against each other

What a replayed search spends is what the recorded candidates took: each its own kernels' compilation and its timing.
Times carry 2% of noise a round, as a search would see.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recording import Recording, Trial, subspace
from rich.console import Console
from rich.table import Table
from shapes import conv_shape, label

from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement, Status
from autotune.neighbours import guess, prior
from autotune.search import SAMPLERS, Search
from autotune.space import Space
from autotune.statistics import MIN_GAIN, median
from autotune.timing import interleaved
from autotune.tune import tune
from autotune.winner import Interval, Winner, WinnerState
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey, DeviceSpec

DIRECT = Candidate.of("direct")
RECORDED = Path(__file__).parent / "recorded" / "cpu.jsonl.gz"
NEAR = 1.05
ROUNDS, NOISE = 7, 0.02
LEAST = 1000
"""A shape of which fewer candidates were recorded is left out, unless --least says otherwise."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("replay", "guess", "stability"))
    parser.add_argument("--recording", type=Path, default=RECORDED)
    parser.add_argument("--least", type=int, default=LEAST, help="candidates that a shape must have (%(default)s)")
    parser.add_argument("--blind", action="store_true", help="without the presets that strategies declare as good")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=200, help="at most, per search")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 64, 28), metavar=("BATCH", "CHANNELS", "SIZE"))
    parser.add_argument("--times", type=int, default=5, help="stability: how often the shape is tuned")
    parser.add_argument("--budget", default="40s", help="stability: for each tuning")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if options.what == "stability":
        return stability(options, console)
    spaces = recorded(options.recording, options.least, presets=not options.blind)
    if not spaces:
        sys.exit(f"search: {options.recording} has no shape with {options.least} candidates: record more")
    console.print(f"{options.recording.name}: {spaces[0].machine}")
    return replay(options, spaces, console) if options.what == "replay" else held_out(spaces, console)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One shape of a recording."""

    key: ConvKey
    space: Space
    trials: dict[Candidate, Trial]
    machine: str
    beam: tuple[float, float] | None

    @property
    def best(self) -> float:
        return min(t.ratio for t in self.trials.values() if t.ok and t.ratio)

    @property
    def default(self) -> float:
        """The better of tinygrad's own, over direct."""
        return min([t.ratio for c in self.space.defaults if (t := self.trials.get(c)) and t.ratio], default=1.0)

    def measured(self, candidate: Candidate, noise: np.ndarray) -> Measurement:
        """As the search would have seen it."""
        trial = self.trials.get(candidate)
        if trial is None or trial.ratio is None:
            status = Status(trial.status) if trial is not None else Status.INAPPLICABLE
            return Measurement(key=self.key, candidate=candidate, status=status)
        return Measurement(
            key=self.key, candidate=candidate, status=Status(trial.status), fingerprint=trial.program,
            times_s=tuple(1e-3 * trial.ratio * noise), yardstick_times_s=(1e-3,) * len(noise),
        )  # fmt: skip


def recorded(path: Path, least: int, *, presets: bool) -> list[Recorded]:
    recording = Recording.read(path)
    spec = DeviceSpec.from_json(recording.machine["device"])
    machine = f"{spec.arch}, {spec.cores} cores a slot, {recording.machine['slots']} slots at once"
    result = []
    for number, (size, trials) in enumerate(zip(recording.shapes, recording.trials, strict=True)):
        if len(trials) >= least:
            key = ConvKey(shape=conv_shape(*size), device=spec)
            result.append(Recorded(key, subspace(key, presets=presets), trials, machine, recording.beam.get(number)))
    return result


def replay(options: argparse.Namespace, spaces: Sequence[Recorded], console: Console) -> int:
    ways = [*SAMPLERS, "model, neighbours known"]
    beams = any(item.beam for item in spaces)
    needed: dict[str, list[float]] = {way: [] for way in ways}
    shares: dict[str, list[float]] = {way: [] for way in ways}
    overs: dict[str, list[float]] = {way: [] for way in ways}
    table = Table("shape", "candidates", "best/direct", *ways, *(["BEAM=2 s"] if beams else []), box=None)
    for item in spaces:
        row = [label(item.key.shape), str(len(item.trials)), f"{item.best:.3f}"]
        beam = item.beam
        for way in ways:
            runs = [search(item, spaces, way, seed, options.trials) for seed in range(options.seeds)]
            counts = [run.candidates for run in runs]
            needed[way] += counts
            row.append(f"{statistics.median(counts):.0f}")
            if beam is not None:
                share = statistics.median(run.beam_s for run in runs) / beam[1]
                shares[way].append(share)
                overs[way] += [run.over_beam for run in runs]
                row[-1] += f" ({share:.2f})"
        table.add_row(*row, *([f"{beam[1]:.0f}" if beam else "-"] if beams else []))
        print(row, file=sys.stderr, flush=True)
    console.print(table)
    console.print(f"candidates measured until within {NEAR - 1:.0%} of the best, median over {options.seeds} seeds" + (
        "; in brackets the seconds until as fast as BEAM=2, as a share of BEAM=2's" if beams else ""))  # fmt: skip
    for way in ways:
        within = sum(n <= 40 for n in needed[way]) / len(needed[way])
        said = f"{way}: median {statistics.median(needed[way]):.0f}, within 40 in {within:.0%}"
        if shares[way]:
            said += f"; BEAM=2's result in {statistics.median(shares[way]):.3f} of its seconds"
            said += f", after as many {statistics.median(overs[way]):.3f} of its time"
        console.print(said)
    return 0


@dataclass(frozen=True, slots=True)
class Run:
    """Candidates until near the best, and seconds until as fast as BEAM=2, infinite if it did not come to that; and
    the best found in BEAM=2's time over its result."""

    candidates: float
    beam_s: float
    over_beam: float


def search(item: Recorded, spaces: Sequence[Recorded], way: str, seed: int, trials: int) -> Run:
    beam, rng = item.beam, np.random.default_rng(seed)
    others: Any = RecordedStore([s for s in spaces if s is not item])
    known = [] if way in SAMPLERS else prior(others, item.key)
    searching = Search(item.space, seed=seed, sampler=way if way in SAMPLERS else "model", prior=known)
    count, spent_s, found, beaten, over_beam = 0, 0.0, math.inf, math.inf, math.inf
    while count < trials and (math.isinf(found) or (beam is not None and spent_s < beam[1])):
        candidate = searching.ask()
        if candidate is None:
            break
        searching.tell(item.measured(candidate, np.exp(rng.normal(0, NOISE, ROUNDS))))
        trial = item.trials.get(candidate)
        if trial is None:  # not recorded: it cannot be counted
            continue
        count, spent_s = count + 1, spent_s + trial.compile_s + trial.other_s
        if not trial.ok or not trial.ratio:
            continue
        if trial.ratio <= NEAR * item.best:
            found = min(found, count)
        if beam is not None and trial.ratio <= beam[0]:
            beaten = min(beaten, spent_s)
        if beam is not None and spent_s <= beam[1]:
            over_beam = min(over_beam, trial.ratio / beam[0])
    return Run(found, beaten, over_beam)


class RecordedStore:
    """What autotune.neighbours asks of a store, from recorded shapes."""

    def __init__(self, spaces: Sequence[Recorded]) -> None:
        self._spaces = {space.key.digest: space for space in spaces}

    def winners(self, **_: Any) -> list[tuple[int, Winner]]:
        return [(number, winner_of(space)) for number, space in enumerate(self._spaces.values(), 1)]

    def measurements(self, key: ConvKey) -> list[Measurement]:
        space = self._spaces[key.digest]
        return [space.measured(candidate, np.ones(1)) for candidate in space.trials]


def winner_of(space: Recorded) -> Winner:
    best = min((t.ratio, str(c), c) for c, t in space.trials.items() if t.ok and t.ratio)
    times = (Interval(median=t, low=t, high=t) for t in (1e-3 * best[0], 1e-3 * space.default, best[0] / space.default))
    time_s, default_s, ratio = times
    return Winner(
        key=space.key, candidate=best[2], state=WinnerState.VERIFIED, time_s=time_s, default=DIRECT,
        default_time_s=default_s, ratio=ratio,
    )  # fmt: skip


def held_out(spaces: Sequence[Recorded], console: Console) -> int:
    """Each shape guessed from all others. Exit status 1 if the guesses are not good enough."""
    table = Table("shape", "best/default", "guess/default", "best/guess", "confidence", "guess", box=None)
    speeds, slower, none = [], 0, 0
    for item in spaces:
        store: Any = RecordedStore([s for s in spaces if s is not item])
        made = guess(store, item.key, item.space)
        trial = item.trials.get(made.candidate) if made is not None else None
        if made is None or trial is None or not trial.ratio:
            none += 1
            table.add_row(label(item.key.shape), f"{item.best / item.default:.3f}", "-", "-", "-", str(made))
            continue
        speeds.append(item.best / trial.ratio)
        slower += trial.ratio > item.default * (1 + MIN_GAIN) or not trial.ok
        table.add_row(
            label(item.key.shape), f"{item.best / item.default:.3f}", f"{trial.ratio / item.default:.3f}",
            f"{speeds[-1]:.3f}", f"{made.provenance['confidence']:.2f}", str(made.candidate),
        )  # fmt: skip
    console.print(table)
    mean = math.exp(statistics.mean(map(math.log, speeds))) if speeds else 0.0
    console.print(f"speed of the guess over the tuned, geometric mean of {len(speeds)}: {mean:.3f} (wanted: 0.9)")
    console.print(f"slower than the default by more than {MIN_GAIN:.0%}: {slower} of {len(spaces)} (wanted: 1 in 20)")
    console.print(f"without a recorded guess: {none}")
    return 0 if mean >= 0.9 and slower <= len(spaces) / 20 else 1


def stability(options: argparse.Namespace, console: Console) -> int:
    """Exit status 1 if winners differ by 3% or more."""
    ensure_c_compiler()
    shape, spec = conv_shape(*options.shape), describe_device("CPU")
    key, chosen = ConvKey(shape=shape, device=spec), list[Candidate]()
    for turn in range(options.times):
        with tempfile.TemporaryDirectory() as scratch, LocalRunner("CPU") as runner:
            store = open_store(str(Path(scratch) / "bench.db"))
            winner = tune(key, store=store, runner=runner, budget=Budget.parse(options.budget), seed=turn)
        chosen.append(winner.candidate)
        console.print(f"{turn + 1}: {winner.time_s.median * 1e6:.0f} us, {winner.candidate}")
    programs = {str(turn): Program(shape, candidate, "CPU") for turn, candidate in enumerate(chosen)}
    rng = np.random.default_rng(0)
    for program in programs.values():
        program.load(rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape))
    times = interleaved(
        {name: program.run for name, program in programs.items()}, yardstick="0", rounds=41, round_s=0.02, prune=False
    )  # fmt: skip
    medians = [median(t.times_s) for t in times.values()]
    spread = max(medians) / min(medians) - 1
    listed = ", ".join(f"{m * 1e6:.0f}" for m in medians)
    console.print(f"{label(shape)}: winners of {options.times} tunings, timed together: {listed} us")
    console.print(f"they differ by {spread:.1%} (wanted: below 3%)")
    return 0 if spread < 0.03 else 1


if __name__ == "__main__":
    sys.exit(main())
