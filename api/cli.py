"""The console script: light, so that Ctrl-C while the rest is imported is one line like everything else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """`api.dispatch.main`; 130 and one line if it is interrupted before it begins."""
    try:
        from api import dispatch

        return dispatch.main(argv)
    except KeyboardInterrupt:
        sys.stderr.write("autotune: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
