"""The known shapes closest to one that is not known, for an answer that is more useful than "no"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autotune.neighbours import canonical
from autotune.winner import Winner
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape, JsonObject

NEAREST = 5
OTHER_DEVICE = 4.0
OTHER_OPTION = 8.0


def nearest(
    shape: ConvShape, policy: Policy, device: str, known: Iterable[tuple[int, Winner]], limit: int = NEAREST
) -> list[JsonObject]:
    """The closest known winners first: id, shape, device, distance and which fields of the shape differ."""
    scored = [(_distance(shape, policy, device, winner.key), winner_id, winner) for winner_id, winner in known]
    return [
        {
            "id": winner_id, "name": str(winner.key), "distance": round(distance, 3), "digest": winner.key.digest,
            "candidate": str(winner.candidate), "state": str(winner.state),
            "difference": _difference(shape, policy, winner.key),
        }
        for distance, winner_id, winner in sorted(scored, key=lambda item: item[:2])[:limit]
    ]  # fmt: skip


def _distance(shape: ConvShape, policy: Policy, device: str, key: ConvKey) -> float:
    """Powers of two between the sizes, and a fixed step for each thing that makes it another kind of convolution."""
    mine, theirs = canonical(shape), canonical(key.shape)
    sizes = _octaves((mine.batch, mine.cin, mine.cout), (theirs.batch, theirs.cin, theirs.cout))
    sizes += _octaves([math.prod(mine.spatial)], [math.prod(theirs.spatial)])
    options = ("kernel", "stride", "dilation", "groups", "dtype", "acc_dtype")
    others: float = sum(getattr(mine, name) != getattr(theirs, name) for name in options)
    others += 0.25 * (mine.padding != theirs.padding) + 0.5 * (policy != key.policy)
    return sizes + OTHER_OPTION * others + OTHER_DEVICE * (device != key.device.device)


def _octaves(mine: Sequence[int], theirs: Sequence[int]) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(mine, theirs, strict=True))


def _difference(shape: ConvShape, policy: Policy, key: ConvKey) -> JsonObject:
    asked = ConvKey(shape=shape, device=key.device, policy=policy)
    return {name: list(pair) for name, pair in asked.difference(key).items()}
