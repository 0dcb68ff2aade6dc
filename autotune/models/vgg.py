"""VGG-16 (Simonyan and Zisserman, "Very Deep Convolutional Networks", arXiv:1409.1556, configuration D)."""

from __future__ import annotations

from tinygrad import Tensor, nn

GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16:
    """For (batch, 3, 224, 224) images and 1000 classes."""

    def __init__(self, classes: int = 1000) -> None:
        self.groups: list[list[nn.Conv2d]] = []
        cin = 3
        for widths in GROUPS:
            self.groups.append([])
            for width in widths:
                self.groups[-1].append(nn.Conv2d(cin, width, 3, padding=1))
                cin = width
        self.fc = [nn.Linear(512 * 7 * 7, 4096), nn.Linear(4096, 4096), nn.Linear(4096, classes)]

    def __call__(self, x: Tensor) -> Tensor:
        for group in self.groups:
            for conv in group:
                x = conv(x).relu()
            pooled = x.max_pool2d((2, 2), 2)
            assert isinstance(pooled, Tensor)  # a pair only where indices are asked for
            x = pooled
        x = x.flatten(1)
        return self.fc[2](self.fc[1](self.fc[0](x).relu()).relu())
