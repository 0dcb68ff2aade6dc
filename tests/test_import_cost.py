"""`import autotune` in a user's program: cheap, and no other package of a common name comes along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"api", "db", "fastapi", "optuna", "sqlalchemy"}


def test_import_autotune_leaves_the_service_out() -> None:
    program = "import autotune, json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    top_level = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "autotune" in top_level
    assert not top_level & FORBIDDEN
