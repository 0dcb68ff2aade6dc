"""ResNet-18, ResNet-50 and VGG-16 in PyTorch, as in autotune/models, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """A basic block, or with `wide` a bottleneck."""

    def __init__(self, cin: int, width: int, stride: int, wide: bool) -> None:
        super().__init__()
        cout = 4 * width if wide else width
        if wide:
            layers = [
                *_conv(cin, width, 1, 1), nn.ReLU(), *_conv(width, width, 3, stride), nn.ReLU(),
                *_conv(width, cout, 1, 1),
            ]  # fmt: skip
        else:
            layers = [*_conv(cin, width, 3, stride), nn.ReLU(), *_conv(width, width, 3, 1)]
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*(_conv(cin, cout, 1, stride) if stride != 1 or cin != cout else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _conv(cin: int, cout: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout)]


def _resnet(counts: tuple[int, ...], wide: bool) -> nn.Module:
    layers: list[nn.Module] = [*_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for group, count in enumerate(counts):
        for index in range(count):
            layers.append(Block(cin, 64 << group, 2 if group and not index else 1, wide))
            cin = (64 << group) * (4 if wide else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, 1000))


def _vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    cin = 3
    for widths in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
        for width in widths:
            layers += [nn.Conv2d(cin, width, 3, padding=1), nn.ReLU()]
            cin = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 1000))


NETWORKS: dict[str, Any] = {
    "resnet18": lambda: _resnet((2, 2, 2, 2), wide=False),
    "resnet50": lambda: _resnet((3, 4, 6, 3), wide=True),
    "vgg16": _vgg16,
}
