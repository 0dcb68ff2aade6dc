"""What a shape may cost the machine that tunes it, and how many a request may name."""

from __future__ import annotations

import math
from collections.abc import Iterable

from api.problem import ProblemError
from api.settings import Settings
from strategies.shape import ConvShape

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def expect_batch(count: int, settings: Settings) -> None:
    """Raises ProblemError for more shapes than one request may name."""
    if count > settings.max_batch:
        raise ProblemError(
            422, f"expected at most {settings.max_batch} shapes in a request (AUTOTUNE_MAX_BATCH), found {count}: "
            "send several",
        )  # fmt: skip


def expect_affordable(shapes: Iterable[ConvShape], settings: Settings) -> None:
    """Raises ProblemError for one with too much memory or too much work."""
    for shape in shapes:
        tensors = (shape.input_shape, shape.weight_shape, shape.output_shape)
        size = sum(math.prod(tensor) for tensor in tensors) * ITEM_BYTES[shape.dtype]
        if size > settings.max_shape_bytes:
            raise ProblemError(
                422, f"{shape} has tensors of {size} bytes: at most {settings.max_shape_bytes} may be tuned here "
                "(AUTOTUNE_MAX_SHAPE_BYTES); make it smaller",
            )  # fmt: skip
        if shape.macs > settings.max_shape_macs:
            raise ProblemError(
                422, f"{shape} takes {shape.macs} multiply-accumulates: at most {settings.max_shape_macs} may be tuned "
                "here (AUTOTUNE_MAX_SHAPE_MACS); make it smaller",
            )  # fmt: skip
