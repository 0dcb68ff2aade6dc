"""A network like MobileNetV2 (Sandler et al., arXiv:1801.04381, table 2)."""

from __future__ import annotations

from tinygrad import Tensor, nn

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first."""


class ConvNorm:
    """A convolution and batch norm."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm(cout)

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class InvertedResidual:
    """A 1x1 that widens, a depthwise 3x3, a 1x1 that narrows, and a shortcut where shapes agree."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int) -> None:
        width = cin * expansion
        self.widen = ConvNorm(cin, width, 1) if expansion != 1 else None
        self.depthwise, self.narrow = ConvNorm(width, width, 3, stride, groups=width), ConvNorm(width, cout, 1)
        self.same = stride == 1 and cin == cout

    def __call__(self, x: Tensor) -> Tensor:
        y = self.widen(x).relu6() if self.widen is not None else x
        y = self.narrow(self.depthwise(y).relu6())
        return x + y if self.same else y


class MobileNet:
    """For (batch, 3, 224, 224) images and 1000 classes."""

    def __init__(self, classes: int = 1000) -> None:
        self.first, self.last = ConvNorm(3, 32, 3, 2), ConvNorm(320, 1280, 1)
        self.blocks: list[InvertedResidual] = []
        cin = 32
        for expansion, cout, count, stride in BLOCKS:
            for index in range(count):
                self.blocks.append(InvertedResidual(cin, cout, expansion, 1 if index else stride))
                cin = cout
        self.fc = nn.Linear(1280, classes)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.first(x).relu6()
        for block in self.blocks:
            x = block(x)
        return self.fc(self.last(x).relu6().mean((2, 3)))
