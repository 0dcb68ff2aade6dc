"""How good the search is: `python bench/search.py replay | presets | guess | stability`.

replay     the search of `autotune tune` on every shape of a recording (bench/record.py), with no device, beside random
           search and plain TPE: how many candidates it measures until one is within 5% of the best that was recorded;
           how many seconds until one is as fast as BEAM=2's result, and how much faster one is after the same time
presets    which --presets structures leave least to be found on all shapes, by what they came to without options and
           with; and the same search with those that are so on all shapes but the searched one: presets chosen on what
           they are judged by would flatter it
guess      each recorded shape is held out in turn and guessed from the others: how near the guess comes to what the
           search comes to that knows nothing of the others, and to the best that was recorded; with --timed all three
           are built and timed here and now, for options that the guess has from a neighbour may not have been recorded
stability  tunes shapes several times over from nothing, here and now, and times each one's winners against each other;
           with --slots that many tunings run at once, each on --width processors of its own

What a replayed search is charged: see bench/replay.py.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from replay import WAYS, Recorded, RecordedStore, Seen, by_way, ended, first, recorded, replayed, winner_of
from rich.console import Console
from rich.table import Table
from shapes import conv_shape, label
from tinygrad.helpers import NUM_CPU_THREADS

from autotune.compiler import ensure_c_compiler
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.neighbours import guess
from autotune.statistics import MIN_GAIN, median, median_ratio
from autotune.timing import interleaved
from autotune.tune import tune
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.apply import NotApplicableError
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey

RECORDED = Path(__file__).parent / "recorded" / "cpu.jsonl.gz"
NEAR = 1.05
WANTED, SHARE = 40, 0.1
LEAST = 1000
"""A shape of which fewer candidates were recorded is left out, unless --least says otherwise."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("replay", "presets", "guess", "stability"))
    parser.add_argument("--recording", type=Path, default=RECORDED)
    parser.add_argument("--least", type=int, default=LEAST, help="candidates that a shape must have (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=WANTED, help="of a search, replayed (default %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="searches replayed at once (default %(default)s)")
    parser.add_argument("--presets", type=int, default=9, help="presets: how many (default %(default)s)")
    parser.add_argument(
        "--shape", type=int, nargs=3, action="append", metavar=("BATCH", "CHANNELS", "SIZE"),
        help="stability: may be given several times (default: 1 64 28)",
    )  # fmt: skip
    parser.add_argument(
        "--timed", action="store_true",
        help="guess: time them here, on the machine of the recording, with what a search ends with in the same rounds",
    )  # fmt: skip
    parser.add_argument("--times", type=int, default=5, help="stability: how often a shape is tuned (%(default)s)")
    parser.add_argument("--budget", default="40s", help="stability: for each tuning (%(default)s)")
    parser.add_argument("--slots", type=int, default=1, help="stability: tunings at once (%(default)s)")
    parser.add_argument("--width", type=int, help="stability: bind each to so many processors of its own")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if options.what == "stability":
        return stability(options, console)
    spaces = list(known(str(options.recording), options.least).values())
    if not spaces:
        sys.exit(f"search: {options.recording} has no shape with {options.least} candidates: record more")
    console.print(f"{options.recording.name}: {spaces[0].machine}; {sums(spaces)}")
    commands = {"replay": replay, "presets": presets, "guess": guesses}
    return commands[options.what](options, spaces, console)


def replay(options: argparse.Namespace, spaces: Sequence[Recorded], console: Console) -> int:
    """Exit status 1 if the product's search needs too many candidates, or too long for BEAM=2's result."""
    tables = [candidates_table(options, spaces, console), beam_table(options, spaces, console)]
    return 0 if all(tables) else 1


def presets(options: argparse.Namespace, spaces: Sequence[Recorded], console: Console) -> int:
    """Exit status 1 if the search with presets of other shapes needs too many candidates."""
    left = [{c: math.log(over) for c, over in promise(item).items()} for item in spaces]
    for count, candidate in enumerate(chosen_by(left, options.presets), 1):
        console.print(f"{count}: {candidate}", highlight=False, soft_wrap=True)
    counts, ends = [], []
    for number, item in enumerate(spaces):
        others = tuple(chosen_by(left[:number] + left[number + 1 :], options.presets))
        judged = replace(item, space=replace(item.space, good=others))
        made = [ended(judged, "tune", seed, Budget(trials=options.trials)) for seed in range(options.seeds)]
        found = [first(made_of.seen, NEAR * item.best, lambda s: s.count) for made_of, _ in made]
        counts.append(statistics.median(found))
        ends.append(statistics.median((item.trials[c].ratio or math.inf) / item.best for _, c in made))
        console.print(f"{label(item.key.shape)}, presets of the others: {counts[-1]:.0f} ({ends[-1]:.3f})")
    within = sum(count <= options.trials for count in counts)
    console.print(
        f"tune, presets of the other shapes: median over the shapes {statistics.median(counts):.0f} (wanted: {WANTED}),"
        f" within {options.trials} on {within} of {len(spaces)}; then at {geomean(ends):.3f} of the best's time"
    )
    return int(statistics.median(counts) > WANTED)


def promise(item: Recorded) -> dict[Candidate, float]:
    """Of each structure the geometric mean of its time without options and the best with some, over the best of all."""
    plain = {c: t.ratio for c, t in item.trials.items() if not c.kernel_options and t.ok and t.ratio}
    best = dict(plain)
    for c, t in item.trials.items():
        structure = c.structure
        if t.ok and t.ratio and structure in best:
            best[structure] = min(best[structure], t.ratio)
    return {c: math.sqrt(ratio * best[c]) / item.best for c, ratio in plain.items()}


def chosen_by(left: Sequence[Mapping[Candidate, float]], count: int) -> list[Candidate]:
    """Greedily, of structures that all have: with which the mean over all of the least of the chosen falls most."""
    common = sorted(set.intersection(*(set(one) for one in left)), key=str)
    chosen: list[Candidate] = []
    least = [math.inf] * len(left)
    for _ in range(count):
        best = min(common, key=lambda c: sum(min(known, one[c]) for known, one in zip(least, left, strict=True)))
        least = [min(known, one[best]) for known, one in zip(least, left, strict=True)]
        chosen.append(best)
    return chosen


def candidates_table(options: argparse.Namespace, spaces: Sequence[Recorded], console: Console) -> bool:
    """How many candidates it takes to come near the best, and what there is after so many."""
    needed, reached = by_way(WAYS), by_way(WAYS)
    made = runs([(item, way, Budget(trials=options.trials)) for item in spaces for way in WAYS], options)
    table = Table("shape", "candidates", "best/direct", *WAYS, box=None)
    for item in spaces:
        row = [label(item.key.shape), str(len(item.trials)), f"{item.best:.3f}"]
        for way in WAYS:
            found = next(made)
            counts = [first(seen, NEAR * item.best, lambda s: s.count) for seen, _ in found]
            results = [ratio / item.best for _, ratio in found]
            needed[way].append(statistics.median(counts))
            reached[way].append(statistics.median(results))
            row.append(f"{needed[way][-1]:.0f} ({reached[way][-1]:.3f})")
        table.add_row(*row)
    console.print(table)
    console.print(
        f"candidates measured, options tried on one kernel counted, until within {NEAR - 1:.0%} of the best recorded; "
        f"in brackets what {options.trials} come to, over that best; medians over {options.seeds} seeds"
    )
    for way in WAYS:
        within = sum(count <= options.trials for count in needed[way])
        console.print(
            f"{way}: median over the shapes {statistics.median(needed[way]):.0f} (wanted of tune: {WANTED}), within "
            f"{options.trials} on {within} of {len(spaces)}; then at {geomean(reached[way]):.3f} of the best's time"
        )
    return statistics.median(needed["tune"]) <= WANTED


def beam_table(options: argparse.Namespace, spaces: Sequence[Recorded], console: Console) -> bool:
    """How long it takes to come to what BEAM=2 came to, and how far one is after the same time."""
    beams = [(item, item.beam) for item in spaces if item.beam is not None]
    if not beams:
        console.print("BEAM=2 was not recorded")
        return True
    shares, overs = by_way(WAYS), by_way(WAYS)
    made = runs([(item, way, Budget(seconds=seconds)) for item, (_, seconds) in beams for way in WAYS], options)
    table = Table("shape", "BEAM=2/direct", "s", *WAYS, box=None)
    for item, (ratio, seconds) in beams:
        row = [label(item.key.shape), f"{ratio:.3f}", f"{seconds:.0f}"]
        for way in WAYS:
            found = next(made)
            spent = statistics.median(first(seen, ratio, lambda s: s.seconds) for seen, _ in found)
            shares[way].append(spent / seconds)
            overs[way].append(statistics.median(ended for _, ended in found) / ratio)
            row.append(f"{spent:.1f} ({overs[way][-1]:.3f})")
        table.add_row(*row)
    console.print(table)
    console.print(
        "seconds until as fast as what BEAM=2 came to on the better of tinygrad's lowerings; in brackets what the same "
        f"time as BEAM=2's comes to, over its result; medians over {options.seeds} seeds"
    )
    for way in WAYS:
        console.print(
            f"{way}: BEAM=2's result in {statistics.median(shares[way]):.3f} of its seconds, median (wanted of tune: "
            f"{SHARE}), on {sum(s <= SHARE for s in shares[way])} of {len(beams)} within; in all of them "
            f"{geomean(overs[way]):.3f} of its time, geometric mean"
        )
    return statistics.median(shares["tune"]) <= SHARE


def sums(spaces: Sequence[Recorded]) -> str:
    """How many were measured as a whole, and how well the sum of a candidate's kernels, each timed alone, stands for
    it."""
    over = [ratio for item in spaces for ratio in item.checked]
    total, wholes = sum(len(item.trials) for item in spaces), sum(item.wholes for item in spaces)
    if not over:
        return f"{total} candidates, each measured as a whole"
    low, middle, high = (float(np.quantile(over, q)) for q in (0.05, 0.5, 0.95))
    rest = f", {total - wholes} as sums of their kernels" if wholes < total else ""
    return (
        f"{total} candidates, {wholes} of them measured as a whole{rest}; of {len(over)} that were both, the whole "
        f"takes {middle:.3f} of the sum in the median, 5% to 95%: {low:.3f} to {high:.3f}"
    )


Found = tuple[Sequence[Seen], float]
"""What one search saw, and what it ended with."""


def runs(wanted: Sequence[tuple[Recorded, str, Budget]], options: argparse.Namespace) -> Iterator[list[Found]]:
    """Each search with every seed, in the order asked, in processes of their own."""
    jobs = [
        (str(options.recording), options.least, item.key.digest, way, seed, budget)
        for item, way, budget in wanted for seed in range(options.seeds)
    ]  # fmt: skip
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of each process
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(run, *zip(*jobs, strict=True))
        for _ in wanted:
            yield [next(found) for _ in range(options.seeds)]


def run(path: str, least: int, digest: str, way: str, seed: int, budget: Budget) -> Found:
    """One search on a shape of a recording."""
    spaces = known(path, least)
    made, ratio = replayed(spaces[digest], [s for d, s in spaces.items() if d != digest], way, seed, budget)
    return made.seen, ratio


@functools.cache
def known(path: str, least: int) -> dict[str, Recorded]:
    return {item.key.digest: item for item in recorded(Path(path), least)}


def geomean(values: Sequence[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def guesses(options: argparse.Namespace, spaces: Sequence[Recorded], console: Console) -> int:
    if options.timed:
        return timed_guesses(spaces, options.trials, console)
    made = runs([(item, "tune", Budget(trials=options.trials)) for item in spaces], options)
    tuned = {item.key.digest: statistics.median(ratio for _, ratio in next(made)) for item in spaces}
    return held_out(spaces, tuned, console)


def timed_guesses(spaces: Sequence[Recorded], trials: int, console: Console) -> int:
    """Each shape guessed from all others, and the guess timed here beside what a replayed search ends with that knows
    nothing of them, the best that was recorded, and tinygrad's own. Exit status 1 if guesses are not good enough."""
    here = describe_device(spaces[0].key.device.device).identity()
    if any(item.key.device.identity() != here for item in spaces):
        sys.exit("search: recorded on another machine or number of processors: set NUM_CPU_THREADS to a slot's")
    ensure_c_compiler()
    table = Table("shape", "default/tuned", "tuned/guess", "best/guess", "did not fit", "guess", box=None)
    speeds, of_best, slower = [], [], 0
    for item in spaces:
        store: Any = RecordedStore([s for s in spaces if s is not item])
        made = guess(store, item.key, item.space)
        if made is None:
            sys.exit(f"search: {label(item.key.shape)} has no neighbours to guess from")
        guessed, misfits = fitting(item.key, made.candidate)
        tuned = ended(item, "tune", 0, Budget(trials=trials))[1]
        best = winner_of(item).candidate
        own = {candidate.strategy: candidate for candidate in item.space.defaults}
        over = timed_over({"tuned": tuned, "guess": guessed, "best": best} | own, item.key)
        default = min(over[name] for name in own)
        speeds.append(1 / over["guess"])
        of_best.append(over["best"] / over["guess"])
        slower += over["guess"] > default * (1 + MIN_GAIN)
        table.add_row(
            label(item.key.shape), f"{default:.2f}", f"{speeds[-1]:.3f}", f"{of_best[-1]:.3f}", ", ".join(misfits),
            str(guessed),
        )  # fmt: skip
    console.print(table)
    mean = geomean(speeds)
    console.print(
        f"speed of the guess over the tuned, timed in the same rounds, geometric mean of {len(speeds)}: {mean:.3f} "
        f"(wanted: 0.9); over the best recorded: {geomean(of_best):.3f}"
    )
    console.print(f"slower than the default by more than {MIN_GAIN:.0%}: {slower} of {len(spaces)} (wanted: 1 in 20)")
    return 0 if mean >= 0.9 and slower <= len(spaces) / 20 else 1


def fitting(key: ConvKey, candidate: Candidate) -> tuple[Candidate, list[str]]:
    """The candidate with those of its options that fit their kernels here, as the hook applies it; and the others."""
    fit, misfits = [], []
    for role, options in candidate.kernel_options:
        try:
            Program(key.shape, replace(candidate, kernel_options=((role, options),)), key.device.device, compiled=False)
            fit.append((role, options))
        except NotApplicableError:
            misfits.append(role)
    return replace(candidate, kernel_options=tuple(fit)), misfits


def timed_over(candidates: Mapping[str, Candidate], key: ConvKey) -> dict[str, float]:
    """The median ratio of each to the first, in interleaved rounds."""
    programs = {name: Program(key.shape, candidate, key.device.device) for name, candidate in candidates.items()}
    rng = np.random.default_rng(0)
    for program in programs.values():
        program.load(rng.normal(size=key.shape.input_shape), rng.normal(size=key.shape.weight_shape))
    first_one = next(iter(programs))
    runs_of = {name: program.run for name, program in programs.items()}
    times = interleaved(runs_of, yardstick=first_one, rounds=21, round_s=0.02, prune=False)
    return {name: median_ratio(times[name].times_s, times[first_one].times_s) for name in programs}


def held_out(spaces: Sequence[Recorded], tuned: Mapping[str, float], console: Console) -> int:
    """Each shape guessed from all others. Exit status 1 if the guesses are not good enough beside what is `tuned`, over
    direct and by the key's digest."""
    table = Table(
        "shape", "best/default", "guess/default", "tuned/guess", "best/guess", "confidence", "guess", box=None
    )
    speeds, of_best, slower, none = [], [], 0, 0
    for item in spaces:
        store: Any = RecordedStore([s for s in spaces if s is not item])
        made = guess(store, item.key, item.space)
        trial = item.trials.get(item.here(made.candidate)) if made is not None else None
        if made is None or trial is None or not trial.ratio:
            none += 1
            table.add_row(
                label(item.key.shape),
                f"{item.best / item.default:.3f}",
                "-",
                "-",
                "-",
                "-",
                str(made.candidate) if made else "none",
            )
            continue
        speeds.append(tuned[item.key.digest] / trial.ratio)
        of_best.append(item.best / trial.ratio)
        slower += trial.ratio > item.default * (1 + MIN_GAIN) or not trial.ok
        table.add_row(
            label(item.key.shape), f"{item.best / item.default:.3f}", f"{trial.ratio / item.default:.3f}",
            f"{speeds[-1]:.3f}", f"{of_best[-1]:.3f}", f"{made.provenance['confidence']:.2f}", str(made.candidate),
        )  # fmt: skip
    console.print(table)
    mean = geomean(speeds) if speeds else 0.0
    console.print(
        f"speed of the guess over the tuned, geometric mean of {len(speeds)}: {mean:.3f} (wanted: 0.9); over the best "
        f"recorded: {geomean(of_best) if of_best else 0.0:.3f}"
    )
    console.print(f"slower than the default by more than {MIN_GAIN:.0%}: {slower} of {len(spaces)} (wanted: 1 in 20)")
    console.print(f"without a recorded guess: {none}")
    return 0 if mean >= 0.9 and slower <= len(spaces) / 20 else 1


def stability(options: argparse.Namespace, console: Console) -> int:
    """Exit status 1 if winners of a shape differ by 3% or more."""
    sizes, width = options.shape or [(1, 64, 28)], options.width or 0
    cpus = sorted(os.sched_getaffinity(0))
    if options.slots * width > len(cpus):
        sys.exit(f"search: {options.slots} slots of {width} need more than the {len(cpus)} processors here")
    if width:
        os.environ["NUM_CPU_THREADS"], NUM_CPU_THREADS.value = str(width), width
    chosen: dict[Sequence[int], list[Candidate]] = {tuple(size): [] for size in sizes}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        slots = context.SimpleQueue()
        for slot in range(options.slots):
            slots.put((cpus[slot * width : (slot + 1) * width], str(Path(scratch) / str(slot))))
        tunings = [(size, turn, options.budget) for size in chosen for turn in range(options.times)]
        with ProcessPoolExecutor(options.slots, context, initializer=take, initargs=(slots,)) as pool:
            made = pool.map(tuned, *zip(*tunings, strict=True))
            for (size, turn, _), (candidate, time_s) in zip(tunings, made, strict=True):
                chosen[size].append(candidate)
                shape = label(conv_shape(*size))
                console.print(f"{shape}, {turn + 1}: {time_s * 1e6:.0f} us, {candidate}", highlight=False)
    if width:
        os.sched_setaffinity(0, cpus[:width])
    spreads = [spread(size, several, console) for size, several in chosen.items()]
    console.print(f"below 3%: {sum(s < 0.03 for s in spreads)} of {len(spreads)} shapes, at most {max(spreads):.1%}")
    return 0 if max(spreads) < 0.03 else 1


_slot: list[Path] = []
"""In a process of `stability`: a folder of its own, for its device's lock and its databases."""


def take(slots: Any) -> None:
    """Bind this process to a slot's processors."""
    cpus, folder = slots.get()
    if cpus:
        os.sched_setaffinity(0, cpus)
    Path(folder).mkdir(mode=0o700)
    _slot.append(Path(folder))


def tuned(size: Sequence[int], turn: int, budget: str) -> tuple[Candidate, float]:
    """What one tuning from nothing ends with, and its seconds."""
    ensure_c_compiler()
    [folder] = _slot
    key = ConvKey(shape=conv_shape(*size), device=describe_device("CPU"))
    with tempfile.TemporaryDirectory(dir=folder) as scratch, LocalRunner("CPU", lock_directory=folder) as runner:
        store = open_store(str(Path(scratch) / "bench.db"))
        winner = tune(key, store=store, runner=runner, budget=Budget.parse(budget), seed=turn)
    return winner.candidate, winner.time_s.median


def spread(size: Sequence[int], chosen: Sequence[Candidate], console: Console) -> float:
    """By how much the slowest of these differs from the fastest, all timed together."""
    ensure_c_compiler()
    shape = conv_shape(*size)
    programs = {str(turn): Program(shape, candidate, "CPU") for turn, candidate in enumerate(chosen)}
    rng = np.random.default_rng(0)
    for program in programs.values():
        program.load(rng.normal(size=shape.input_shape), rng.normal(size=shape.weight_shape))
    times = interleaved(
        {name: program.run for name, program in programs.items()}, yardstick="0", rounds=41, round_s=0.02, prune=False
    )  # fmt: skip
    medians = [median(t.times_s) for t in times.values()]
    apart = max(medians) / min(medians) - 1
    listed = ", ".join(f"{m * 1e6:.0f}" for m in medians)
    console.print(f"{label(shape)}: winners of {len(chosen)} tunings, timed together: {listed} us")
    console.print(f"they differ by {apart:.1%} (wanted: below 3%)")
    return apart


if __name__ == "__main__":
    sys.exit(main())
