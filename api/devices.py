"""The devices of this machine, asked for in a child process so that the service itself never opens one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strategies.key import DeviceSpec, KeyFormatError

PROBE = Path(__file__).with_name("probe.py")
PROBE_TIMEOUT_S = 120.0
MAX_SPECS = 256
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}(:[A-Za-z0-9_]{1,16})*")
FLAG_VALUE = re.compile(r"[-A-Za-z0-9_,.]{1,32}")


class UnknownDeviceError(LookupError):
    """A device that this machine does not have. The message names those that it has."""


class Devices(Protocol):
    """What is known of the devices of this machine."""

    def names(self) -> tuple[str, ...]:
        """Usable devices, the one that tinygrad would choose first."""

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        """The device as it stands in a key; None is the default device.

        `flags` are the caller's, None means those of this process. Raises UnknownDeviceError, KeyFormatError.
        """


class ProbedDevices:
    """Asks a child process once per question and remembers the answer. Flags are the environment of that child."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._lock = threading.Lock()
        self._machine: Machine | None = None
        self._specs: dict[tuple[str, tuple[tuple[str, str], ...] | None], DeviceSpec] = {}

    def names(self) -> tuple[str, ...]:
        """Usable devices, the default one first; raises UnknownDeviceError if tinygrad cannot be asked."""
        return self._known().names

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        """See Devices."""
        machine = self._known()
        device = machine.names[0] if name is None else check_name(name)
        if device.split(":")[0] not in machine.names:
            there = ", ".join(machine.names)
            raise UnknownDeviceError(f"no device {device} on this machine: expected one of {there}; choose one of them")
        wanted = (device, None if flags is None else tuple(sorted(flags.items())))
        with self._lock:
            if wanted not in self._specs:
                if len(self._specs) >= MAX_SPECS:  # flags come from callers: never grow without bound
                    self._specs.clear()
                environ = self._environ if flags is None else self._with_flags(machine, flags)
                self._specs[wanted] = DeviceSpec.from_json(_probe(environ, "describe", device))
            return self._specs[wanted]

    def _known(self) -> Machine:
        with self._lock:
            if self._machine is None:
                answer = _probe(self._environ, "machine")
                names = dict.fromkeys((answer["default"].split(":")[0], *answer["names"]))
                self._machine = Machine(names=tuple(names), flags=frozenset(answer["flags"]))
            return self._machine

    def _with_flags(self, machine: Machine, flags: Mapping[str, str]) -> dict[str, str]:
        """The environment with these flags and no others. Only names that tinygrad's code generation reads."""
        for name, value in flags.items():
            if name not in machine.flags or not FLAG_VALUE.fullmatch(value):
                raise KeyFormatError(
                    f"flags are those that change kernels ({', '.join(sorted(machine.flags))}), as numbers: "
                    f"got {name[:40]}={value[:40]}"
                )
        return {name: value for name, value in self._environ.items() if name not in machine.flags} | dict(flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Devices, the default one first, and the flags that change kernels."""

    names: tuple[str, ...]
    flags: frozenset[str]


def check_name(name: str) -> str:
    """The name as tinygrad spells it; raises UnknownDeviceError for what cannot be one."""
    if not NAME.fullmatch(name):
        raise UnknownDeviceError(f"a device is called like CPU, CUDA or METAL: got {name[:40]!r}")
    return name.upper()


def _probe(environ: Mapping[str, str], *question: str) -> Any:
    command = [sys.executable, "-P", str(PROBE), *question]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False, env=dict(environ),
            stdin=subprocess.DEVNULL, start_new_session=True,  # Ctrl-C is for the parent to answer
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2] or "{}")
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        raise UnknownDeviceError(
            f"tinygrad could not be asked for its devices: {error}; try `autotune doctor`"
        ) from None
    if "answer" not in answer:
        reason = answer.get("error") or done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise UnknownDeviceError(f"the device cannot be opened: {reason}; try `autotune doctor`")
    return answer["answer"]
