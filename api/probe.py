"""The child of api/devices.py: run by path, answers one question about this machine's devices as one line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def answer(question: list[str]) -> Any:
    """`machine`: devices and flags; `describe DEVICE`: its DeviceSpec. The flags are this process's environment."""
    from autotune.compiler import CCompilerError, ensure_c_compiler

    with contextlib.suppress(CCompilerError):  # a GPU needs none
        ensure_c_compiler()
    from tinygrad import Device

    from strategies.graph.device import available_devices, describe_device, flag_rules

    if question[0] == "describe":
        return describe_device(question[1]).to_json()
    return {"default": Device.DEFAULT, "names": list(available_devices()), "flags": flag_rules()}


def cache_fault() -> str:
    """Where tinygrad cannot keep what it compiles, no device of it opens, and it does not say why."""
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    directory = Path(os.environ.get("XDG_CACHE_HOME") or usual).expanduser() / "tinygrad"
    try:
        if not os.environ.get("CACHEDB"):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"; tinygrad keeps what it compiles in {directory} ({error.strerror}): set XDG_CACHE_HOME to another"
    return ""


def main() -> int:
    """Prints `{"answer": ...}` or `{"error": ...}`."""
    sys.path.insert(0, str(ROOT))  # started by path with -P: nothing of the current directory may be imported
    try:
        document = {"answer": answer(sys.argv[1:])}
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is the answer
        document = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{cache_fault()}"}
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
