"""Where processes of all users of a machine meet at locks: a folder that everyone may write and nobody may abuse.

A device is one whoever measures on it, so its lock cannot belong to a user. Anyone may hold it for ever: who shares a
machine can disturb every measurement on it anyway. What must not be possible is to lead another user's process to a
file elsewhere: links are not followed, files with a second name and what is no file are refused.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

FOLDER = Path("/tmp/tinygrad-autotune")  # noqa: S108  what it is, is checked below
SHARED = 0o1777
"""Everyone may make files in it, and remove only their own."""
TRIES, PAUSE_S = 50, 0.01


def runtime_directory() -> Path:
    """`/tmp/tinygrad-autotune`, or what AUTOTUNE_LOCKS names (containers that share a device have no /tmp in common),
    made if missing. Raises OSError if it is not a folder that all users share.

    Not XDG_RUNTIME_DIR: it is set in a login session and unset in a service or a cron job, and both must meet at one
    lock. For the same reason TMPDIR is not asked.
    """
    folder = Path(os.environ.get("AUTOTUNE_LOCKS") or FOLDER)
    if not folder.exists():
        _make(folder)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) != SHARED:
        raise PermissionError(
            f"{folder}: expected a folder that all users share (mode {SHARED:o}), found mode "
            f"{stat.S_IMODE(status.st_mode):o} of user {status.st_uid}: remove it"
        )
    return folder


def _make(folder: Path) -> None:
    """In one step with its rights: who looks at the same time finds none, or the whole."""
    new = tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    try:
        os.chmod(new, SHARED)  # noqa: PTH101 - beside rename
        os.rename(new, folder)  # noqa: PTH104 - fails where another process was first and has used it
    except OSError:
        os.rmdir(new)  # noqa: PTH106


def open_shared(path: Path) -> int:
    """A descriptor of a file there, made if missing, for every user to lock. Raises OSError.

    Not O_CREAT on a file that is there: Linux forbids it for another user's in a folder like this (protected_regular).
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for _ in range(TRIES):
        try:
            return _expect_file(os.open(path, os.O_RDWR | flags), path)
        except FileNotFoundError:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
            except FileExistsError:  # another process was first
                continue
            os.fchmod(file, 0o666)  # whatever the umask
            return file
        except PermissionError:  # its maker has not come to the line above
            time.sleep(PAUSE_S)
    raise PermissionError(
        f"{path}: expected a file that every user may lock (mode 666), found one that is not: remove it"
    )


def _expect_file(file: int, path: Path) -> int:
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return file
    os.close(file)
    raise OSError(f"{path}: expected a file with one name, found something else: remove it")
