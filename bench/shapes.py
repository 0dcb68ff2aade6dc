"""The shapes that the commands in bench/ measure."""

from __future__ import annotations

from strategies.shape import ConvShape

Size = tuple[int, ...]
"""Arguments of `conv_shape`."""

SHAPES: dict[str, tuple[Size, ...]] = {
    "cpu": ((1, 16, 32), (1, 64, 56), (1, 128, 28), (1, 256, 14), (1, 512, 7), (8, 64, 56)),
    "gpu": (
        (8, 256, 56), (32, 256, 14), (32, 128, 28), (32, 64, 56), (8, 64, 224), (32, 512, 7), (1, 64, 56), (1, 128, 28),
        (1, 256, 14), (1, 512, 7),
    ),
    "recorded": (
        (1, 16, 32), (1, 32, 28), (1, 32, 56), (1, 64, 28), (1, 64, 56), (1, 128, 14), (1, 128, 28), (1, 256, 7),
        (1, 256, 14), (1, 512, 7), (8, 32, 28), (8, 64, 14),
    ),
    "others": (
        (1, 3, 224, 64, 7, 2), (1, 64, 56, 256, 1), (1, 256, 56, 64, 1), (1, 512, 28, 1024, 1, 2), (1, 2048, 7, 512, 1),
        (1, 64, 56, 128, 3, 2), (1, 256, 14, 512, 3, 2), (1, 48, 27, 128, 5), (1, 128, 28, 128, 3, 1, 32),
        (1, 144, 56, 144, 3, 1, 144),
    ),
    "gpu-others": (
        (1, 3, 224, 64, 7, 2), (32, 3, 224, 64, 7, 2), (1, 64, 56, 256, 1), (32, 64, 56, 256, 1), (1, 256, 56, 64, 1),
        (32, 256, 56, 64, 1), (32, 256, 56, 512, 1, 2), (1, 512, 28, 1024, 1, 2), (32, 1024, 14, 256, 1),
        (1, 2048, 7, 512, 1), (32, 2048, 7, 512, 1), (1, 64, 56, 128, 3, 2), (32, 128, 56, 128, 3, 2),
        (1, 256, 14, 512, 3, 2), (32, 48, 27, 128, 5), (32, 16, 112, 96, 1), (32, 96, 56, 24, 1), (32, 960, 7, 320, 1),
    ),
}  # fmt: skip
"""batch, cin, height = width, then cout (as cin), kernel (3), stride (1), groups (1). `recorded` are those of
bench/record.py: a trial is quick. `others` are of ResNet-50, AlexNet, ResNeXt-50 and MobileNetV2: no Winograd is for
most of them, nor for any of `gpu-others`."""


def conv_shape(
    batch: int, cin: int, size: int, cout: int = 0, kernel: int = 3, stride: int = 1, groups: int = 1, *,
    dtype: str = "float32",
) -> ConvShape:  # fmt: skip
    weight = (cout or cin, cin // groups, kernel, kernel)
    return ConvShape.of(
        (batch, cin, size, size), weight, padding=kernel // 2, stride=stride, groups=groups, dtype=dtype
    )


def label(shape: ConvShape) -> str:
    """`1x64 56x56`, and after that what is not a 3x3 of stride 1 with as many outputs as inputs."""
    rest = [
        f" to {shape.cout}" if shape.cout != shape.cin else "",
        f", {'x'.join(map(str, shape.kernel))}" if set(shape.kernel) != {3} else "",
        f", stride {shape.stride[0]}" if set(shape.stride) != {1} else "",
        f", groups {shape.groups}" if shape.groups != 1 else "",
    ]
    return f"{shape.batch}x{shape.cin} {'x'.join(map(str, shape.spatial))}{''.join(rest)}"
