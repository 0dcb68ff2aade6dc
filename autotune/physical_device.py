"""Which device a name stands for: one GPU has another number in every process and another name in every backend."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia/gpus")
UUID = re.compile(r"GPU UUID:\s*(GPU-[0-9a-f-]+)", re.IGNORECASE)


def physical(device: str, environ: Mapping[str, str] | None = None, gpus: Sequence[str] | None = None) -> str:
    """What two names of one device have in common: `CPU`, `METAL`, `GPU-<uuid>` where the driver tells, else `CUDA:2`.

    CUDA shows a process some of the GPUs (CUDA_VISIBLE_DEVICES: numbers, or uuids by their beginning) and numbers them
    anew; NV talks to the same GPUs and numbers all of them. Numbers are taken in the order of the bus: CUDA's own order
    puts the fastest first, which is the same where all are alike or CUDA_DEVICE_ORDER=PCI_BUS_ID. `gpus` are the uuids
    in that order, by default those that NVIDIA's driver lists.
    """
    kind, _, rest = device.upper().partition(":")
    index = int(rest) if rest.isdecimal() else 0
    if kind == "CPU":  # however many of them a program makes
        return kind
    if kind not in ("CUDA", "NV"):
        return f"{kind}:{rest}" if rest.strip("0") else kind
    environ = os.environ if environ is None else environ
    gpus = _nvidia() if gpus is None else gpus
    shown = [entry.strip() for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    name = shown[index] if kind == "CUDA" and index < len(shown) else str(index)
    if name.isdecimal():
        return gpus[int(name)] if int(name) < len(gpus) else _numbered(int(name))
    whole = [uuid for uuid in gpus if uuid.lower().startswith(name.lower())]
    return whole[0] if len(whole) == 1 else name


def _numbered(index: int) -> str:
    return f"CUDA:{index}" if index else "CUDA"


@cache
def _nvidia() -> tuple[str, ...]:
    """The uuids of NVIDIA's GPUs by their place on the bus; none where the driver does not tell."""
    try:
        texts = [path.read_text(errors="replace") for path in sorted(NVIDIA.glob("*/information"))]
    except OSError:
        return ()
    found = [match[1] for text in texts if (match := UUID.search(text))]
    return tuple(found) if len(found) == len(texts) else ()
