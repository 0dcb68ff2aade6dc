"""One lock per physical device of this machine: two tuners never time on one at once, whoever runs them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from autotune.physical_device import physical
from autotune.runner import RunStoppedError
from autotune.shared_folder import open_shared, runtime_directory

POLL_S = 0.05


class DeviceBusyError(RuntimeError):
    """Another process kept the device for longer than the caller wanted to wait."""


def name_of(device: str, environ: Mapping[str, str] | None = None) -> str:
    """How files of the physical device are called: `CPU`, `CUDA-2`."""
    return re.sub(r"[^A-Z0-9]+", "-", physical(device, environ).upper())


class DeviceLock:
    """An flock on a file named after the device.

    The lock belongs to the open file, so a child that inherits `fileno()` holds it too: if the tuner is killed, the
    device stays locked until the measurement that still runs on it has ended. Not for several threads at once.
    """

    def __init__(self, device: str, directory: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        """`environ`, of whoever opens the device, says which one its number stands for. Raises OSError."""
        self.device = device
        self.path = (directory or runtime_directory()) / f"device-{name_of(device, environ)}.lock"
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
        return open_shared(path)

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
