"""tinygrad 0.14's settings that change which kernels come out: they belong to a key where they are not the default."""

CONTEXT_FLAGS = (
    "ALLOW_TF32", "BEAM", "DEFAULT_FLOAT", "DEFAULT_INT", "DISABLE_FAST_IDIV", "EMULATED_DTYPES", "FLOAT16", "IMAGE",
    "MAX_KERNEL_BUFFERS", "NOLOCALS", "NOOPT", "PCONTIG", "SPLIT_REDUCEOP", "TC", "TC_OPT", "TC_SELECT",
    "TRANSCENDENTAL",
)  # fmt: skip
"""Those that a program can also change while it runs (tinygrad's ContextVars)."""

ENVIRONMENT_FLAGS = (
    "ALLOW_HALF8", "BEAM_LOCAL_MAX", "BEAM_MIN_PROGRESS", "BEAM_PADTO", "BEAM_STRICT_MODE", "BEAM_TIMEOUT_SEC",
    "BEAM_UOPS_MAX", "BEAM_UPCAST_MAX", "DISALLOW_BROADCAST", "DMC", "EXPAND_SSA", "HCQ2", "LLVMOPT", "MV",
    "MV_BLOCKSIZE", "MV_ROWS_PER_THREAD", "MV_THREADS_PER_ROW", "OCCUPANCY_FLOOR", "REDUCEOP_SPLIT_SIZE",
    "REDUCEOP_SPLIT_THRESHOLD", "TUPLE_ORDER",
)  # fmt: skip
"""Those that tinygrad reads from the environment alone."""

KERNEL_FLAGS = tuple(sorted((*CONTEXT_FLAGS, *ENVIRONMENT_FLAGS)))
