"""One lock per device of this machine and user: two tuners never time on one device at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from autotune.runner import RunStoppedError

POLL_S = 0.05


class DeviceBusyError(RuntimeError):
    """Another process kept the device for longer than the caller wanted to wait."""


def runtime_directory() -> Path:
    """`/tmp/tinygrad-autotune-<uid>`, made if missing, closed to others. Raises OSError if it belongs to another.

    Not XDG_RUNTIME_DIR: it is set in a login session and unset in a service or a cron job of the same user, and
    the two must meet at one lock. For the same reason TMPDIR is not asked.
    """
    directory = Path(f"/tmp/tinygrad-autotune-{os.getuid()}")  # noqa: S108  its owner is checked below
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{directory} is not a directory of this user: remove it")
    return directory


def physical(device: str) -> str:
    """The GPU itself: where CUDA shows a process some of those that there are, it numbers them anew."""
    kind, _, index = device.partition(":")
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    if kind.upper() not in ("CUDA", "NV") or int(index or 0) >= len(visible):
        return device
    return f"{kind}:{visible[int(index or 0)]}"


class DeviceLock:
    """An flock on a file named after the device.

    The lock belongs to the open file, so a child that inherits `fileno()` holds it too: if the tuner is killed, the
    device stays locked until the measurement that still runs on it has ended. Not for several threads at once.
    """

    def __init__(self, device: str, directory: Path | None = None) -> None:
        name = re.sub(r"[^A-Z0-9]+", "-", physical(device).upper().removesuffix(":0"))
        self.device = device
        self.path = (directory or runtime_directory()) / f"device-{name}.lock"
        self._shared = directory is None
        self._file: int | None = None

    def fileno(self) -> int:
        """The descriptor of the open lock file, for `pass_fds`; opens the file if need be, locks nothing."""
        if self._file is None:
            self._file = self._open(self.path)
        return self._file

    @contextlib.contextmanager
    def held(
        self,
        *,
        timeout_s: float,
        on_wait: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Hold the lock. While another process has it, `on_wait` is told once and we wait up to `timeout_s`;
        then DeviceBusyError is raised, and RunStoppedError as soon as `should_stop` says so.

        Who waits holds a second lock: so a search, which releases the device and wants it back at once, comes after
        who waited meanwhile. Without it a second tuner starves.
        """
        give_up_at: float | None = None
        turn = self._open(self.path.with_suffix(".turn"))
        try:
            while not (_locked(turn) and self._try()):
                if should_stop():
                    raise RunStoppedError
                if give_up_at is None:
                    give_up_at = clock() + timeout_s
                    on_wait(f"waiting for {self.device}: {self._holder()} is measuring on it")
                if clock() >= give_up_at:
                    raise DeviceBusyError(
                        f"{self.device} is in use: {self._holder()} has been measuring on it for more than "
                        f"{timeout_s:g} s; wait for it or end it"
                    )
                time.sleep(POLL_S)
        finally:
            os.close(turn)
        try:
            yield
        finally:
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Forget the file. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, path: Path) -> int:
        if self._shared:
            runtime_directory()  # whoever cleans /tmp takes it away while we live
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _try(self) -> bool:
        file = self.fileno()
        if not _locked(file):
            return False
        if not self._current(file):  # someone cleaned /tmp: others would lock the new file
            self.close()
            return self._try()
        with contextlib.suppress(OSError):  # a full /tmp: only others' messages suffer
            os.utime(file)  # cleaners of /tmp go by age
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        return True

    def _current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        text = os.pread(self.fileno(), 32, 0).decode(errors="replace")
        return f"process {text}" if text.isdigit() else "another process"


def _locked(file: int) -> bool:
    """Whether the open file is locked by us now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
