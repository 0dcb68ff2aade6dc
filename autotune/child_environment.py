"""The environment of the child that measures: the caller's code generation flags and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from strategies.flags import KERNEL_FLAGS, is_flag
from strategies.key import DeviceSpec

DISTURBING_FLAGS = (
    "CAPTURE_PROCESS_REPLAY", "CAPTURING", "CHECK_OOB", "DEBUG", "DEBUG_GC", "DEBUG_LINEARIZE", "DEBUG_RANGEIFY",
    "JIT", "JIT_BATCH_SIZE", "LRU", "NO_MEMORY_PLANNER", "PRINT_MATCH_STATS", "PROFILE", "SCACHE", "SPEC", "TRACE",
    "VALIDATE_WITH_CPU", "VIZ",
)  # fmt: skip
"""Settings that leave the kernels alone and change how they are run, checked or talked about."""

DROPPED = {*KERNEL_FLAGS, *DISTURBING_FLAGS, "JITBEAM", "WINO"}
"""What of the caller's environment does not reach the child: only the flags in the key may act on a measurement."""


def child_environment(environ: Mapping[str, str], device: str, spec: DeviceSpec) -> dict[str, str]:
    """`environ` for a child that measures on `device` with the flags of `spec`.

    CCACHE=0: tinygrad's cache of compiled kernels does not know which compiler made them, nor when.
    PARALLEL=0: compiling in a pool of processes would leave the kernels of a killed candidate running, and patches
    of the graph do not reach the pool.
    OPENBLAS_NUM_THREADS=1: NumPy's products are dealt out to threads by autotune.reference; OpenBLAS's own wait for
    each other where other processes are busy.
    """
    result = {name: value for name, value in environ.items() if name not in DROPPED}
    result.update((name, value) for name, value in spec.flags if is_flag(name, value))
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    result.update(
        CCACHE="0",
        DEV=device,
        OPENBLAS_NUM_THREADS="1",
        PARALLEL="0",
        PYTHONPATH=os.pathsep.join(dict.fromkeys(paths)),
        PYTHONSAFEPATH="1",  # `-m` would put the caller's directory first, and it may hold a `strategies` of its own
    )
    return result
