"""Tuned convolutions for tinygrad.

    import autotune
    autotune.install("http://127.0.0.1:8000")

See `install`, `uninstall`, `tuned`, `forced`, `refresh` and `stats`. Nothing else is imported, and nothing is changed,
before one of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.hook import Stats
    from autotune.runtime import forced, install, refresh, stats, tuned, uninstall
    from strategies.key import Policy

__version__ = "0.1.0"
__all__ = ["Policy", "Stats", "forced", "install", "refresh", "stats", "tuned", "uninstall"]


def __getattr__(name: str) -> Any:
    """Import on first use: the hook needs tinygrad's internals, `import autotune` needs nothing."""
    if name in ("forced", "install", "refresh", "stats", "tuned", "uninstall"):
        from autotune import runtime

        return getattr(runtime, name)
    if name == "Stats":
        from autotune.hook import Stats

        return Stats
    if name == "Policy":
        from strategies.key import Policy

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
