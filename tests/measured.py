"""Real measurements to look at: what two machines found, kept in tests/data/measured.json.gz.

Run by path, `measured.py TARGET SOURCE...`, it writes that file anew from databases.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.measurement import Measurement
from autotune.store import Store
from autotune.winner import Winner
from db import open_store
from strategies.shape import ConvShape

KEPT = Path(__file__).parent / "data" / "measured.json.gz"


def measured() -> list[Winner]:
    """The winners."""
    return [Winner.from_json(data) for data in _content()["winners"]]


def fill(store: Store) -> list[Winner]:
    """Into a store: every measurement and the winner of every key."""
    for data in _content()["measurements"]:
        store.record(Measurement.from_json(data))
    winners = measured()
    for winner in winners:
        store.decide(winner)
    return winners


def many(winners: list[Winner], count: int) -> list[Winner]:
    """As many, of the given ones: each for another number of channels."""
    shapes = [winner.key.shape for winner in winners]
    return [
        replace(
            winners[at % len(winners)],
            key=replace(winners[at % len(winners)].key, shape=_wider(shapes[at % len(winners)], at // len(winners))),
        )
        for at in range(count)
    ]


def _content() -> Any:
    return json.loads(gzip.decompress(KEPT.read_bytes()))


def _wider(shape: ConvShape, step: int) -> ConvShape:
    return replace(shape, cin=shape.cin + step)


def main(target: str, *sources: str) -> None:
    measurements, winners = [], []
    for source in sources:
        with open_store(source) as store:
            for _, winner in store.winners(limit=10_000):
                winners.append(winner.to_json())
                measurements += [m.to_json() for m in store.measurements(winner.key)]
    text = json.dumps({"winners": winners, "measurements": measurements}, sort_keys=True)
    Path(target).write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
