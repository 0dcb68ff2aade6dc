"""Ways to hold an intermediate."""

from __future__ import annotations

import pytest
from tinygrad import dtypes
from tinygrad.uop.ops import Ops, UOp

from strategies.graph.buffers import NEVER_SET, stored_singly


@pytest.mark.parametrize(("size", "with_term"), [(8, True), (NEVER_SET, True), (NEVER_SET + 1, False)])
def test_the_term_that_is_always_zero_is_zero(size: int, with_term: bool) -> None:
    """In a loop that is longer it would not be, and elements would be stored in the wrong place."""
    r = UOp.range(size, 0)
    held = stored_singly(r.cast(dtypes.float32), [r], [size], device="CPU", slot=0)
    assert any(u.op is Ops.AND for u in held.buffer.toposort()) == with_term
