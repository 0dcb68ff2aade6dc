"""A stand-in for Apple METAL, for tests on machines without one.

tinygrad's MetalRenderer, unmodified, writes Metal source. Here that source is compiled with clang against a small
metal_stdlib (include/) and executed over its grid (runtime.cpp), threads as fibers, with every access to memory
watched. What Metal does not define is reported and not survived: accesses out of bounds or misaligned, of memory that
was never written, in conflict with another thread's, and barriers that not all threads reach.

It shows that a kernel computes what it should and how. It says nothing about speed, nor whether Apple's compiler
accepts the source; `MetalDevice.simulated` keeps its times out of everything that leaves this machine.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
REPLACED = "tinygrad.runtime.ops_metal"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds our module where tinygrad asks for its own."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != REPLACED:
            return None
        return importlib.util.spec_from_file_location(fullname, HERE / "ops_metal.py")


def install() -> None:
    """METAL is the stand-in from now on in this process. Before tinygrad has looked for the real one."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def environment(environ: Mapping[str, str] = os.environ, **settings: str) -> dict[str, str]:
    """`environ` for a Python process in which METAL is the stand-in, with settings of its own (see ops_metal.setting).

    It holds for the processes started from there as well, compile workers included.
    """
    paths = [str(HERE / "site"), str(HERE.parent), *filter(None, [environ.get("PYTHONPATH", "")])]
    named = {f"METAL_STAND_IN_{name.upper()}": value for name, value in settings.items()}
    return {**environ, "PYTHONPATH": os.pathsep.join(paths), **named}
