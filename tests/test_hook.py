"""The hook in a user's program: winners from every source are applied.

What the sources check of what they read is tested with them; here it is what a program sees.
"""

from __future__ import annotations

import warnings
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from graphs import Array, counted, kernel_count, normal, relative
from hooked import (  # noqa: F401 - fixtures
    DIRECT,
    FOUR,
    FUSED,
    SOURCES,
    W,
    X,
    conv,
    count,
    exported,
    patient_sources,
    put_back,
    sqlite,
    tinygrad_alone,
    winner,
)
from http_service import service
from served import served as application
from tinygrad import Tensor, TinyJit
from tinygrad.helpers import Context, GlobalCounters

import autotune
from autotune import decisions, runtime
from autotune.decisions import Winners
from autotune.report import Stats
from autotune.runtime import NoSourceError
from autotune.sources import SourceError
from autotune.winner import Winner
from strategies.candidate import Candidate
from strategies.key import Policy


@pytest.mark.parametrize("kind", SOURCES)
def test_a_winner_is_applied(kind: str, tmp_path: Path, alone: Array, patient: None) -> None:
    with SOURCES[kind](tmp_path, winner()) as source:
        autotune.install(source)
        found: list[Array] = []
        did = counted(lambda: found.append(conv().numpy()))
        assert (did.convolutions, did.hits, did.applied, did.misses, did.fallbacks) == (1, 1, 1, 0, 0)
        assert did.seconds > 0
        assert relative(found[0], alone) < 1e-4
        assert count() == 4
        did = counted(lambda: kernel_count(Tensor.empty(1, 4, 20, 20).conv2d(W)))
        assert (did.convolutions, did.hits, did.misses) == (1, 0, 1)
        autotune.uninstall()
        assert count() == 1


def test_a_winner_of_the_service_itself(tmp_path: Path, patient: None) -> None:
    with sqlite(tmp_path, winner()) as database, application(Path(database)) as running:
        autotune.install(running.url)
        assert count() == 4


@pytest.mark.parametrize("name", ["tensor_winograd", "direct"])
def test_the_defaults_as_winners(name: str, tmp_path: Path) -> None:
    with exported(tmp_path, winner(Candidate.of(name))) as source, autotune.tuned(source):
        did = counted(count)
        assert (did.hits, did.applied) == (1, int(name != "direct"))


@pytest.mark.parametrize(
    ("state", "guesses", "applied"),
    [("verified", False, 1), ("provisional", False, 1), ("pinned", False, 1), ("revoked", False, 0),
     ("revoked", True, 0), ("guess", False, 0), ("guess", True, 1)],
)  # fmt: skip
def test_states(state: str, guesses: bool, applied: int, tmp_path: Path) -> None:
    with exported(tmp_path, winner(state=state)) as source, autotune.tuned(source, guesses=guesses):
        did = counted(count)
    assert (did.applied, did.misses, did.fallbacks) == (applied, 1 - applied, 0)


def test_a_winner_of_another_policy_or_other_flags(tmp_path: Path) -> None:
    with exported(tmp_path, winner(max_error=1e-5)) as source:
        with autotune.tuned(source):
            assert count() == 1
        with autotune.tuned(source, policy=Policy(max_error=1e-5)):
            assert count() == 4
        with autotune.tuned(source, policy=Policy(max_error=1e-5)), Context(BEAM=2):
            assert count() == 1  # tuned without BEAM: it is promised nothing


def test_the_variable_is_only_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSourceError, match="give a URL or a file to install"):
        autotune.install()
    with pytest.raises(NoSourceError, match="give a URL or a file to tuned"), autotune.tuned():
        pass
    with exported(tmp_path, winner()) as source:
        monkeypatch.setenv("AUTOTUNE_SOURCE", source)
        assert count() == 1  # nothing acts on a program that asked for nothing
        autotune.install()
        assert count() == 4


def test_an_address_that_is_none() -> None:
    with pytest.raises(SourceError, match="expected http://"):
        autotune.install("ftp://somewhere/x")
    assert runtime._stack == []


