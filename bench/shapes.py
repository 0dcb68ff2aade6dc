"""The shapes that the commands in bench/ measure."""

from __future__ import annotations

from strategies.shape import ConvShape

SHAPES = {
    "cpu": ((1, 16, 32), (1, 64, 56), (1, 128, 28), (1, 256, 14), (1, 512, 7), (8, 64, 56)),
    "gpu": (
        (8, 256, 56), (32, 256, 14), (32, 128, 28), (32, 64, 56), (8, 64, 224), (32, 512, 7), (1, 64, 56), (1, 128, 28),
        (1, 256, 14), (1, 512, 7),
    ),
    "recorded": (
        (1, 16, 32), (1, 32, 28), (1, 32, 56), (1, 64, 28), (1, 64, 56), (1, 128, 14), (1, 128, 28), (1, 256, 7),
        (1, 256, 14), (1, 512, 7), (8, 32, 28), (8, 64, 14),
    ),
}  # fmt: skip
"""batch, cin = cout, height = width; 3x3, padding 1. `recorded` are those of bench/record.py: a trial is quick."""


def conv_shape(batch: int, channels: int, size: int, dtype: str = "float32") -> ConvShape:
    return ConvShape.of((batch, channels, size, size), (channels, channels, 3, 3), padding=1, dtype=dtype)


def label(shape: ConvShape) -> str:
    return f"{shape.batch}x{shape.cin} {'x'.join(map(str, shape.spatial))}"
