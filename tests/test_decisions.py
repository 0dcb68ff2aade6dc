"""What the hook decides by: remembered, asked for once per graph, and a source that fails is left alone for a while."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from autotune import bundle
from autotune.decisions import FIRST_BACKOFF_S, LAST_BACKOFF_S, POLL_S, Winners
from autotune.snapshot import Snapshot
from autotune.sources import SourceError
from autotune.winner import Winner
from strategies.key import ConvKey
from tests.values import a_key, a_winner

KEYS = [a_key(4), a_key(8), a_key(16)]


class Scripted:
    """A source that knows what it is told to, and counts how often it is asked."""

    def __init__(self, *winners: Winner) -> None:
        self.known = {winner.key.digest: winner for winner in winners}
        self.down = False
        self.changes = 0
        self.asked: list[int] = []

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        self.asked.append(len(keys))
        if self.down:
            raise SourceError("expected an answer, found none: start it")
        return {key.digest: self.known[key.digest] for key in keys if key.digest in self.known}

    def version(self) -> object:
        return self.changes

    def close(self) -> None:
        """Nothing is held."""


class Watched:
    """Winners over a scripted source, a clock that is set, and what was warned of."""

    def __init__(self, source: Scripted, snapshot: Path | None = None) -> None:
        self.now_s, self.said = 0.0, list[str]()
        self.winners = Winners(
            source, guesses=False, warn=lambda kind, message: self.said.append(f"{kind}: {message}"), where="here",
            snapshot=Snapshot(snapshot) if snapshot else None, clock=lambda: self.now_s,
        )  # fmt: skip

    def origins(self, *keys: ConvKey) -> list[str]:
        return [answer.origin for answer in self.winners.answers(keys)]


def test_one_question_for_all_keys_of_a_graph_and_none_after() -> None:
    source = Scripted(a_winner(KEYS[0]))
    watched = Watched(source)
    yes, no = "verified winner of here", "no winner is known in here"
    assert watched.origins(*KEYS, KEYS[0]) == [yes, no, no, yes]
    watched.origins(KEYS[1], KEYS[0])
    assert source.asked == [3]


def test_a_change_is_seen_at_the_next_poll() -> None:
    source = Scripted()
    watched = Watched(source)
    watched.winners.refresh()
    watched.origins(KEYS[0])
    source.known = {KEYS[0].digest: a_winner(KEYS[0])}
    source.changes += 1
    assert not watched.winners.refresh()
    watched.now_s += POLL_S
    assert watched.winners.refresh()
    assert watched.origins(KEYS[0]) == ["verified winner of here"]


def test_a_source_that_fails_is_left_alone_ever_longer() -> None:
    source = Scripted(a_winner(KEYS[0]))
    source.down = True
    watched = Watched(source)
    assert watched.origins(KEYS[0]) == ["here cannot be read"]
    times, until = [0.0], 4 * LAST_BACKOFF_S
    while watched.now_s < until:
        watched.now_s += 1.0
        asked = len(source.asked)
        assert not watched.winners.refresh()
        watched.origins(a_key(32 + int(watched.now_s)))  # other graphs come
        if len(source.asked) > asked:
            times.append(watched.now_s)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits[:4] == [FIRST_BACKOFF_S * 2**n for n in range(4)]
    assert waits[-1] == LAST_BACKOFF_S
    source.down = False
    watched.now_s += LAST_BACKOFF_S
    assert watched.winners.refresh()  # what was scheduled meanwhile is to be scheduled again
    assert watched.origins(KEYS[0]) == ["verified winner of here"]


# The snapshot


def test_a_snapshot_answers_while_the_source_does_not(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    Watched(Scripted(a_winner(KEYS[0]), a_winner(KEYS[1])), path).origins(*KEYS)
    assert {winner.key for winner in bundle.read(path)} == set(KEYS[:2])
    down = Scripted()
    down.down = True
    offline = Watched(down, path)
    assert offline.origins(KEYS[2], KEYS[0]) == ["here cannot be read", "verified winner of the snapshot of here"]
    assert offline.winners.answers([KEYS[0]])[0].candidate == a_winner(KEYS[0]).candidate
    assert len(offline.said) == 1


def test_a_snapshot_follows_its_source(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    source = Scripted(a_winner(KEYS[0]), a_winner(KEYS[1]))
    watched = Watched(source, path)
    watched.origins(KEYS[0])
    watched.origins(KEYS[1])
    assert len(bundle.read(path)) == 2
    source.known = {KEYS[1].digest: a_winner(KEYS[1], state="revoked")}
    source.changes += 1
    watched.now_s += POLL_S
    watched.winners.refresh()
    assert [winner.key for winner in bundle.read(path)] == [KEYS[1]]
    source.down = True
    assert Watched(source, path).origins(KEYS[1]) == ["here cannot be read"]  # withdrawn is withdrawn, offline too


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": "tinygrad-autotune-bundle", "version": 1, "winners": ['])
def test_a_snapshot_half_written(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    path.write_bytes(content)
    source = Scripted(a_winner(KEYS[0]))
    source.down = True
    watched = Watched(source, path)
    assert watched.origins(KEYS[0]) == ["here cannot be read"]
    assert [line.partition(":")[0] for line in watched.said] == ["source", "snapshot"]
    source.down = False
    assert Watched(source, path).origins(KEYS[0]) == ["verified winner of here"]
    assert len(bundle.read(path)) == 1


def test_a_snapshot_that_cannot_be_written(tmp_path: Path) -> None:
    watched = Watched(Scripted(a_winner(KEYS[0])), tmp_path / "nowhere" / "snapshot.json")
    assert watched.origins(KEYS[0]) == ["verified winner of here"]
    assert "the snapshot of winners is not written" in watched.said[0]
