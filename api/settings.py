"""The settings, read once at the edge from flags and environment, then passed in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

DEFAULT_BUDGET_S = 60.0
MAX_BUDGET_S = 24 * 3600.0
MAX_TRIALS = 1_000_000
MAX_SHAPES = 10_000
MAX_DEVICES = 16
"""Different devices and flags in one request: each may take a process and seconds to describe."""


class SettingsError(ValueError):
    """A flag or an environment variable that makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are and how much a request may ask for.

    `db` is a path or a database URL; `url` is the service that the command line talks to (empty: in process);
    `source` is what `autotune run` applies. Sizes are in bytes.
    """

    db: str
    url: str = ""
    token: str = ""
    source: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 1 << 20
    max_import_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"a port is between 0 and 65535 (0: any free one): got {self.port}")
        if not self.host:
            raise SettingsError("expected a host to bind to, for example 127.0.0.1: got an empty one")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise SettingsError(f"AUTOTUNE_URL must look like http://127.0.0.1:8000: got {self.url!r}")

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can reach the service."""
        try:
            return self.host in LOOPBACK_HOSTS or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def run_source(self) -> str:
        """What `autotune run` applies: the source asked for, else the service, else the database."""
        return self.source or self.url or self.db

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        db: str | None = None,
        source: str | None = None,
        host: str | None = None,
        port: int | None = None,
    ) -> Settings:
        """Flags first, then `AUTOTUNE_*`, then defaults."""
        return cls(
            db=db or environ.get("AUTOTUNE_DB") or str(default_database(environ)),
            url=environ.get("AUTOTUNE_URL", "").rstrip("/"),
            token=environ.get("AUTOTUNE_TOKEN", ""),
            source=source or environ.get("AUTOTUNE_SOURCE", ""),
            host="127.0.0.1" if host is None else host,
            port=8000 if port is None else port,
        )


def default_database(environ: Mapping[str, str]) -> Path:
    """The user's own database, where the platform keeps a program's data."""
    home = Path(environ.get("HOME") or Path.home())
    if sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "tinygrad-autotune" / "autotune.db"
