"""Which devices running programs use that asked for tuning: a search in the background waits until they are idle.

Not the device's load: a program between two batches is idle for the clock and not for its user, and a load is known
only after it was disturbed.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import threading
from pathlib import Path

from autotune.device_lock import runtime_directory

_held: dict[str, int] = {}
_lock = threading.Lock()


def mark_in_use(device: str, directory: Path | None = None) -> None:
    """This process uses the device from now until it ends, however it ends. Idempotent; raises OSError."""
    path = str(_path(device, directory))
    with _lock:
        if path not in _held:
            file = _open(path)
            fcntl.flock(file, fcntl.LOCK_SH)  # never waits for long: `in_use` holds its own for an instant
            _held[path] = file


def in_use(device: str, directory: Path | None = None) -> bool:
    """Whether a process of this user on this machine has marked the device."""
    path = _path(device, directory)
    try:
        file = _open(str(path))
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _open(path: str) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is not a file: remove it")
    return file


def _path(device: str, directory: Path | None) -> Path:
    name = re.sub(r"[^A-Z0-9]+", "-", device.upper().removesuffix(":0"))
    return (directory or runtime_directory()) / f"device-{name}.users"
