"""The devices of this machine, asked for in a child process so that the service itself never opens one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strategies.flags import FLAG_VALUE
from strategies.key import DeviceSpec, KeyFormatError

PROBE = Path(__file__).with_name("probe.py")
PROBE_TIMEOUT_S = 60.0
ANSWER_S = 600.0
"""How long an answer holds: a driver or a compiler may be upgraded while the service runs."""
FAILURE_S = 30.0
"""How long a failure holds: of all requests that wait for a driver that hangs, one pays PROBE_TIMEOUT_S."""
MAX_ANSWERS = 256
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}(:[A-Za-z0-9_]{1,16})*")


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
    """Asks a child process and remembers the answer for a while. Flags are the environment of that child."""

    def __init__(self, environ: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._environ, self._clock = environ, clock
        self._lock = threading.Lock()
        self._answers: dict[object, tuple[float, Any]] = {}

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
        environ = self._environ if flags is None else self._with_flags(machine, flags)
        return DeviceSpec.from_json(self._ask(environ, flags, "describe", device))

    def _known(self) -> Machine:
        answer = self._ask(self._environ, None, "machine")
        names = dict.fromkeys((answer["default"].split(":")[0], *answer["names"]))
        return Machine(names=tuple(names), flags=frozenset(answer["flags"]))

    def _ask(self, environ: Mapping[str, str], flags: Mapping[str, str] | None, *question: str) -> Any:
        """The answer that still holds, else a new one; a failure is an answer. Raises UnknownDeviceError."""
        wanted = (question, None if flags is None else tuple(sorted(flags.items())))
        with self._lock:
            holds_until, answer = self._answers.get(wanted, (float("-inf"), None))
            if self._clock() >= holds_until:
                if len(self._answers) >= MAX_ANSWERS:  # flags come from callers: never grow without bound
                    self._answers.clear()
                try:
                    answer, holds_s = _probe(environ, *question), ANSWER_S
                except UnknownDeviceError as error:
                    answer, holds_s = error, FAILURE_S
                self._answers[wanted] = (self._clock() + holds_s, answer)
        if isinstance(answer, UnknownDeviceError):
            raise UnknownDeviceError(str(answer))  # a new one: one that is raised again and again collects tracebacks
        return answer

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
