"""Recorded spaces: kept as they are, and searches replayed on them find what is there."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from autotune.job import Budget
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

DIRECT = Candidate.of("direct")
SPEC = DeviceSpec(device="CPU", arch="x86_64", cores=1)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """bench/recording.py and bench/search.py, whose directory is no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    import recording
    import search

    yield recording, search
    for name in ("dealing", "recording", "replay", "search", "shapes"):
        sys.modules.pop(name, None)


def recorded(recording: Any, path: Path) -> Any:
    """Three shapes; what a choice does to the time is the same on all of them, but for a little."""
    sizes = [(1, 16, 32), (1, 32, 28), (1, 64, 28)]
    key = ConvKey(shape=ConvShape.of((1, 16, 32, 32), (16, 16, 3, 3), padding=1), device=SPEC)
    structures = [c for c in recording.everything(recording.subspace(key)) if recording.is_common(c)]
    made = recording.Recording.empty({"device": SPEC.to_json(), "slots": 1}, sizes, structures)
    for shape in range(len(sizes)):
        for candidate in structures:
            value = -0.5 + sum(int.from_bytes(f"{pair}".encode()) % 97 / 250 for pair in candidate.params)
            value += int(candidate.digest[shape : shape + 4], 16) / 2**16 * 0.05
            ratio = math.exp(value - 2.0) if candidate.strategy == "blocked" else 1.0
            made.trials[shape][candidate] = recording.Trial("ok", round(ratio, 4), 0.8, 0.4, "", (ratio,))
        fastest = sorted(made.trials[shape], key=lambda c: made.trials[shape][c].ratio)[:6]
        for structure in fastest:
            with_options(recording, made, shape, structures.index(structure))
    fastest = min(trial.ratio for trial in made.trials[0].values())
    made.beam = {0: (1.1 * fastest, 60.0)}  # of direct's time, after so many seconds
    made.write(path)
    return made


def with_options(recording: Any, made: Any, shape: int, structure: int) -> None:
    """Two kernels that take half of the time each, and a fifth less with the best of some options."""
    whole = made.trials[shape][made.structures[structure]]
    a, b, c = (("UPCAST", axis, 4) for axis in range(3))
    gains = {(): 1.0, (a,): 0.9, (b,): 1.3, (a, c): 0.8, (a, b): 1.1, (c,): 0.97}
    seconds = tuple(0.5e-3 * whole.ratio * gain for gain in gains.values())
    menu = recording.Menu("L4 L4 L4", tuple(gains), seconds, 0.2, 0.5)
    made.menus[shape][structure] = {"product": menu, "output": menu}
    for candidate in made.combined(shape, structure):
        factors = [gains[options.options] for _, options in candidate.kernel_options]
        ratio = whole.ratio * (sum(factors) + 2 - len(factors)) / 2
        made.trials[shape][candidate] = recording.Trial("ok", round(ratio, 4), 0.8, 0.4, "", ())


def test_what_is_written_is_read(bench: tuple[Any, Any], tmp_path: Path) -> None:
    made = recorded(bench[0], tmp_path / "space.jsonl.gz")
    assert bench[0].Recording.read(tmp_path / "space.jsonl.gz") == made
    assert len(made.structures) == len(set(made.structures)) >= 200
    assert len(made.trials[0]) == len(made.structures) + 6 * 35


def test_the_search_itself_is_replayed(bench: tuple[Any, Any], tmp_path: Path) -> None:
    recorded(bench[0], tmp_path / "space.jsonl.gz")
    path = str(tmp_path / "space.jsonl.gz")
    spaces = bench[1].known(path, 400)
    digest, space = next(iter(spaces.items()))
    seen, ratio = bench[1].run(path, 400, digest, "tune, neighbours known", 0, Budget(trials=40))
    assert 20 < seen[-1].count <= 40
    assert ratio == min(s.ratio for s in seen) <= 1.05 * space.best
    assert bench[1].first(seen, space.beam[0], lambda s: s.seconds) < 60
    for way in ("random", "tpe"):
        others, best = bench[1].run(path, 400, digest, way, 0, Budget(trials=40))
        assert [s.count for s in others] == list(range(1, 41))
        assert best >= ratio


