"""Compiles rendered Metal source with clang and its checks on memory, into a shared object."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from metal.source import SourceError, describe, translate

HERE = Path(__file__).parent
COMMON = ("-c", "-x", "c++", "-std=c++17", "-fPIC", "-ffreestanding", "--target=x86_64-linux-gnu", "-mf16c", "-w")
KERNEL = (
    "-O1", "-fno-vectorize", "-fno-slp-vectorize",  # wider accesses than Metal has would not be watched
    "-fsanitize=thread,local-bounds", "-fno-sanitize-trap=local-bounds",
    "-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-read-before-write=1",
    "-ftrivial-auto-var-init=pattern",  # a register array that is not set holds NaN
    "-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none",
    "-ffp-contract=off", "-fno-math-errno",
    "-Wno-error=c++11-narrowing", "-I", str(HERE / "include"), "-include", "metal_stdlib",
)  # fmt: skip
MAX_BUFFERS = 31


class MetalSourceError(RuntimeError):
    """The compiler refuses the source; the message is its first error."""


def unavailable() -> str:
    """Why the stand-in does not run here; empty if it does."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the METAL stand-in runs on Linux on x86-64"
    return "" if _zig() else "the METAL stand-in needs the ziglang package"


def compile_kernel(source: str) -> bytes:
    """A shared object with `stand_in_entry`. Raises MetalSourceError."""
    try:
        kernel, text = describe(source), translate(source)
    except SourceError as error:
        raise MetalSourceError(str(error)) from None
    if len(kernel.parameters) > MAX_BUFFERS:
        raise MetalSourceError(
            f"'buffer' attribute parameter is out of bounds: must be between 0 and {MAX_BUFFERS - 1}"
        )
    return _object(text, KERNEL)


@functools.cache
def runtime_library() -> bytes:
    """runtime.cpp, compiled."""
    return _object((HERE / "runtime.cpp").read_text(encoding="utf-8"), ("-O2", "-fno-builtin"))


def _object(text: str, arguments: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="metal-stand-in-") as directory:
        object_file, library = Path(directory) / "k.o", Path(directory) / "k.so"
        _run("clang", *COMMON, *arguments, "-", "-o", str(object_file), source=text)
        _run("ld.lld", "-shared", str(object_file), "-o", str(library))
        return library.read_bytes()


def _run(*command: str, source: str = "") -> None:
    done = subprocess.run([str(_zig()), *command], input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise MetalSourceError(lines[0].replace("<stdin>", "program_source"))


@functools.cache
def _zig() -> Path | None:
    spec = importlib.util.find_spec("ziglang")
    path = Path(spec.origin).with_name("zig") if spec is not None and spec.origin is not None else None
    return path if path is not None and os.access(path, os.X_OK) else None
