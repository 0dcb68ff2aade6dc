"""Tests that use tinygrad's METAL device within this process: the stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import metal
import pytest
from metal.compiler import unavailable
from tinygrad.codegen import to_program_cache
from tinygrad.engine.realize import runtime_cache
from tinygrad.helpers import Context

metal.install()

needs_metal = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


@pytest.fixture
def fresh_metal() -> Iterator[None]:
    """Nothing compiled yet, and compiled in this process: compile workers would look for the real METAL."""
    to_program_cache.clear()
    runtime_cache.clear()
    with Context(PARALLEL=0):
        yield
    to_program_cache.clear()
    runtime_cache.clear()
