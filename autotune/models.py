"""Networks to tune and to measure with, written with tinygrad.nn, with random weights."""

from __future__ import annotations

from collections.abc import Callable

from tinygrad import Tensor, nn

Layer = Callable[[Tensor], Tensor]


class BasicBlock:
    """Two 3x3 convolutions and a shortcut (He et al., "Deep Residual Learning", arXiv:1512.03385, figure 5 left)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm(cout)
        same = stride == 1 and cin == cout
        self.shortcut: list[Layer] = [] if same else [nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm(cout)]

    def __call__(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + x.sequential(self.shortcut)).relu()


class ResNet18:
    """ResNet-18 for (batch, 3, 224, 224) images and 1000 classes."""

    INPUT = (1, 3, 224, 224)

    def __init__(self) -> None:
        self.conv, self.bn = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm(64)
        widths = (64, 64, 128, 128, 256, 256, 512, 512)
        pairs = zip((64, *widths), widths, strict=False)
        self.blocks: list[Layer] = [BasicBlock(cin, cout, 1 if cin == cout else 2) for cin, cout in pairs]
        self.fc = nn.Linear(512, 1000)

    def __call__(self, x: Tensor) -> Tensor:
        pooled = self.bn(self.conv(x)).relu().pad((1, 1, 1, 1)).max_pool2d((3, 3), 2)
        assert isinstance(pooled, Tensor)  # a pair only where indices are asked for
        return self.fc(pooled.sequential(self.blocks).mean((2, 3)))


def resnet18(*, seed: int = 0) -> tuple[ResNet18, Tensor]:
    """The network with realized random weights, and one realized input."""
    Tensor.manual_seed(seed)
    model = ResNet18()
    Tensor.realize(*nn.state.get_parameters(model))
    return model, Tensor.randn(*ResNet18.INPUT).realize()
