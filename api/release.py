"""Which release this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The installed version of the distribution."""
    try:
        return version("tinygrad-autotune")
    except PackageNotFoundError:  # a checkout on the path
        return "0+checkout"
