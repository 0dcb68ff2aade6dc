"""Bundles, and the JSON of the values in them: round trips, damage, tampering, merging."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import bundle
from autotune.bundle import BundleError, dump, load, merge, read_key
from autotune.measurement import Measurement
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey
from tests import any_value
from tests.values import a_key, a_winner

WINNERS = [a_winner(), a_winner(a_key(8), state="pinned"), a_winner(a_key(4), state="revoked")]

NESTED: list[Any] = []
for _ in range(100):
    NESTED = [NESTED]

# JSON values


@given(any_value.keys)
def test_a_key_survives_json(key: ConvKey) -> None:
    again = ConvKey.from_json(json.loads(json.dumps(key.to_json())))
    assert again == key
    assert again.digest == key.digest


@given(any_value.measurements)
def test_a_measurement_survives_json(measurement: Measurement) -> None:
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


@given(any_value.winners)
def test_a_winner_survives_json(winner: Winner) -> None:
    assert Winner.from_json(json.loads(json.dumps(winner.to_json()))) == winner


# Bundles


@settings(max_examples=50, deadline=None)
@given(st.lists(any_value.winners, max_size=3, unique_by=lambda winner: winner.key.digest))
def test_a_bundle_comes_back_as_it_was(winners: list[Winner]) -> None:
    assert load(dump(winners)) == winners


def test_a_bundle_is_a_json_document_with_a_line_per_winner() -> None:
    data = dump(WINNERS)
    document = json.loads(data)
    assert document.keys() == {"format", "version", "winners", "sha256"}
    assert (document["format"], document["version"]) == ("tinygrad-autotune-bundle", 1)
    assert document["winners"] == [winner.to_json() for winner in WINNERS]
    assert len(data.splitlines()) == len(WINNERS) + 2


def test_a_bundle_is_written_in_a_few_times_its_own_size() -> None:
    """A service with a hundred thousand winners hands out bundles of 85 MiB, to whoever may read."""
    winners = [a_winner(a_key(1 + number)) for number in range(1000)]
    tracemalloc.start()
    try:
        size = len(dump(winners))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * size


def test_whitespace_and_order_do_not_matter() -> None:
    document = json.loads(dump(WINNERS))
    assert load(json.dumps(dict(reversed(document.items())), indent=4).encode()) == WINNERS


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=len(dump(WINNERS).rstrip()) - 1))
def test_a_truncated_bundle(length: int) -> None:
    with pytest.raises(BundleError, match="expected JSON, found something else or only a part"):
        load(dump(WINNERS)[:length])


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=len(dump(WINNERS).rstrip()) - 1), st.integers(1, 255))
def test_a_bundle_with_a_changed_byte(position: int, change: int) -> None:
    data = bytearray(dump(WINNERS))
    data[position] ^= change
    try:
        found = load(bytes(data))
    except BundleError:
        return
    assert found == WINNERS  # one kind of white space for another


def test_a_tampered_bundle() -> None:
    with pytest.raises(BundleError, match="damaged or edited; export it again"):
        load(dump(WINNERS).replace(b'"tile":4', b'"tile":6', 1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "something"}, "found another JSON document"),
        ({"version": 2}, "found version 2, written by a newer release: upgrade"),
        ({"version": "1"}, "found version '1'"),
        ({"version": True}, "found version True"),
        ({"version": 0}, "found version 0"),
        ({"winners": {}}, "expected a list of winners, found dict"),
        ({"sha256": None}, "damaged or edited"),
    ],
)
def test_a_bundle_of_another_kind(change: dict[str, Any], expected: str) -> None:
    document = {**json.loads(dump(WINNERS)), **change}
    with pytest.raises(BundleError, match=expected):
        load(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b"NaN"])
def test_what_is_no_bundle(data: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        load(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", None), ("key", {}), ("key", {"version": 9}), ("candidate", "direct"), ("candidate", {"strategy": 1}),
        ("default", []), ("state", "best"), ("state", None), ("time_s", 1.0), ("time_s", [1, 2]), ("time_s", "123"),
        ("ratio", [1, 2, None]), ("ratio", [1, 2, True]), ("ratio", [1, 2, 10**400]), ("default_time_s", {"median": 1}),
        ("error", "small"), ("workspace_bytes", -1), ("workspace_bytes", 1.5), ("workspace_bytes", True),
        ("times_s", []), ("provenance", "me"), ("decided_at", "today"), ("unknown", 1),
        ("ratio", [0, 1, 2]), ("time_s", [-1, 1, 2]), ("times_s", {"direct": "1 ms"}), ("times_s", {"direct": {}}),
        ("decided_at", 1e300), ("decided_at", -1), ("provenance", {"x": NESTED}),
        ("key", {**a_key().to_json(), "policy": {"max_error": 10**400}}),
    ],
)  # fmt: skip
def test_a_winner_of_the_wrong_types(field: str, value: object) -> None:
    winner = {**a_winner().to_json(), field: value}
    with pytest.raises(BundleError, match="expected a winner, found one that cannot be read") as caught:
        load(_signed([winner]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["key", "candidate", "state", "time_s", "default", "ratio"])
def test_a_winner_without_a_field(field: str) -> None:
    winner = a_winner().to_json()
    del winner[field]
    with pytest.raises(BundleError, match=field):
        load(_signed([winner]))


def test_half_a_character() -> None:
    """No page and no answer could show it: one such name would take every list that it is in with it."""
    winner = a_winner().to_json()
    winner["key"]["device"]["arch"] = "\ud800"
    with pytest.raises(BundleError, match="surrogates not allowed"):
        load(_signed([winner]))


def test_nested_as_deep_as_can_be_parsed() -> None:
    for depth in range(900, 1010):
        with pytest.raises(BundleError):
            load(
                b'{"format": "%s", "version": 1, "winners": [' % bundle.FORMAT.encode()
                + b"[" * depth
                + b"]" * depth
                + b"]}"
            )


def test_infinity_in_disguise() -> None:
    data = dump([a_winner()]).replace(b'"decided_at":1.0', b'"decided_at":1e999')
    with pytest.raises(BundleError, match="1e999 is too large a number"):
        load(data)


def test_two_winners_of_one_key() -> None:
    with pytest.raises(BundleError, match="found two for 1x64x56x56"):
        dump([a_winner(), a_winner(tile=2)])
    with pytest.raises(BundleError, match="found two for 1x64x56x56"):
        load(_signed([a_winner().to_json(), a_winner(tile=2).to_json()]))


def test_numbers_that_json_has_not() -> None:
    with pytest.raises(BundleError, match="finite"):
        dump([dataclasses.replace(a_winner(), error=float("inf"))])


# Files


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    bundle.write(path, WINNERS[:1])
    bundle.write(path, WINNERS)
    assert bundle.read(path) == WINNERS
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "winners.json"
    with pytest.raises(BundleError, match="No such file or directory; name another path"):
        bundle.write(path, WINNERS)
    with pytest.raises(BundleError, match="No such file or directory; name another path"):
        bundle.read(path)
    with pytest.raises(BundleError, match="Is a directory"):
        bundle.write(tmp_path, WINNERS)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """Somebody who may write anywhere, and exports to a device, would take it from every program on the machine."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(BundleError, match="found a device or a pipe there: name another path"):
            bundle.write(path, WINNERS)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    path.write_bytes(dump(WINNERS)[:-20])
    with pytest.raises(BundleError, match=r"winners\.json: expected JSON"):
        bundle.read(path)


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    bundle.write(path, WINNERS)
    program = (
        "import sys; from autotune import bundle; winners = bundle.read(sys.argv[1])\n"
        "while True: bundle.write(sys.argv[1], winners)"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=root) as writer:
        enough = threading.Event()
        timer = threading.Timer(0.5, enough.set)
        timer.start()
        while not enough.is_set():
            assert bundle.read(path) == WINNERS
        writer.kill()
        timer.join()
    assert bundle.read(path) == WINNERS