def test_where_nothing_is_to_be_replaced_a_graph_is_only_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewriting all of it, to see more, is most of what the hook would cost."""

    def rewritten(*_: object, **__: object) -> None:
        raise AssertionError("the graph was rewritten")

    monkeypatch.setattr("strategies.graph.rewrite.graph_rewrite", rewritten)
    with exported(tmp_path, winner(DIRECT)) as source, autotune.tuned(source):
        did = counted(lambda: kernel_count(conv().relu().conv2d(W).relu().conv2d(W, padding=1)))
    assert (did.convolutions, did.hits, did.misses, did.fallbacks) == (3, 1, 2, 0)


def test_blocks_within_blocks(tmp_path: Path) -> None:
    with exported(tmp_path, winner()) as source:
        autotune.install(source)
        with autotune.forced("single_fused"):
            assert count() == 1
            with autotune.tuned(source):
                assert count() == 4
            assert count() == 1
        assert count() == 4
        (tmp_path / "second").mkdir()
        with exported(tmp_path / "second", winner(Candidate.of("deferred_mhat"))) as other:
            autotune.install(other)  # in place of the first
            assert count() == 3
        autotune.uninstall()
        assert count() == 1


def test_stats_add_up(tmp_path: Path) -> None:
    with exported(tmp_path, winner()) as source, autotune.tuned(source):
        y = conv() + X.conv2d(normal(4, 4, 5, 5), padding=2) + X.conv2d(W[:, :, :1, :1])
        did = counted(lambda: kernel_count(y))
    assert (did.convolutions, did.hits, did.applied, did.misses, did.fallbacks) == (3, 1, 1, 2, 0)
    assert isinstance(autotune.stats(), Stats)


def test_forced_leaves_what_it_does_not_apply_to() -> None:
    with autotune.forced("tensor_winograd"):
        did = counted(lambda: kernel_count(X.conv2d(W, stride=2)))
    assert (did.convolutions, did.hits, did.misses, did.fallbacks) == (1, 0, 1, 0)


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_winners_that_change_in_mid_process(kind: str, tmp_path: Path) -> None:
    """The next schedule has them, although tinygrad's cache is warm."""
    with SOURCES[kind](tmp_path, winner()) as source:
        autotune.install(source)
        assert [count(), count()] == [4, 4]
        with SOURCES[kind](tmp_path, winner(FUSED, decided_at=2.0)):
            assert count() == 1
        with SOURCES[kind](tmp_path, winner(DIRECT, decided_at=3.0)):
            assert count() == 1
        with SOURCES[kind](tmp_path, winner(FOUR, decided_at=4.0)):
            assert count() == 4


def test_winners_of_a_service_that_change(patient: None) -> None:
    answers: list[Winner] = []

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        return {"winners": {each.key.digest: each.to_json() for each in answers}, "digests": []}

    now = [0.0]
    with service(answer) as url:
        autotune.install(url)
        source = runtime._stack[0][0]
        assert isinstance(source, Winners)
        source._source._clock = lambda: now[0]  # type: ignore[attr-defined]
        assert count() == 1
        answers.append(winner())
        assert count() == 1  # known for the time of a window
        now[0] += 6
        assert count() == 4


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_a_file_that_comes_later(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was scheduled meanwhile is scheduled again."""
    monkeypatch.setattr(decisions, "FIRST_BACKOFF_S", 0.0)
    missing = tmp_path / {"sqlite": "autotune.db", "json": "winners.json"}[kind]
    autotune.install(missing)
    with pytest.warns(RuntimeWarning, match="winners cannot be read, tinygrad goes on alone"):
        assert count() == 1
    assert count() == 1
    with SOURCES[kind](tmp_path, winner()):
        assert count() == 4


def test_a_service_that_comes_back(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    monkeypatch.setattr(decisions, "FIRST_BACKOFF_S", 0.0)
    up, now = [False], [0.0]

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        return {"winners": {winner().key.digest: winner().to_json()}, "digests": []} if up[0] else b"not yet"

    with service(answer) as url, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        autotune.install(url)
        looked = runtime._stack[0][0]
        assert isinstance(looked, Winners)
        looked._source._clock = lambda: now[0]  # type: ignore[attr-defined]
        assert count() == 1
        up[0] = True
        now[0] += 6
        assert count() == 4
    assert len(said) == 1


def test_a_captured_jit_keeps_its_lowering() -> None:
    run = TinyJit(lambda x: x.conv2d(W, padding=1).realize())

    def kernels() -> int:
        before = GlobalCounters.kernel_count
        run(X)
        return GlobalCounters.kernel_count - before

    with Context(NOOPT=1):
        with autotune.forced("four_buffer"):
            assert [kernels() for _ in range(4)] == [4, 4, 4, 4]
        assert kernels() == 4
        with autotune.forced("inline_transforms"):
            assert kernels() == 4
            run.reset()
            assert [kernels() for _ in range(3)] == [2, 2, 2]
        autotune.uninstall()
        run.reset()
        assert [kernels() for _ in range(3)] == [1, 1, 1]
