"""Networks to tune and to measure with, written with tinygrad.nn, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinygrad import Tensor, nn

from autotune.models.mobilenet import MobileNet
from autotune.models.resnet import BasicBlock, Bottleneck, Layer, ResNet
from autotune.models.unet import UNet
from autotune.models.vgg import VGG16
from autotune.models.yolo import Yolo

__all__ = ["NETWORKS", "Network", "network", "resnet18"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How a network is made, and the shape of one input without its batch."""

    make: Callable[[], Layer]
    input: tuple[int, ...]

    def built(self, *, batch: int = 1, seed: int = 0) -> tuple[Layer, Tensor]:
        """The network with realized random weights, and one realized input of (batch, *input)."""
        Tensor.manual_seed(seed)
        model = self.make()
        Tensor.realize(*nn.state.get_parameters(model))
        return model, Tensor.randn(batch, *self.input).realize()

    def outline(self, *, batch: int = 1) -> tuple[Layer, Tensor]:
        """The same with buffers that nothing has been allocated for: to be scheduled, not to be run."""
        model = self.make()
        for parameter in nn.state.get_parameters(model):
            parameter.replace(Tensor.empty(*parameter.shape, dtype=parameter.dtype))
        return model, Tensor.empty(batch, *self.input)


IMAGE = (3, 224, 224)
NETWORKS: Mapping[str, Network] = {
    "resnet18": Network(make=lambda: ResNet(BasicBlock, (2, 2, 2, 2)), input=IMAGE),
    "resnet34": Network(make=lambda: ResNet(BasicBlock, (3, 4, 6, 3)), input=IMAGE),
    "resnet50": Network(make=lambda: ResNet(Bottleneck, (3, 4, 6, 3)), input=IMAGE),
    "vgg16": Network(make=VGG16, input=IMAGE),
    "unet": Network(make=UNet, input=(4, 32, 32)),
    "yolo": Network(make=Yolo, input=(3, 256, 256)),
    "mobilenet": Network(make=MobileNet, input=IMAGE),
}


def network(name: str, *, batch: int = 1, seed: int = 0) -> tuple[Layer, Tensor]:
    """The network of that name and one input. Raises KeyError for a name that is none of NETWORKS."""
    return NETWORKS[name].built(batch=batch, seed=seed)


def resnet18(*, seed: int = 0) -> tuple[Layer, Tensor]:
    """ResNet-18 and one image."""
    return network("resnet18", seed=seed)
