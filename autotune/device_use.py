"""Which devices running programs use that asked for tuning: a search in the background waits until they are idle.

Not the device's load: a program between two batches is idle for the clock and not for its user, and a load is known
only after it was disturbed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from autotune.device_lock import name_of
from autotune.shared_folder import open_shared, runtime_directory
from strategies.locks import ForkLock

_held: dict[str, int] = {}
_lock = ForkLock()


def mark_in_use(device: str, directory: Path | None = None) -> None:
    """This process uses the device from now until it ends, however it ends. Idempotent; raises OSError."""
    path = _path(device, directory)
    with _lock:
        if str(path) not in _held:
            file = open_shared(path)
            fcntl.flock(file, fcntl.LOCK_SH)  # never waits for long: `in_use` holds its own for an instant
            _held[str(path)] = file


def in_use(device: str, directory: Path | None = None) -> bool:
    """Whether a process on this machine has marked the device, whosever it is."""
    try:
        file = open_shared(_path(device, directory))
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _path(device: str, directory: Path | None) -> Path:
    return (directory or runtime_directory()) / f"device-{name_of(device)}.users"
