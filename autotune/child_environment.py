"""The environment of the child that measures: the caller's code generation flags and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from strategies.key import DeviceSpec

KERNEL_FLAGS = (
    "ALLOW_HALF8", "ALLOW_TF32", "BEAM", "BEAM_LOCAL_MAX", "BEAM_MIN_PROGRESS", "BEAM_PADTO", "BEAM_STRICT_MODE",
    "BEAM_TIMEOUT_SEC", "BEAM_UOPS_MAX", "BEAM_UPCAST_MAX", "DEFAULT_FLOAT", "DEFAULT_INT", "DISABLE_FAST_IDIV",
    "DISALLOW_BROADCAST", "DMC", "EMULATED_DTYPES", "EXPAND_SSA", "FLOAT16", "HCQ2", "IMAGE", "JITBEAM", "LLVMOPT",
    "MAX_KERNEL_BUFFERS", "MV", "MV_BLOCKSIZE", "MV_ROWS_PER_THREAD", "MV_THREADS_PER_ROW", "NOLOCALS", "NOOPT",
    "OCCUPANCY_FLOOR", "PCONTIG", "REDUCEOP_SPLIT_SIZE", "REDUCEOP_SPLIT_THRESHOLD", "SPLIT_REDUCEOP", "SUM_DTYPE",
    "TC", "TC_OPT", "TC_SELECT", "TRANSCENDENTAL", "TUPLE_ORDER", "USE_ATOMICS", "USE_TC", "WINO",
)  # fmt: skip
"""tinygrad 0.14's settings that change kernels. Only those in the key may act on a measurement."""

DISTURBING_FLAGS = (
    "CAPTURE_PROCESS_REPLAY", "CAPTURING", "CHECK_OOB", "DEBUG", "DEBUG_GC", "DEBUG_LINEARIZE", "DEBUG_RANGEIFY",
    "JIT", "JIT_BATCH_SIZE", "LRU", "NO_MEMORY_PLANNER", "PRINT_MATCH_STATS", "PROFILE", "SCACHE", "SPEC", "TRACE",
    "VALIDATE_WITH_CPU", "VIZ",
)  # fmt: skip
"""Settings that leave the kernels alone and change how they are run, checked or talked about."""


def child_environment(environ: Mapping[str, str], device: str, spec: DeviceSpec) -> dict[str, str]:
    """`environ` for a child that measures on `device` with the flags of `spec`.

    PARALLEL=0: compiling in a pool of processes would leave the kernels of a killed candidate running, and patches
    of the graph do not reach the pool.
    """
    result = {name: value for name, value in environ.items() if name not in KERNEL_FLAGS + DISTURBING_FLAGS}
    result.update(dict(spec.flags))
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    result.update(
        DEV=device,
        PARALLEL="0",
        PYTHONPATH=os.pathsep.join(dict.fromkeys(paths)),
        PYTHONSAFEPATH="1",  # `-m` would put the caller's directory first, and it may hold a `strategies` of its own
    )
    return result
