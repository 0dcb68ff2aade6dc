"""Run by path in a new interpreter: installs the hook, then becomes the program that `autotune run` was given.

Of ours the program sees `autotune` and `strategies`, whatever lies beside it; `api` and `db` are names that it may
well have itself.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.machinery
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.report import Stats

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """`launch.py SOURCE ON_MISS text|json SCRIPT [ARGS]`."""
    source, on_miss, said_as, script, *rest = sys.argv[1:]
    safe = bool(sys.flags.safe_path)  # then the first is no script's directory, but the program's own
    sys.path[: 0 if safe else 1] = [str(ROOT)]
    import autotune
    import strategies  # noqa: F401 - ours from here on: their sub-modules are found through them
    from autotune.compiler import CCompilerError, ensure_c_compiler

    try:
        ensure_c_compiler()
    except CCompilerError as error:  # tinygrad says it again if the program uses the CPU
        sys.stderr.write(f"autotune: {error}\n")
    folder = str(Path(script).resolve().parent)
    sys.path[:1] = [] if safe else [folder]
    sys.argv = [script, *rest]
    autotune.install(source, tune=on_miss == "tune")
    if said_as == "json":  # registered first, so said last
        atexit.register(say_as_json, autotune.stats)
    elif on_miss == "tune":
        from autotune.sources.asking_source import ASKED

        atexit.register(say_what_was_missed, autotune.stats, ASKED.is_set)
    else:
        atexit.register(say_what_was_missed, autotune.stats)
    if on_miss == "tune":
        atexit.register(autotune.uninstall)  # a program may end before its misses were sent
    become(script)


def say_what_was_missed(stats: Callable[[], Stats], asked: Callable[[], bool] | None = None) -> None:
    """One line at the end of a program that met convolutions of which not all had a winner. Where a service was to tune
    these, `asked` tells whether it was asked."""
    with contextlib.suppress(Exception):  # whatever the program made of stderr: its exit status stays its own
        said = stats()
        if said.hits < said.convolutions:
            from tinygrad import Device

            if asked is None:
                advice = "tune one with `autotune tune INPUT WEIGHT`, "
                advice += "as in `autotune tune 1x64x56x56 64x64x3x3 --padding 1`"
            else:
                advice = f"the service was {'asked' if asked() else 'not asked'} to tune the others"
            had = f"{said.hits} of {said.convolutions} convolutions had a winner on {Device.DEFAULT}"
            sys.stderr.write(f"autotune: {had}; {advice}\n")


def say_as_json(stats: Callable[[], Stats]) -> None:
    """Everything that was counted, on one line."""
    with contextlib.suppress(Exception):  # as above
        import json
        from dataclasses import asdict

        sys.stderr.write(json.dumps(asdict(stats())) + "\n")


def become(script: str) -> None:
    """Run a file as `__main__`, for good: threads and exit handlers that outlive its last line find their module."""
    path = os.path.abspath(script)  # noqa: PTH100 - a link stays a link
    code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    module = types.ModuleType("__main__")
    module.__file__, module.__loader__ = path, importlib.machinery.SourceFileLoader("__main__", path)
    module.__annotations__ = {}
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    exec(code, module.__dict__)  # noqa: S102 - the user's own program


if __name__ == "__main__":
    main()
