"""Residual networks (He et al., "Deep Residual Learning", arXiv:1512.03385)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinygrad import Tensor, nn

Layer = Callable[[Tensor], Tensor]


class BasicBlock:
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    EXPANSION = 1

    def __init__(self, cin: int, width: int, stride: int) -> None:
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 3, stride, 1, bias=False), nn.BatchNorm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm(width)
        self.shortcut = _shortcut(cin, width, stride)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + x.sequential(self.shortcut)).relu()


class Bottleneck:
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right); the stride is in the 3x3, as everywhere today."""

    EXPANSION = 4

    def __init__(self, cin: int, width: int, stride: int) -> None:
        cout = width * self.EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, cout, 1, bias=False), nn.BatchNorm(cout)
        self.shortcut = _shortcut(cin, cout, stride)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + x.sequential(self.shortcut)).relu()


class ResNet:
    """For (batch, 3, 224, 224) images; `counts` are the blocks of each of the four groups.

    `small` is for images like CIFAR's (batch, 3, 32, 32): a first convolution of 3x3 and stride 1, and no pooling.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], counts: Sequence[int], *, classes: int = 1000, small: bool = False
    ) -> None:
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        self.conv, self.bn = nn.Conv2d(3, 64, kernel, stride, padding, bias=False), nn.BatchNorm(64)
        self.small = small
        self.blocks: list[Layer] = []
        cin = 64
        for group, count in enumerate(counts):
            width = 64 << group
            for index in range(count):
                self.blocks.append(block(cin, width, 2 if group and not index else 1))
                cin = width * block.EXPANSION
        self.fc = nn.Linear(cin, classes)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        if not self.small:
            pooled = x.pad((1, 1, 1, 1)).max_pool2d((3, 3), 2)
            assert isinstance(pooled, Tensor)  # a pair only where indices are asked for
            x = pooled
        return self.fc(x.sequential(self.blocks).mean((2, 3)))


def _shortcut(cin: int, cout: int, stride: int) -> list[Layer]:
    if stride == 1 and cin == cout:
        return []
    return [nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm(cout)]
