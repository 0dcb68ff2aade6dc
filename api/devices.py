"""The devices of this machine, asked for in a child process so that the service itself never opens one."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
LOOK_S = 30.0
"""How often what is remembered for readers is looked at; only an answer that no longer holds is asked for again."""
FIRST_LOOK_S = 30.0
"""How long a reader waits for the first look at the devices, which begins with the service."""
Flags = tuple[tuple[str, str], ...]
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}(:[A-Za-z0-9_]{1,16})*")


log = logging.getLogger("autotune.devices")


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

    def in_force(self, flags: Mapping[str, str]) -> Flags:
        """A caller's flags as they stand in a key, whatever the device. Raises UnknownDeviceError, KeyFormatError."""


class ProbedDevices:
    """Asks a child process and remembers the answer for a while.

    Flags are no question of the child's: they change kernels, not the device, so each set of them costs nothing.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._environ, self._clock = environ, clock
        self._lock = threading.Lock()
        self._answers: dict[object, tuple[float, Any]] = {}

    def names(self) -> tuple[str, ...]:
        """Usable devices, the default one first; raises UnknownDeviceError if tinygrad cannot be asked."""
        return self.machine().names

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        """See Devices."""
        machine = self.machine()
        device = machine.expect(name)
        return machine.flagged(DeviceSpec.from_json(self._ask("describe", device)), flags)

    def in_force(self, flags: Mapping[str, str]) -> Flags:
        """See Devices."""
        return self.machine().in_force(flags)

    def machine(self) -> Machine:
        """Raises UnknownDeviceError if tinygrad cannot be asked."""
        answer = self._ask("machine")
        names = dict.fromkeys((answer["default"].split(":")[0], *answer["names"]))
        return Machine(names=tuple(names), flags=answer["flags"])

    def _ask(self, *question: str) -> Any:
        """The answer that still holds, else a new one; a failure is an answer. Raises UnknownDeviceError."""
        with self._lock:
            holds_until, answer = self._answers.get(question, (float("-inf"), None))
            if self._clock() >= holds_until:
                if len(self._answers) >= MAX_ANSWERS:  # names come from callers: never grow without bound
                    self._answers.clear()
                try:
                    answer, holds_s = _probe(self._environ, *question), ANSWER_S
                except UnknownDeviceError as error:
                    answer, holds_s = error, FAILURE_S
                self._answers[question] = (self._clock() + holds_s, answer)
        if isinstance(answer, UnknownDeviceError):
            raise UnknownDeviceError(str(answer))  # a new one: one that is raised again and again collects tracebacks
        return answer


class RememberedDevices:
    """What was last found out about this machine's devices, for readers: whatever they ask, no device is opened.

    `start` looks at every device in a thread of its own, and again whenever an answer no longer holds.
    """

    def __init__(self, devices: ProbedDevices) -> None:
        self._devices = devices
        self._looked = threading.Event()
        self._machine: Machine | UnknownDeviceError = UnknownDeviceError("nobody has looked at the devices yet")
        self._specs: dict[str, DeviceSpec | UnknownDeviceError] = {}

    def start(self) -> RememberedDevices:
        """Look, from now on, for as long as the process lives."""
        threading.Thread(target=self._keep_looking, name="devices", daemon=True).start()
        return self

    def names(self) -> tuple[str, ...]:
        """See ProbedDevices."""
        return self._known().names

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        """See Devices. A second device of a kind is described to those who tune on it only."""
        machine = self._known()
        device = machine.expect(name)
        found = self._specs.get(device)
        if found is None:
            raise UnknownDeviceError(f"{device} was not looked at: expected one of {', '.join(machine.names)}")
        if isinstance(found, UnknownDeviceError):
            raise UnknownDeviceError(str(found))
        return machine.flagged(found, flags)

    def in_force(self, flags: Mapping[str, str]) -> Flags:
        """See Devices."""
        return self._known().in_force(flags)

    def look(self) -> None:
        """Ask for everything once."""
        try:
            machine = self._devices.machine()
        except UnknownDeviceError as error:
            self._machine = error
            return
        specs: dict[str, DeviceSpec | UnknownDeviceError] = {}
        for name in machine.names:
            try:
                specs[name] = self._devices.describe(name)
            except UnknownDeviceError as error:
                specs[name] = error
            self._specs = {**self._specs, **specs}
            self._machine = machine
            self._looked.set()  # the default one comes first: who asks for it need not wait for the others
        self._specs = specs

    def _keep_looking(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("devices could not be looked at")
            self._looked.set()
            time.sleep(LOOK_S)

    def _known(self) -> Machine:
        self._looked.wait(FIRST_LOOK_S)
        if isinstance(self._machine, UnknownDeviceError):
            raise UnknownDeviceError(str(self._machine))
        return self._machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Devices, the default one first, and what is known of the flags that change kernels (`flag_rules`)."""

    names: tuple[str, ...]
    flags: Mapping[str, Mapping[str, Any]]

    def expect(self, name: str | None) -> str:
        """The device that is meant, the default one without a name. Raises UnknownDeviceError."""
        device = self.names[0] if name is None else check_name(name)
        if device.split(":")[0] not in self.names:
            there = ", ".join(self.names)
            raise UnknownDeviceError(f"no device {device} on this machine: expected one of {there}; choose one of them")
        return device

    def flagged(self, spec: DeviceSpec, flags: Mapping[str, str] | None) -> DeviceSpec:
        """The device under a caller's flags, None: those of this process. Raises KeyFormatError."""
        return spec if flags is None else replace(spec, flags=self.in_force(flags))

    def in_force(self, flags: Mapping[str, str]) -> Flags:
        """Those that differ from their defaults, sorted. Raises KeyFormatError."""
        return tuple(sorted((n, text) for n, value in flags.items() if (text := self._text(n, value)) is not None))

    def _text(self, name: str, value: str) -> str | None:
        """As tinygrad reads it from its environment; None if that is its default."""
        rule = self.flags.get(name)
        if rule is None or not FLAG_VALUE.fullmatch(value):
            raise KeyFormatError(
                f"flags are those that change kernels ({', '.join(sorted(self.flags))}), as numbers: "
                f"got {name[:40]}={value[:40]}"
            )
        try:
            text = str(int(value)) if rule["number"] else value
        except ValueError:
            raise KeyFormatError(f"{name} is a whole number: got {value[:40]}") from None
        return None if text == rule["default"] else text


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
