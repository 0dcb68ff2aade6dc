"""tinygrad 0.14's settings that change which kernels come out: they belong to a key where they are not the default.

Some are tinygrad's ContextVars, which a program can change while it runs, others it reads from the environment alone.
"""

from __future__ import annotations

import re

FLAG_VALUE = re.compile(r"[-A-Za-z0-9_,.]{1,32}")

KERNEL_FLAGS = (
    "ALIGNED", "ALLOW_HALF8", "ALLOW_TF32", "BEAM", "BEAM_LOCAL_MAX", "BEAM_MIN_PROGRESS", "BEAM_PADTO",
    "BEAM_STRICT_MODE", "BEAM_TIMEOUT_SEC", "BEAM_UOPS_MAX", "BEAM_UPCAST_MAX", "DEFAULT_FLOAT", "DEFAULT_INT",
    "DISABLE_FAST_IDIV", "DISALLOW_BROADCAST", "DMC", "EMULATED_DTYPES", "EXPAND_SSA", "FLOAT16", "HCQ2", "IMAGE",
    "LLVMOPT", "MAX_KERNEL_BUFFERS", "MV", "MV_BLOCKSIZE", "MV_ROWS_PER_THREAD", "MV_THREADS_PER_ROW", "NOLOCALS",
    "NOOPT", "OCCUPANCY_FLOOR", "OPENPILOT_HACKS", "PCONTIG", "REDUCEOP_SPLIT_SIZE", "REDUCEOP_SPLIT_THRESHOLD",
    "SPLIT_REDUCEOP", "TC", "TC_OPT", "TC_SELECT", "THREADS", "TRANSCENDENTAL", "TUPLE_ORDER", "USE_ATOMICS",
)  # fmt: skip


def is_flag(name: str, value: str) -> bool:
    """Whether this is a setting of tinygrad's kernels with a plain value, fit to be an environment variable."""
    return name in KERNEL_FLAGS and FLAG_VALUE.fullmatch(value) is not None
