"""Which device is locked, and a folder in which all users' locks meet."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from databases import ROOT

from autotune.device_lock import DeviceLock
from autotune.device_use import in_use, mark_in_use
from autotune.physical_device import physical
from autotune.shared_folder import open_shared, runtime_directory

GPUS = ("GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbcc-3")


@pytest.mark.parametrize(
    ("device", "visible", "gpus", "expected"),
    [
        ("CUDA", "", (), "CUDA"), ("CUDA:0", "0", (), "CUDA"), ("cuda:2", "", (), "CUDA:2"),
        ("CUDA", "2,3", (), "CUDA:2"), ("CUDA:1", "0,2", (), "CUDA:2"), ("NV:2", "0", (), "CUDA:2"),
        ("CUDA", "", GPUS, "GPU-aaaa-1"), ("CUDA:1", "0, 2", GPUS, "GPU-bbcc-3"), ("NV:1", "2", GPUS, "GPU-bbbb-2"),
        ("CUDA", "GPU-bbc", GPUS, "GPU-bbcc-3"), ("CUDA", "GPU-bb", GPUS, "GPU-bb"), ("CUDA", "MIG-1", GPUS, "MIG-1"),
        ("CPU", "2", GPUS, "CPU"), ("CPU:1", "", (), "CPU"), ("METAL", "", (), "METAL"), ("CL:0", "", (), "CL"),
        ("CL:1", "", (), "CL:1"),
    ],
)  # fmt: skip
def test_a_device_is_one_whatever_it_is_called(device: str, visible: str, gpus: tuple[str, ...], expected: str) -> None:
    assert physical(device, {"CUDA_VISIBLE_DEVICES": visible}, gpus) == expected


def test_two_gpus_have_two_locks_and_one_has_one(tmp_path: Path) -> None:
    first, second, same = (
        DeviceLock(device, tmp_path, {"CUDA_VISIBLE_DEVICES": visible})
        for device, visible in (("CUDA", "2"), ("CUDA", "3"), ("CUDA:1", "1,2"))
    )
    assert first.path.name == same.path.name == "device-CUDA-2.lock"
    waits: list[str] = []
    with first.held(timeout_s=0, on_wait=waits.append), second.held(timeout_s=0, on_wait=waits.append):
        assert waits == []
        with pytest.raises(RuntimeError, match="is in use"), same.held(timeout_s=0, on_wait=waits.append):
            pass
    assert len(waits) == 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOTUNE_LOCKS", str(tmp_path / "shared"))
    return tmp_path / "shared"


def test_the_folder_is_everybodys(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        assert runtime_directory() == folder == runtime_directory()
        os.close(open_shared(folder / "a.lock"))
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert (folder / "a.lock").stat().st_mode & 0o777 == 0o666
    assert os.listdir(folder.parent) == ["shared"]  # noqa: PTH208
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match=r"expected a folder that all users share \(mode 1777\), found mode 755"):
        runtime_directory()


def test_nobody_is_led_to_a_file_elsewhere(folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    runtime_directory()
    (folder / "linked.lock").symlink_to(precious)
    (folder / "named.lock").hardlink_to(precious)
    os.mkfifo(folder / "pipe.lock")
    (folder / "folder.lock").mkdir()
    for name in ("linked", "named", "pipe", "folder"):
        with pytest.raises(OSError, match=r"symbolic|one name|directory"):
            open_shared(folder / f"{name}.lock")
    assert precious.read_text() == "mine"


OTHER = """
import os, sys
from autotune.device_lock import DeviceBusyError, DeviceLock
from autotune.device_use import mark_in_use
os.setgroups([]), os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
mark_in_use("CPU")
try:
    with DeviceLock("CPU").held(timeout_s=0, on_wait=lambda said: None):
        print("held", flush=True)
        sys.stdin.read()
except DeviceBusyError as error:
    print(error, flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_never_measure_at_once(folder: Path, tmp_path: Path) -> None:
    """A lock and a mark of user nobody hold for us, and ours for nobody."""
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o055)
    runtime_directory()
    nobody = pwd.getpwnam("nobody")

    def other() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", OTHER, str(nobody.pw_uid)], text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    lock = DeviceLock("CPU")
    with other() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert in_use("CPU")
        with (
            pytest.raises(RuntimeError, match=f"process {process.pid} has been"),
            lock.held(timeout_s=0.2, on_wait=lambda said: None),
        ):
            pass
        process.kill()
    assert not in_use("CPU")
    with lock.held(timeout_s=1, on_wait=pytest.fail), other() as process:
        assert process.stdout is not None
        assert f"process {os.getpid()} has been" in process.stdout.readline()
    lock.close()
    mark_in_use("CPU")
    assert in_use("CPU")
