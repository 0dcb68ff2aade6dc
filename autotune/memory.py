"""How much memory this process may use."""

from __future__ import annotations

from pathlib import Path

import psutil

SHARE = 0.5
"""Of the machine's memory that a candidate may use: the tuner and whatever else runs want to live on, too."""
CGROUP = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""What a container may use, by version of Linux's control groups."""


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """The machine's memory, or what of it the container has. A candidate's limit is SHARE of it."""
    total = int(psutil.virtual_memory().total)
    for name in LIMITS:
        try:
            text = (cgroup / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def candidate_memory_bytes() -> int:
    """What one candidate may use where nobody says otherwise."""
    return int(SHARE * memory_bytes())
