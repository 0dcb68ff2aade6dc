"""Calibrations kept between processes, one small file per device in the user's cache directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from autotune.roofline import Peak
from strategies.key import DeviceSpec


class PeakCache:
    """Peaks by device, without its flags: these change kernels, not what the hardware can do.

    A cache: a file that cannot be read or written is as good as none. `directory` None keeps nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    @classmethod
    def of_user(cls, environ: Mapping[str, str] = os.environ) -> PeakCache:
        """In the user's cache directory, where there is one."""
        home = environ.get("HOME")
        cache = Path(environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else ""))
        return cls(cache / "tinygrad-autotune" / "peaks" if cache.is_absolute() else None)

    def get(self, spec: DeviceSpec) -> Peak | None:
        """What is known of the device."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if self._directory is not None:
                return Peak.from_json(json.loads(self._path(self._directory, spec).read_bytes()))
        return None

    def keep(self, spec: DeviceSpec, peak: Peak) -> Peak:
        """Remember the better of `peak` and what is known, and return it."""
        known = self.get(spec)
        best = peak if known is None else known.merged(peak)
        if self._directory is not None and best != known:
            path = self._path(self._directory, spec)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps(best.to_json()))
                partial.replace(path)
        return best

    @staticmethod
    def _path(directory: Path, spec: DeviceSpec) -> Path:
        hardware = json.dumps([spec.device, spec.arch, spec.renderer, spec.cores])
        return directory / f"{hashlib.sha256(hardware.encode()).hexdigest()[:16]}.json"
