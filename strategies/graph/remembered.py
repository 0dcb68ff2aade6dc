"""Kernels that are lowered once, not once in every process.

Lowering a kernel in Python takes tinygrad some ten times as long as the compiler takes for the source that comes of it,
and only what the compiler made is kept on disk. A rewritten graph has about twice as many kernels as tinygrad's own: a
program would start that much later with the hook than without. So what was lowered is kept as well, in the same file
(tinygrad's cache; CACHELEVEL=0 and CCACHE=0 leave it alone), up to and with the source: compiling stays tinygrad's.
"""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version

from tinygrad.codegen import to_program_cache, to_program_key
from tinygrad.helpers import BEAM, CCACHE, DEBUG, VIZ, diskcache_get, diskcache_put
from tinygrad.renderer import Renderer
from tinygrad.uop.ops import Ops, UOp

from strategies.graph.device import flags_in_force, opened

TABLE = "autotune_lowered"
PARTS = (Ops.SINK, Ops.LINEAR, Ops.SOURCE)
"""What lowering makes of a kernel; a fourth, the binary, is the compiler's."""

_kept: set[str] = set()
"""What this process has read from the cache or written to it, or failed to write."""


@contextmanager
def remembered(linear: UOp) -> Iterator[None]:
    """Compiling `linear`, within the block: tinygrad does not lower what an earlier process has, and what it lowers now
    is kept for later ones. Whatever is wrong with the cache, the kernel is lowered.

    Not while BEAM chooses options, which has a cache of its own, nor while somebody wants to see kernels lowered.
    """
    if not CCACHE or BEAM or VIZ or DEBUG >= 3:
        yield
        return
    missing = {digest: key for digest, key, renderer in _kernels(linear) if not _found(digest, key, renderer)}
    yield
    for digest, key in missing.items():
        program = to_program_cache.get(key)
        if program is not None and tuple(part.op for part in program.src[:3]) == PARTS:
            with suppress(Exception):  # a full disk, a file that may only be read, a graph too deep to be pickled
                lowered = zlib.compress(pickle.dumps(program.replace(src=program.src[:3])), 1)
                diskcache_put(TABLE, digest, lowered)
            _kept.add(digest)


def _kernels(linear: UOp) -> Iterator[tuple[str, tuple[object, ...], Renderer]]:
    """What identifies each kernel that is not known to be kept: in every process, in this one; and for whom it is
    rendered."""
    outside = (version("tinygrad"), flags_in_force())
    for call in linear.src:
        kernel, device = call.src[0], call.src[1].device if len(call.src) > 1 else None
        if kernel.op is Ops.SINK and device:
            renderer = opened(device if isinstance(device, str) else device[0]).renderer
            key = to_program_key(kernel, renderer)
            digest = hashlib.sha256(repr((key, outside)).encode()).hexdigest()
            if digest not in _kept:
                yield digest, key, renderer


def _found(digest: str, key: tuple[object, ...], renderer: Renderer) -> bool:
    """Whether an earlier process lowered this one; then tinygrad has it as if it had itself."""
    try:
        lowered = diskcache_get(TABLE, digest)
        if lowered is None:
            return False
        if key in to_program_cache:  # lowered by this process too, for a graph that was not rewritten
            _kept.add(digest)
            return True
        program = pickle.loads(zlib.decompress(lowered))  # noqa: S301 - tinygrad's own cache is made of pickles
        if program.op is not Ops.PROGRAM or tuple(part.op for part in program.src) != PARTS:
            return False
        binary = renderer.compiler.compile_cached(program.src[2].arg)
    except Exception:  # noqa: BLE001 - of another tinygrad, half written, locked: lowering it says what is wrong, if any
        return False
    to_program_cache[key] = program.replace(src=(*program.src, UOp(Ops.BINARY, arg=binary)))
    _kept.add(digest)
    return True
