"""What only pretends to be a device never meets the real one: not in a key, not in a bundle, not in the hook."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from api.tables import winners_csv
from autotune.bundle import FORMAT, VERSION, BundleError, dump, load
from autotune.decisions import Winners
from autotune.winner import Winner
from strategies.key import ConvKey, DeviceSpec
from tests.values import CPU, a_key, a_winner

METAL = DeviceSpec(device="METAL", arch="Apple9 Apple M3 Max", renderer="MetalRenderer", cores=40, tinygrad="0.14.0")
PRETENDED = replace(METAL, simulated="a stand-in")


def test_it_is_another_device_and_says_so() -> None:
    assert a_key(device=PRETENDED).digest != a_key(device=METAL).digest
    assert "simulated" not in METAL.identity()
    assert DeviceSpec.from_json(json.loads(json.dumps(PRETENDED.to_json()))) == PRETENDED
    assert a_key(device=PRETENDED).difference(a_key(device=METAL)) == {"device.simulated": ("a stand-in", None)}
    assert (METAL.title, PRETENDED.title) == ("METAL", "METAL (simulated)")
    assert ",METAL (simulated)," in winners_csv([(1, a_winner(a_key(device=PRETENDED)))])


def test_its_winners_are_never_exported() -> None:
    real, pretended = a_winner(), a_winner(a_key(device=PRETENDED))
    assert load(dump([pretended, real])) == [real]


def test_nor_imported_from_a_file_made_by_hand() -> None:
    winners = [a_winner(a_key(device=PRETENDED)).to_json()]
    document = {"format": FORMAT, "version": VERSION, "winners": winners}
    document["sha256"] = hashlib.sha256(
        json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    with pytest.raises(BundleError, match="expected winners measured on a device, found one timed on a stand-in"):
        load(json.dumps(document).encode())


class Confused:
    """A source that answers every question with the same winner."""

    def __init__(self, winner: Winner) -> None:
        self._winner = winner

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        return {key.digest: self._winner for key in keys}

    def version(self) -> object:
        return 1

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("of", "asked"), [(PRETENDED, METAL), (METAL, PRETENDED), (PRETENDED, CPU)])
def test_the_hook_applies_none_to_another(of: DeviceSpec, asked: DeviceSpec) -> None:
    winners = Winners(Confused(a_winner(a_key(device=of))), guesses=True, warn=lambda *_: None)
    assert [a.candidate for a in winners.answers([a_key(device=asked)])] == [None]
    assert [a.candidate for a in winners.answers([a_key(device=of)])] != [None]
