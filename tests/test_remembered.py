"""What the hook lowered once is not lowered again by the next process; a cache in disorder changes nothing."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tinygrad.codegen as codegen
from hooked import FOUR, conv, exported, put_back, winner
from tinygrad.codegen import to_program_cache
from tinygrad.engine.realize import compile_linear
from tinygrad.helpers import Context
from tinygrad.uop.ops import Ops, UOp

import autotune
from strategies.candidate import Candidate
from strategies.graph import remembered
from strategies.graph.program import schedule

__all__ = ["put_back"]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """In place of tinygrad's."""
    kept: dict[str, bytes] = {}
    monkeypatch.setattr(remembered, "diskcache_get", lambda _, digest: kept.get(digest))
    monkeypatch.setattr(remembered, "diskcache_put", lambda _, digest, value: kept.update({digest: value}))
    return kept


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Kernels that tinygrad has lowered since it was last asked, as in a new process: it forgets what it compiled."""
    original, times = codegen.full_rewrite_to_sink, []
    monkeypatch.setattr(codegen, "full_rewrite_to_sink", lambda *a, **o: times.append(1) or original(*a, **o))

    def count() -> int:
        found = len(times)
        times.clear()
        to_program_cache.clear()
        remembered._kept.clear()
        return found

    count()
    return count


@pytest.fixture(autouse=True)
def with_a_compile_cache() -> Iterator[None]:
    with Context(CCACHE=1, PARALLEL=0, DEBUG=0, VIZ=0):
        yield


def test_a_second_process_lowers_nothing(tmp_path: Path, cache: dict[str, bytes], lowered: Callable[[], int]) -> None:
    plain = conv().numpy()
    assert lowered() > 0
    assert not cache, "what the hook has not rewritten is tinygrad's own affair"
    for frozen in (False, True):
        cache.clear()
        with exported(tmp_path, winner(FOUR, frozen_weights=frozen)) as source:
            with autotune.tuned(source, frozen_weights=frozen):
                first = conv().numpy()
                kernels = lowered()
                assert kernels == len(cache) > 1
            with autotune.tuned(source, frozen_weights=frozen):
                again = conv().numpy()
                assert lowered() == 0
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(first, plain, rtol=1e-4, atol=1e-4)


def test_what_was_lowered_without_the_hook_is_kept_with_the_rest(
    tmp_path: Path, cache: dict[str, bytes], lowered: Callable[[], int]
) -> None:
    """A kernel that is the same in a graph without winners, scheduled first in the same process."""
    with exported(tmp_path, winner(FOUR)) as source:
        conv().mean().numpy()
        with autotune.tuned(source):
            kernels = len(set(conv().mean().schedule_linear().src))
            conv().mean().numpy()
            assert len(cache) == kernels
        lowered()
        with autotune.tuned(source):
            conv().mean().numpy()
        assert lowered() == 0


@pytest.mark.parametrize("broken", [b"", b"no pickle", zlib.compress(pickle.dumps(UOp(Ops.NOOP)))])
def test_a_cache_in_disorder_is_made_anew(
    broken: bytes, tmp_path: Path, cache: dict[str, bytes], lowered: Callable[[], int]
) -> None:
    with exported(tmp_path, winner(FOUR)) as source:
        with autotune.tuned(source):
            first = conv().numpy()
        kernels, good = lowered(), dict(cache)
        cache.update(dict.fromkeys(cache, broken))
        with autotune.tuned(source):
            np.testing.assert_array_equal(conv().numpy(), first)
    assert lowered() == kernels
    assert cache.keys() == good.keys()
    assert broken not in cache.values()


def test_a_cache_that_cannot_be_used_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowered: Callable[[], int]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(remembered, "diskcache_get", refuse)
    monkeypatch.setattr(remembered, "diskcache_put", refuse)
    before = autotune.stats()
    with exported(tmp_path, winner(FOUR)) as source, autotune.tuned(source):
        conv().numpy()
    assert lowered() > 1
    assert autotune.stats().fallbacks == before.fallbacks


@pytest.mark.parametrize("flags", [{"CCACHE": 0}, {"BEAM": 1}, {"DEBUG": 3}])
def test_it_is_left_alone_where_it_would_be_in_the_way(
    flags: dict[str, int], cache: dict[str, bytes], lowered: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    linear = schedule(conv(), Candidate.of("direct"))
    with Context(**flags), remembered.remembered(linear):
        compile_linear(linear, beam=0)
    assert lowered() == 1
    assert not cache
