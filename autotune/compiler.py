"""A C compiler for tinygrad's CPU device, without root rights.

tinygrad compiles its CPU kernels with the one program that `CC` names, by default `clang`, and gives it clang's
arguments. Where the system has no clang, the Python package `ziglang` has one inside: `zig clang` is the unmodified
clang driver. (`zig cc` is not: it wants other names for target and processor, adds debug information that tinygrad's
loader cannot relocate, and keeps a cache of its own.)
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROBE_TIMEOUT_S = 30.0
BUSY_S = 5.0
_WRAPPER = "autotune-zig-clang-"
_ARCHITECTURES = {
    "x86_64": ("x86_64", "-march=native"), "amd64": ("x86_64", "-march=native"),
    "arm64": ("arm64", "-ffixed-x18", "-mcpu=native"), "aarch64": ("arm64", "-ffixed-x18", "-mcpu=native"),
    "riscv64": ("riscv64", "-march=rv64g"),
}  # fmt: skip
"""tinygrad's name and arguments for each machine, as in tinygrad/runtime/support/compiler_cpu.py."""


class CCompilerError(RuntimeError):
    """There is no C compiler that tinygrad's CPU device could use; the message says what to install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CCompiler:
    """The compiler that tinygrad will run, the first line that it says of its version, and where it came from:
    the caller's `CC`, a `clang` on PATH, or the wrapper round the ziglang package's."""

    command: str
    version: str
    source: Literal["CC", "clang", "zig"]


def ensure_c_compiler(environ: MutableMapping[str, str] = os.environ) -> CCompiler:
    """Find a C compiler for tinygrad's CPU device and, if it is none that tinygrad finds itself, set `CC` to it.

    A `CC` that is set is left alone; else a working clang on PATH is what tinygrad runs anyway; else `CC` becomes
    a wrapper round the ziglang package's clang, written to the user's cache directory. Call this before tinygrad
    compiles anything: it reads `CC` once. May be called again, and in child processes: they inherit `CC`.
    Raises CCompilerError if there is none or if `CC` names none.
    """
    asked = environ.get("CC", "")
    if asked and not Path(asked).name.startswith(_WRAPPER):
        return _callers(asked, environ)
    if not asked:
        environ.pop("CC", None)  # empty, tinygrad would run ""
    # A wrapper of ours may be of another environment. It stays until there is another: another thread may compile now.
    without = {name: value for name, value in environ.items() if name != "CC"}
    if (version := _version("clang", without)) and not _refusal("clang", without):
        environ.pop("CC", None)
        return CCompiler(command="clang", version=version, source="clang")
    zig = _zig()
    if zig is None:
        raise CCompilerError(
            "tinygrad's CPU device needs a C compiler and there is none: install clang (Debian and Ubuntu: "
            "apt-get install clang; macOS: xcode-select --install) or, on Linux, pip install ziglang"
        )
    wrapper, version = _installed(zig, without)
    environ["CC"] = str(wrapper)
    return CCompiler(command=str(wrapper), version=version, source="zig")


def _callers(command: str, environ: MutableMapping[str, str]) -> CCompiler:
    version = _version(command, environ)
    if version is None:
        raise CCompilerError(
            f"CC={command!r} is no compiler that runs: tinygrad takes it as the name or path of one program, without "
            "arguments; correct it, or unset it to have one chosen"
        )
    if refusal := _refusal(command, environ):
        raise CCompilerError(
            f"CC={command!r} ({version}) does not take the arguments that tinygrad gives its compiler ({refusal}): "
            "name a clang, or unset CC to have one chosen"
        )
    return CCompiler(command=command, version=version, source="CC")


def _version(command: str, environ: MutableMapping[str, str]) -> str | None:
    """The first line of `command --version`; None if it cannot be run (on macOS a bare /usr/bin/clang may not)."""
    path = shutil.which(command, path=environ.get("PATH"))
    if path is None:
        return None
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            done = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
            )
            break
        except (OSError, subprocess.TimeoutExpired) as error:
            # a wrapper that a thread has just written: whatever another one starts has it open until it runs
            if getattr(error, "errno", None) != errno.ETXTBSY or time.monotonic() > deadline:
                return None
            time.sleep(0.01)
    return (done.stdout.splitlines() or [""])[0] if done.returncode == 0 else None


def _refusal(command: str, environ: MutableMapping[str, str]) -> str:
    """Why `command`, which runs, cannot compile for tinygrad; empty if it can. Compiles nothing, as tinygrad would."""
    path = shutil.which(command, path=environ.get("PATH")) or command
    machine = platform.machine().lower()
    if machine not in _ARCHITECTURES:
        return ""  # tinygrad says so itself
    name, *arguments = _ARCHITECTURES[machine]
    try:
        done = subprocess.run(
            [path, "-c", "-x", "c", "-O2", "-fPIC", "-ffreestanding", "-fno-math-errno", "-nostdlib", "-fno-ident",
             f"--target={name}-none-unknown-elf", *arguments, "-", "-o", "-"],
            input=b"", capture_output=True, timeout=PROBE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())[:200]
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").splitlines()
    return next((line.strip() for line in lines if line.strip()), f"exit status {done.returncode}")[:200]


def _zig() -> Path | None:
    """The zig program of the installed ziglang package, which is not imported: it is an executable and its files."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        return None
    zig = Path(spec.origin).with_name("zig")
    return zig if os.access(zig, os.X_OK) else None


def _installed(zig: Path, environ: MutableMapping[str, str]) -> tuple[Path, str]:
    """The wrapper round `zig` and the version it answers, from the first directory that allows it."""
    content = f'#!/bin/sh\nexec {shlex.quote(str(zig))} clang "$@"\n'
    name = _WRAPPER + hashlib.sha256(content.encode()).hexdigest()[:16]
    faults = []
    for directory in _directories(environ):
        try:
            wrapper = _write(_private(directory) / name, content)
        except OSError as error:
            faults.append(f"{directory}: {error.strerror or error}")
            continue
        if version := _version(str(wrapper), environ):
            return wrapper, version
        faults.append(f"{directory}: {wrapper.name} does not run (no exec allowed there, or {zig} is broken)")
    raise CCompilerError(
        "no clang, and the one in the ziglang package cannot be set up: " + "; ".join(faults) + ". Install clang, or "
        "set XDG_CACHE_HOME to a directory that you may write to and execute from"
    )


def _directories(environ: MutableMapping[str, str]) -> Iterator[Path]:
    """The user's cache directory; where there is none (a container, a service), a private one under /tmp."""
    home = environ.get("HOME")
    cache = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
    if Path(cache).is_absolute():
        yield Path(cache) / "tinygrad-autotune" / "cc"
    yield Path(tempfile.gettempdir()) / f"tinygrad-autotune-{os.getuid()}"


def _private(directory: Path) -> Path:
    """`directory`, ours and closed to others: what lies in it gets executed. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError("is not a directory of this user's")
    if stat.S_IMODE(status.st_mode) != 0o700:
        directory.chmod(0o700)
    return directory


def _write(path: Path, content: str) -> Path:
    """`path` with `content`, executable, all at once: another process may be starting it. Raises OSError."""
    if os.access(path, os.X_OK) and path.read_text() == content:
        return path
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(content)
        Path(temporary).chmod(0o700)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
