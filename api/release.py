"""Which release this is."""

from __future__ import annotations

from autotune.fleet import this_release


def release() -> str:
    """The installed version of the distribution."""
    return this_release()
