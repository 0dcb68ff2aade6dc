"""What runs on a Mac uses nothing that only Linux has: on METAL, nobody of ours would notice before a user does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("strategies", "autotune", "db", "api")

LINUX_ONLY = re.compile(
    r"/proc/|/sys/|/run/|/dev/shm"
    r"|\b(sched_[gs]etaffinity|cpu_affinity|prctl|epoll|eventfd|pidfd_open|inotify|memfd_create|pipe2|sendfile|splice"
    r"|posix_fallocate|posix_fadvise|fdatasync|O_DIRECT|O_TMPFILE|SO_PEERCRED|ionice|rlimit|prlimit|libc\.so"
    r"|MSG_NOSIGNAL|SOCK_CLOEXEC|sigtimedwait|sigwaitinfo|getresuid|setresuid|unshare)\b"
)
GUARDED = {
    # suppressed where there is no such file
    "autotune/child.py": ("/proc/self/oom_score_adj",),
    # where there are no control groups, all of the memory
    "autotune/memory.py": ("/sys/fs/cgroup",),
    # asked for with hasattr
    "autotune/reference.py": ("os.sched_getaffinity(0)) if hasattr(os,",),
    # lists nothing where there is no such folder
    "autotune/physical_device.py": ("/proc/driver/nvidia/gpus",),
    # falls back to sysctl
    "strategies/graph/device.py": ("/proc/cpuinfo",),
}
"""Uses that are right wherever they fail: each has a way round beside it."""

PROGRAMS = {
    "autotune/macos.py": {"notifyutil", "pmset", "sysctl"},
    "strategies/graph/device.py": {"sysctl", "ioreg", "sw_vers", "nvidia-smi"},
}
"""Programs that are run by name. Each is part of macOS, or is not there and not missed."""


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_only_linux_has(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [line.strip() for line in lines if LINUX_ONLY.search(line)]
    assert [line for line in found if not any(known in line for known in GUARDED.get(name, ()))] == []


@pytest.mark.parametrize("name", sorted(GUARDED))
def test_what_is_guarded_is_still_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert all(known in text for known in GUARDED[name])


@pytest.mark.parametrize("line", ["os.sched_getaffinity(0)", 'Path("/proc/meminfo")', "select.epoll()", "os.pipe2(0)"])
def test_what_it_would_find(line: str) -> None:
    assert LINUX_ONLY.search(line)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_programs_that_are_run_by_name(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    called = set(re.findall(r"""_output\(\s*["']([\w-]+)["']""", text))
    assert called == PROGRAMS[name]


def test_no_poll_for_the_end_of_a_pipe() -> None:
    """macOS does not tell of a hang-up to who asks for nothing else (XNU, bsd/kern/sys_generic.c, poll_nocancel)."""
    assert [
        str(path) for path in sources() if re.search(r"select\.poll\(|\.register\(\w+, 0\)", path.read_text())
    ] == []
