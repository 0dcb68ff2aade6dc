"""The seam's tests against another tinygrad: `python bench/upstream.py 0.14.1`, or a path, or a git address.

That tinygrad is installed beside this environment, into a folder of its own that is gone afterwards, and the tests that
know tinygrad's internals run with it in front: the seam, matching, rewriting, gradients, frozen weights, options. What
broke is printed, its first line, and whether the hook would be active. The range that pyproject.toml allows is what has
passed here. Exit status 0 if nothing broke.

A version that the hook does not know is tried all the same: the tests tell the seam that it is supported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = (
    "test_seam.py", "test_match.py", "test_winowrite.py", "test_kernel_counts.py", "test_hook.py", "test_training.py",
    "test_frozen.py", "test_options.py", "test_nan.py", "test_key.py",
)  # fmt: skip
PLUGIN = """
import importlib.metadata
from strategies.graph import seam
seam.SUPPORTED = ".".join(importlib.metadata.version("tinygrad").split(".")[:2])
"""
PROBE = """
import importlib.metadata, tinygrad
from strategies.graph.seam import seam_fault
print(importlib.metadata.version("tinygrad"), tinygrad.__file__)
print(seam_fault() or "supported: the hook is active")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tinygrad", help="a version, a path or git+https://...")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--slow", action="store_true", help="the slow tests too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tinygrad-") as folder:
        given = options.tinygrad
        requirement = f"tinygrad=={given}" if given[:1].isdigit() else given
        install = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            folder,
            requirement,
        ]
        if subprocess.run(install, check=False).returncode:
            print(f"{requirement} cannot be installed", file=sys.stderr)
            return 1
        (Path(folder) / "any_tinygrad.py").write_text(PLUGIN)
        report = Path(folder) / "report.xml"
        environ = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
        probe = subprocess.run([sys.executable, "-c", PROBE], env=environ, cwd=ROOT, capture_output=True, text=True,
                               check=False)  # fmt: skip
        if probe.returncode:
            reason = (probe.stderr.splitlines() or [f"status {probe.returncode}"])[-1]
            print(f"BROKEN {requirement}: the seam cannot be imported, so no test can run: {reason}")
            return 1
        print(probe.stdout, end="")
        tests = [str(path) for name in TESTS if (path := ROOT / "tests" / name).exists()]
        command = [
            sys.executable, "-m", "pytest", "-q", "-n", str(options.jobs), "-p", "any_tinygrad", "--tb=no",
            f"--junitxml={report}", *(["--slow"] if options.slow else []), *tests,
        ]  # fmt: skip
        status = subprocess.run(command, env=environ, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
        return max(status, summarise(report)) if report.exists() else 1


def summarise(report: Path) -> int:
    """What passed and what broke, by file; 1 if anything did."""
    passed: Counter[str] = Counter()
    broken: list[str] = []
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by pytest a moment ago
        faults = [child for child in case if child.tag in ("failure", "error")]
        name = case.get("classname", "").rpartition("tests.")[2]
        if faults:
            reason = " ".join((faults[0].get("message") or "").split())[:160]
            broken.append(f"{name}::{case.get('name')}: {reason}")
        elif not any(child.tag == "skipped" for child in case):
            passed[name] += 1
    for name, count in sorted(passed.items()):
        print(f"{name}: {count} passed")
    for line in broken:
        print(f"BROKEN {line}")
    print(f"{sum(passed.values())} passed, {len(broken)} broke")
    return int(bool(broken) or not passed)


if __name__ == "__main__":
    sys.exit(main())
