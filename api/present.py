"""What the devices are by now, as far as it is known without waiting: by it pages mark what has gone stale."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from api.devices import Devices, UnknownDeviceError
from autotune.neighbours import is_stale
from autotune.winner import Winner
from strategies.key import DeviceSpec

HOLDS_S = 60.0


class Present:
    """Device by name, looked at in the background: who asks first is answered with nothing. Safe between threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._specs: Mapping[str, DeviceSpec] = {}
        self._due, self._looking = float("-inf"), False

    def stale(self, winners: Iterable[Winner], devices: Devices) -> frozenset[str]:
        """Digests of those that were measured on a device that is here, but under another driver, system, compiler
        or tinygrad than it has now."""
        here = self._now(devices)
        return frozenset(winner.key.digest for winner in winners if _is_stale(winner, here))

    def _now(self, devices: Devices) -> Mapping[str, DeviceSpec]:
        with self._lock:
            if not self._looking and self._clock() >= self._due:
                self._looking = True
                threading.Thread(target=self._look, args=(devices,), name="present", daemon=True).start()
            return self._specs

    def _look(self, devices: Devices) -> None:
        found = {}
        try:
            with contextlib.suppress(UnknownDeviceError):
                for name in devices.names():
                    with contextlib.suppress(UnknownDeviceError):
                        found[name] = devices.describe(name)
        finally:
            with self._lock:
                self._specs, self._due, self._looking = found, self._clock() + HOLDS_S, False


def _is_stale(winner: Winner, here: Mapping[str, DeviceSpec]) -> bool:
    device = here.get(winner.key.device.device)
    if device is None or device.arch != winner.key.device.arch:  # another machine's
        return False
    return is_stale(winner, replace(winner.key, device=device))
