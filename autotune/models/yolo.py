"""A detector like YOLOv8's smallest: a cross-stage backbone, a neck up and down, heads at three scales."""

from __future__ import annotations

from collections.abc import Callable

from tinygrad import Tensor, nn

CLASSES, BINS = 80, 16
Layer = Callable[[Tensor], Tensor]


class ConvNorm:
    """A convolution, batch norm and SiLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1) -> None:
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm(cout)

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).silu()


class CrossStage:
    """Half of the channels pass `count` pairs of 3x3 convolutions; all that came about is joined by a 1x1."""

    def __init__(self, cin: int, cout: int, count: int = 1, *, residual: bool = True) -> None:
        self.half, self.residual = cout // 2, residual
        self.split = ConvNorm(cin, cout, 1)
        self.pairs = [(ConvNorm(self.half, self.half), ConvNorm(self.half, self.half)) for _ in range(count)]
        self.join = ConvNorm((2 + count) * self.half, cout, 1)

    def __call__(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, dim=1))
        for first, second in self.pairs:
            y = second(first(parts[-1]))
            parts.append(parts[-1] + y if self.residual else y)
        return self.join(Tensor.cat(*parts, dim=1))


class Pyramid:
    """Three max poolings of 5x5 after each other, joined."""

    def __init__(self, channels: int) -> None:
        self.before, self.after = ConvNorm(channels, channels // 2, 1), ConvNorm(channels * 2, channels, 1)

    def __call__(self, x: Tensor) -> Tensor:
        parts = [self.before(x)]
        for _ in range(3):
            pooled = parts[-1].pad((2, 2, 2, 2), value=float("-inf")).max_pool2d((5, 5), 1)
            assert isinstance(pooled, Tensor)
            parts.append(pooled)
        return self.after(Tensor.cat(*parts, dim=1))


class Head:
    """Boxes and classes of one scale."""

    def __init__(self, cin: int) -> None:
        self.boxes: list[Layer] = [ConvNorm(cin, 64), ConvNorm(64, 64), nn.Conv2d(64, 4 * BINS, 1)]
        self.classes: list[Layer] = [ConvNorm(cin, CLASSES), ConvNorm(CLASSES, CLASSES), nn.Conv2d(CLASSES, CLASSES, 1)]

    def __call__(self, x: Tensor) -> Tensor:
        return x.sequential(self.boxes).cat(x.sequential(self.classes), dim=1).flatten(2)


class Yolo:
    """For (batch, 3, 256, 256) images; gives (batch, 144, anchors)."""

    def __init__(self) -> None:
        self.stem: list[Layer] = [ConvNorm(3, 16, 3, 2), ConvNorm(16, 32, 3, 2), CrossStage(32, 32)]
        self.p3: list[Layer] = [ConvNorm(32, 64, 3, 2), CrossStage(64, 64, 2)]
        self.p4: list[Layer] = [ConvNorm(64, 128, 3, 2), CrossStage(128, 128, 2)]
        self.p5: list[Layer] = [ConvNorm(128, 256, 3, 2), CrossStage(256, 256), Pyramid(256)]
        self.up4, self.up3 = CrossStage(384, 128, residual=False), CrossStage(192, 64, residual=False)
        self.down4: list[Layer] = [ConvNorm(64, 64, 3, 2), CrossStage(192, 128, residual=False)]
        self.down5: list[Layer] = [ConvNorm(128, 128, 3, 2), CrossStage(384, 256, residual=False)]
        self.heads = [Head(64), Head(128), Head(256)]

    def __call__(self, x: Tensor) -> Tensor:
        p3 = x.sequential(self.stem).sequential(self.p3)
        p4 = p3.sequential(self.p4)
        p5 = p4.sequential(self.p5)
        n4 = self.up4(_doubled(p5).cat(p4, dim=1))
        n3 = self.up3(_doubled(n4).cat(p3, dim=1))
        n4 = self.down4[1](self.down4[0](n3).cat(n4, dim=1))
        n5 = self.down5[1](self.down5[0](n4).cat(p5, dim=1))
        return Tensor.cat(*(head(n) for head, n in zip(self.heads, (n3, n4, n5), strict=True)), dim=2)


def _doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