# Merging


def test_what_was_not_there_is_taken() -> None:
    assert merge(None, a_winner()) == a_winner()


@pytest.mark.parametrize("held", [WinnerState.PINNED, WinnerState.REVOKED])
def test_what_a_person_said_here_stays(held: WinnerState) -> None:
    assert merge(a_winner(state=held), a_winner(decided_at=2.0)) is None
    assert merge(a_winner(state=held), a_winner(decided_at=2.0, state="pinned")) is None


def test_the_newer_decision_wins() -> None:
    old, new = a_winner(tile=2), a_winner(decided_at=2.0)
    assert merge(old, new) == new
    assert merge(new, old) is None
    assert merge(old, old) is None


@pytest.mark.parametrize("state", ["verified", "provisional"])
def test_a_guess_gives_way_to_a_measurement(state: str) -> None:
    guess, measured = a_winner(decided_at=2.0, state="guess"), a_winner(state=state)
    assert merge(guess, measured) == measured
    assert merge(measured, guess) is None
    assert merge(a_winner(state="guess"), guess) == guess


@pytest.mark.parametrize("state", ["pinned", "revoked"])
def test_what_a_person_said_elsewhere_of_the_same_decision_is_taken(state: str) -> None:
    assert merge(a_winner(), a_winner(state=state)) == a_winner(state=state)
    assert merge(a_winner(decided_at=2.0), a_winner(state=state)) is None


def _signed(winners: list[Any]) -> bytes:
    """A bundle whose checksum holds, whatever is in it."""
    content = {"format": bundle.FORMAT, "version": bundle.VERSION, "winners": winners}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def test_a_banned_candidate_is_kept_out_and_another_let_in() -> None:
    banned = a_winner(state="banned")
    assert merge(banned, a_winner(decided_at=2.0)) is None
    assert merge(banned, a_winner(decided_at=2.0, tile=2)) == a_winner(decided_at=2.0, tile=2)
    assert merge(a_winner(), banned) == banned


def test_a_signature_is_asked_for_and_checked() -> None:
    key, other = b"k" * 32, b"o" * 32
    signed, plain = dump([a_winner()], key=key), dump([a_winner()])
    assert load(signed, key=key) == load(signed) == load(plain) == [a_winner()]
    with pytest.raises(BundleError, match="found none: export it with --key"):
        load(plain, key=key)
    with pytest.raises(BundleError, match="do not trust it"):
        load(signed, key=other)
    edited = json.loads(dump([a_winner(tile=2)])) | {"hmac_sha256": json.loads(signed)["hmac_sha256"]}
    with pytest.raises(BundleError, match="do not trust it"):
        load(json.dumps(edited).encode(), key=key)


def test_a_key_that_can_be_guessed_is_none(tmp_path: Path) -> None:
    path = tmp_path / "team.key"
    path.write_text("secret\n")
    with pytest.raises(BundleError, match="openssl rand -hex 32"):
        read_key(path)
    path.write_text("x" * 64 + "\n")
    assert read_key(path) == b"x" * 64
    with pytest.raises(BundleError, match="name another path"):
        read_key(tmp_path / "missing")
