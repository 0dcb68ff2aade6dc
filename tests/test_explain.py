"""`autotune explain`, from a real tuned winner to the table and the HTTP answer."""

from __future__ import annotations

import fcntl
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from memory_store import MemoryStore
from served import key_of, served, until, winner_of
from tinygrad.helpers import Context
from values import a_winner

from api.cli import main
from api.commands.explain import show, sources
from api.console import Console
from api.explanations import Explanations
from autotune.device_lock import DeviceLock
from autotune.explanation import Explanation, RunnerUp, runner_up
from autotune.inspection import Inspection, KernelCost, ProgramCost
from autotune.job import Budget
from autotune.local_runner import LocalRunner
from autotune.peak_cache import PeakCache
from autotune.roofline import Peak, convolution_floor
from autotune.task import TaskError, run_task
from autotune.tune import Settings, tune
from autotune.winner import Interval, Winner
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey
from strategies.registry import get_strategy
from strategies.shape import ConvShape

SHAPE = ("1x8x16x16", "8x8x3x3")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shape, tuned with a few candidates."""
    path = tmp_path_factory.mktemp("explain") / "tuned.db"
    key = ConvKey(shape=ConvShape.parse(*SHAPE, padding=1), device=describe_device("CPU"))
    with open_store(str(path)) as store, LocalRunner("CPU") as runner:
        tune(key, store=store, runner=runner, budget=Budget(seconds=None, trials=3), settings=Settings(final_rounds=9))
    return path


@pytest.fixture
def own_peaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibration that is there already: a second or two less."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    peak = Peak(operations_per_s=1e12, streams=((1 << 28, 1e12),), method="test")
    PeakCache.of_user().keep(describe_device("CPU"), peak)
    return tmp_path


@pytest.mark.usefixtures("own_peaks")
def test_explain_prints_kernels_and_runner_up(
    database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(database))
    monkeypatch.delenv("AUTOTUNE_URL", raising=False)
    assert main(["explain", *SHAPE, "--padding", "1", "--json", "--source"]) == 0
    said = json.loads(capsys.readouterr().out)
    for program in filter(None, (said["winner"], said["default"])):
        kernels = program["kernels"]
        assert all(kernel["time_s"] > 0 and kernel["operations"] > 0 and kernel["bytes"] > 0 for kernel in kernels)
        assert all("void" in kernel["source"] for kernel in kernels)
        for kernel in kernels:
            floor = max(kernel["operations"], kernel["bytes"]) / 1e12
            assert kernel["share"] == pytest.approx(floor / kernel["time_s"])
    excess = [kernel["time_s"] - kernel["floor_s"] for kernel in said["winner"]["kernels"]]
    assert said["winner"]["attack"] == excess.index(max(excess))
    assert said["runner_up"]["interval"][1] <= said["runner_up"]["ratio"] <= said["runner_up"]["interval"][2]
    assert said["floor"]["saving"] == 4.0

    show(said, Console())
    text = capsys.readouterr().out
    assert "next to attack" in text
    assert "runner-up: " in text
    assert "void" not in text
    assert sources(said).count("void") >= len(said["winner"]["kernels"])


def test_nothing_known_is_one_line(
    database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(database))
    assert main(["explain", "1x8x17x17", "8x8x3x3"]) == 1
    assert "no winner for" in capsys.readouterr().err


def test_the_service_says_when_it_cannot_look(tmp_path: Path) -> None:
    """The winner is one of another machine's CPU: the child refuses, the answer is a problem document."""
    with open_store(str(tmp_path / "other.db")) as store:
        winner_id = store.decide(winner_of(key_of()))
    with served(tmp_path / "other.db") as service:
        assert service.http.get(f"/winners/{winner_id}/kernels").status_code == 404  # reading costs no device time
        answer = service.http.post(f"/winners/{winner_id}/kernels", timeout=60)
        assert answer.status_code == 409
        assert "another device than the key's" in answer.json()["detail"]
        assert service.http.get("/winners/999/kernels").status_code == 404


def test_a_service_ends_while_kernels_wait_for_the_device(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "a.db")) as store:
        winner_id = store.decide(winner_of(key_of()))
    lock = DeviceLock("CPU")
    turn = lock.path.with_suffix(".turn")

    def waits() -> bool:
        with turn.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    with served(tmp_path / "a.db") as service, ThreadPoolExecutor(1) as threads, lock.held(timeout_s=60, on_wait=print):
        asked = threads.submit(service.http.post, f"/winners/{winner_id}/kernels", timeout=60)
        until(waits, 60)
        service.process.terminate()
        service.process.wait(60)
        assert asked.result().status_code == 503
        assert service.stop() == 0
    lock.close()


def an_explanation(store: object, winner: Winner, **_: object) -> Explanation:
    kernel = KernelCost(
        name="r_4", role="product", time_s=2e-3, operations=10, bytes=10, floor_s=1e-3, options=(), source_bytes=1
    )
    cost = ProgramCost(
        candidate=winner.candidate, time_s=Interval(median=2e-3, low=1e-3, high=3e-3), compile_s=0.1,
        workspace_bytes=0, kernels=(kernel,),
    )  # fmt: skip
    peak = Peak(operations_per_s=1e9, streams=((1, 1e9),))
    assert Inspection(programs=(ProgramCost.from_json(cost.to_json()),), peak=peak).programs == (cost,)
    return Explanation(
        decision=winner, winner=cost, default=None, floor=convolution_floor(winner.key.shape, peak), peak=peak,
        runner_up=None,
    )  # fmt: skip


def test_an_explanation_is_made_once() -> None:
    made: list[Winner] = []

    def make(store: MemoryStore, winner: Winner, **options: object) -> Explanation:
        made.append(winner)
        return an_explanation(store, winner, **options)

    explanations, store = Explanations(make, PeakCache(None)), MemoryStore()
    first, again = (explanations.of(store, a_winner()) for _ in range(2))
    assert first is again
    explanations.of(store, a_winner(tile=2))
    assert len(made) == 2


def test_runner_up_from_medians_alone() -> None:
    """A winner that came in a bundle: its measurements are elsewhere."""
    winner = winner_of(a_winner().key)
    second = runner_up(MemoryStore(), winner)
    assert second == RunnerUp(name="direct", time_s=2e-3, ratio=2.0, interval=None)


def test_a_task_that_is_none_is_one_line() -> None:
    with pytest.raises(TaskError, match="KeyError"):
        run_task("nonsense", {}, describe_device("CPU"), timeout_s=30)


@pytest.mark.parametrize(
    ("strategy", "params", "size", "roles"),
    [
        ("direct", {}, 8, ["convolution"]),
        ("hybrid_grid", {}, 8, ["XHAT", "GHAT", "product", "output"]),
        ("hybrid_grid", {}, 7, ["XHAT", "GHAT", "product", "tiles", "output"]),
        ("deferred_mhat", {"tile": 2}, 8, ["XHAT", "GHAT", "output"]),
        ("inline_transforms", {}, 8, ["product", "output"]),
        ("single_fused", {}, 8, ["convolution"]),
    ],
)
def test_roles(strategy: str, params: dict[str, int], size: int, roles: list[str]) -> None:
    candidate: Candidate = get_strategy(strategy).candidate(params)
    with Context(NOOPT=1):
        program = Program(ConvShape.of((1, 2, size, size), (2, 2, 3, 3), padding=1), candidate, "CPU")
    assert sorted(kernel.role for kernel in program.kernels) == sorted(roles)
    assert len(program.run_kernels()) == len(roles)