def test_kernels_that_were_timed_alone_add_up(bench: tuple[Any, Any], tmp_path: Path) -> None:
    made = recorded(bench[0], tmp_path / "space.jsonl.gz")
    measured = {c: made.trials[0].pop(c) for c in list(made.trials[0]) if c.kernel_options}
    composed = made.composed(0)
    assert composed.keys() == measured.keys()
    assert all(composed[c].ratio == pytest.approx(measured[c].ratio, abs=2e-4) for c in measured)
    kept = next(iter(measured))  # measured as a whole, it is not composed
    made.trials[0][kept] = bench[0].Trial("ok", 2 * measured[kept].ratio, 0.8, 0.4, "")
    made.write(tmp_path / "short.jsonl.gz")
    space = bench[1].recorded(tmp_path / "short.jsonl.gz", 400)[0]
    assert kept not in made.composed(0)
    assert space.checked == pytest.approx((2.0,), rel=0.01)
    assert len(space.trials) == len(made.structures) + len(measured)


def test_work_is_dealt_evenly_and_an_earlier_run_is_continued(bench: tuple[Any, Any], tmp_path: Path) -> None:
    import dealing

    made = recorded(bench[0], tmp_path / "space.jsonl.gz")
    whole, options = made.trials[0], made.menus[0]
    structures, begun = made.structures, next(iter(options))
    made.trials = [{c: whole[c] for c in structures[:40]}, {}, {}]
    made.menus = [{begun: options[begun]}, {}, {}]
    made.trials[0][structures[begun]] = whole[structures[begun]]
    work = dealing.Work(
        recording=made, shapes=range(3), begun=time.monotonic(), deadline_s=100.0, again_s=0.0, structures=24, units=2
    )
    first = work.next(0)
    assert (first.shape, first.unit) == (0, begun)  # enough structures, and this one was begun with
    left = work.keep_menus(0, begun, options[begun])
    assert set(left) == set(made.combined(0, begun))
    others = [work.next(0) for _ in range(12)]
    assert {task.shape for task in others} == {0, 1, 2}
    dealt = [c for task in others if task.shape == 1 for c in task.structures]
    assert len(dealt) == len(set(dealt)) > 0
    work.keep(0, {c: whole[c] for c in left})
    shape, again = work.again(0)
    assert shape == 0
    assert {DIRECT, min(left, key=lambda c: whole[c].ratio)} <= set(again)


def test_shapes_are_guessed(bench: tuple[Any, Any], tmp_path: Path) -> None:
    recorded(bench[0], tmp_path / "space.jsonl.gz")
    spaces = bench[1].recorded(tmp_path / "space.jsonl.gz", 400)
    console = Console(width=200)
    with console.capture() as said:
        bench[1].held_out(spaces, {item.key.digest: item.best for item in spaces}, console)
    assert "slower than the default by more than 2%: 0 of 3" in said.get()


def test_a_menu_has_the_way_from_the_default_to_the_best(bench: tuple[Any, Any]) -> None:
    a, b, c, d = (("UPCAST", axis, 4) for axis in range(4))
    times = {(a,): 1.0, (): 3.0, (a, b): 0.9, (a, c): math.inf, (a, b, c): 0.5, (a, d): 2.0, (d, c, b): 0.1}
    menu = bench[0].menu_of("L4 L4 L4", (a,), times, 4, 0.2, 0.5)
    assert menu.options == ((a,), (), (a, b), (a, b, c))
    assert menu.seconds == (1.0, 3.0, 0.9, 0.5)
    structure = Candidate.of("four_buffer", tile=2)
    for chosen in [(0, 0), (3, 0), (1, 2)]:
        made = bench[0].with_chosen(structure, {"XHAT": menu, "product": menu}, chosen)
        assert (tuple(bench[0].chosen_of(made, {"XHAT": menu, "product": menu})) or (0, 0)) == chosen
