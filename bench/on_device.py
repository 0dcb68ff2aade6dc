"""A command of bench/ on the device that was asked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start_on(device: str) -> None:
    """Start this command anew with DEV set to `device`, unless it is: tinygrad reads it when it is imported.

    The repository comes first on the new process's path. On a CPU a C compiler is found, or CCompilerError raised.
    """
    if os.environ.get("DEV") != device:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
        os.execve(command[0], command, os.environ | {"DEV": device, "PYTHONPATH": path})  # noqa: S606 - no shell
    if device.split(":", maxsplit=1)[0] == "CPU":
        from autotune.compiler import ensure_c_compiler

        ensure_c_compiler()
