"""Tuned convolutions for tinygrad.

    import autotune
    autotune.install("http://127.0.0.1:8000")

See `install`, `uninstall`, `tuned`, `forced`, `refresh`, `stats` and `explain_last`. Nothing else is imported, and
nothing is changed, before one of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from autotune.report import Report, Stats
    from autotune.runtime import explain_last, forced, install, refresh, stats, tuned, uninstall
    from strategies.key import Policy

__version__ = "0.1.0"
__all__ = [
    "Policy",
    "Report",
    "Stats",
    "explain_last",
    "forced",
    "install",
    "refresh",
    "stats",
    "tuned",
    "uninstall",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: the hook needs tinygrad's internals, `import autotune` needs nothing."""
    if name in ("explain_last", "forced", "install", "refresh", "stats", "tuned", "uninstall"):
        return getattr(_face(), name)
    if name in ("Report", "Stats"):
        from autotune import report

        return getattr(report, name)
    if name == "Policy":
        from strategies.key import Policy

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _face() -> ModuleType:
    """`runtime`, or what stands for it where tinygrad lacks what that imports."""
    try:
        from autotune import runtime
    except (ImportError, AttributeError) as error:
        from autotune import inactive

        if not inactive.is_tinygrads(error):
            raise
        inactive.say(error)
        return inactive
    return runtime
