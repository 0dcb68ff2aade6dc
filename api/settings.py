"""The settings, read once at the edge from flags and environment, then passed in."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from api.units import AgeError, parse_age
from autotune.fleet import MOST_LOST

LOG_FORMATS = ("text", "json")
HOST_NAME = re.compile(r"[0-9a-z][-0-9a-z.]*|[0-9a-f:]+")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

DEFAULT_BUDGET_S = 60.0
MAX_BUDGET_S = 24 * 3600.0
MAX_TRIALS = 1_000_000
MAX_SHAPES = 10_000
MAX_DEVICES = 16
"""Different devices and flags in one request: each may take a process and seconds to describe, and is a queue."""


class SettingsError(ValueError):
    """A flag or an environment variable that makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are and how much a request may ask for.

    `db` is a path or a database URL; `url` is the service that the command line talks to (empty: in process);
    `source` is what `autotune run` applies. `hosts` are names under which others reach the service, as through a
    reverse proxy; with `public_reads` nobody needs a token to read; `bundle_key` is the file
    of the key that imported bundles must be signed with. One submitter may have
    `max_queued` shapes in the queue and `max_streams` event streams; a request may name `max_batch` shapes; a shape
    may have tensors of `max_shape_bytes` in all and `max_shape_macs` multiply-accumulates. Sizes are in bytes.
    Measurements, former winners, jobs and tasks are kept for `retention_s` (0: for ever); a task that `most_lost`
    workers did not survive is given to nobody any more.
    """

    db: str
    url: str = ""
    token: str = ""
    source: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = ()
    public_reads: bool = False
    log_format: str = "text"
    bundle_key: str = ""
    max_queued: int = 20_000
    max_streams: int = 64
    max_batch: int = MAX_SHAPES
    max_shape_bytes: int = 4 << 30
    max_shape_macs: int = 1 << 40
    max_body_bytes: int = 1 << 20
    max_import_bytes: int = 64 << 20
    retention_s: float = 365 * 86400.0
    most_lost: int = MOST_LOST

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"a port is between 0 and 65535 (0: any free one): got {self.port}")
        if not self.host:
            raise SettingsError("expected a host to bind to, for example 127.0.0.1: got an empty one")
        if self.log_format not in LOG_FORMATS:
            raise SettingsError(f"a log's format is {' or '.join(LOG_FORMATS)}: got {self.log_format[:40]!r}")
        if any(not HOST_NAME.fullmatch(name) for name in self.hosts):
            raise SettingsError(
                f"expected names of hosts, like autotune.example.org, no scheme and no port: got {','.join(self.hosts)}"
            )
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
    def guarded(self) -> bool:
        """Whether others than this machine's programs may ask, so that tokens are needed."""
        return bool(self.hosts) or not self.loopback

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
        hosts: Sequence[str] | None = None,
        public_reads: bool = False,
        log_format: str | None = None,
    ) -> Settings:
        """Flags first, then `AUTOTUNE_*`, then defaults."""
        return cls(
            db=db or environ.get("AUTOTUNE_DB") or str(default_database(environ)),
            url=environ.get("AUTOTUNE_URL", "").rstrip("/"),
            token=environ.get("AUTOTUNE_TOKEN", ""),
            source=source or environ.get("AUTOTUNE_SOURCE", ""),
            host="127.0.0.1" if host is None else host,
            port=8000 if port is None else port,
            hosts=tuple(name.strip().lower() for name in hosts or environ.get("AUTOTUNE_HOSTS", "").split(",") if name),
            max_queued=_number(environ, "AUTOTUNE_MAX_QUEUED", 20_000),
            max_streams=_number(environ, "AUTOTUNE_MAX_STREAMS", 64),
            max_batch=_number(environ, "AUTOTUNE_MAX_BATCH", MAX_SHAPES),
            max_shape_bytes=_number(environ, "AUTOTUNE_MAX_SHAPE_BYTES", 4 << 30),
            max_shape_macs=_number(environ, "AUTOTUNE_MAX_SHAPE_MACS", 1 << 40),
            retention_s=_retention(environ.get("AUTOTUNE_RETENTION", "")),
            most_lost=_number(environ, "AUTOTUNE_MOST_LOST", MOST_LOST),
            bundle_key=environ.get("AUTOTUNE_BUNDLE_KEY", ""),
            log_format=log_format or environ.get("AUTOTUNE_LOG_FORMAT") or "text",
            public_reads=public_reads or environ.get("AUTOTUNE_PUBLIC_READS", "") not in ("", "0"),
        )


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if text and not (text.isascii() and text.isdecimal() and int(text[:20]) > 0):
        raise SettingsError(f"{name} must be a whole number above 0: got {text[:40]!r}")
    return int(text[:20]) if text else default


def _retention(text: str) -> float:
    """Seconds; a year where nothing is said. Raises SettingsError."""
    try:
        return 0.0 if text == "0" else parse_age(text or "1y")
    except AgeError as error:
        raise SettingsError(f"AUTOTUNE_RETENTION: {error}, or 0 for ever") from None


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
