"""Places: where winners were measured. A device with everything that makes it another one in a key."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from autotune.winner import Winner
from strategies.key import DeviceSpec


def place_id(device: DeviceSpec) -> str:
    """12 hex digits, for URLs."""
    return hashlib.sha256(json.dumps(device.identity(), sort_keys=True).encode()).hexdigest()[:12]


def place_name(device: DeviceSpec) -> str:
    """The device with architecture, tinygrad's version and flags."""
    version = f"tinygrad {device.tinygrad}" if device.tinygrad else ""
    flags = " ".join(f"{name}={value}" for name, value in device.flags)
    return " · ".join(filter(None, [device.device, device.arch, version, flags]))


def places(winners: Sequence[Winner]) -> dict[str, DeviceSpec]:
    """By id, the one with the most winners first."""
    counts = Counter(place_id(winner.key.device) for winner in winners)
    devices = {place_id(winner.key.device): winner.key.device for winner in winners}
    return {name: devices[name] for name, _ in counts.most_common()}
