"""What every test relies on: tinygrad's CPU device with a C compiler, and `--slow`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from autotune.compiler import CCompilerError, ensure_c_compiler

# A test that names no device means the CPU, also where tinygrad would prefer another, such as an installed OpenCL.
os.environ.setdefault("DEV", "CPU")
# Before any test imports tinygrad, which reads CC once.
try:
    ensure_c_compiler()
except CCompilerError as error:
    pytest.exit(str(error), returncode=1)

# As in CI: no time limits for examples, which other programs on the machine would break, and the same ones each time.
settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Devices' locks of this process of tests and what it starts: none waits for a measurement of another process or
    program on the machine, nor finds a device in use by one."""
    folder = tmp_path_factory.mktemp("locks")
    folder.chmod(0o1777)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTUNE_LOCKS", str(folder))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason='slow: make test ARGS="--slow" runs it'))
