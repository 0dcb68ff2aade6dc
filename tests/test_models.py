"""The built-in networks: their shapes, and the convolutions that the matcher finds in them."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from tinygrad import Context, Tensor, nn

import autotune
from autotune.comparison import captured, compare
from autotune.models import NETWORKS
from strategies.graph.find import find_convolutions

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "output", "dense"),
    [
        ("resnet18", (1, 1000), 13),
        pytest.param("resnet34", (1, 1000), 29, marks=SLOW),
        pytest.param("resnet50", (1, 1000), 13, marks=SLOW),
        ("vgg16", (1, 1000), 13),
        pytest.param("unet", (1, 4, 32, 32), 17, marks=SLOW),
        pytest.param("yolo", (1, 144, 1344), 32, marks=SLOW),
        pytest.param("mobilenet", (1, 1000), 13, marks=SLOW),
    ],
)
def test_networks(name: str, output: tuple[int, ...], dense: int) -> None:
    """`dense`: 3x3 convolutions of stride 1, those that Winograd applies to. Weights are never made."""
    model, image = NETWORKS[name].outline()
    assert model(image).shape == output
    found = find_convolutions(lambda: model(image))
    assert sum(count for s, count in found.items() if s.kernel == (3, 3) and s.stride == (1, 1)) == dense


def test_comparison_is_interleaved_and_relative_to_the_first() -> None:
    Tensor.manual_seed(0)
    conv, image = nn.Conv2d(4, 4, 3, padding=1), Tensor.randn(1, 4, 8, 8).realize()
    build = lambda: conv(image)  # noqa: E731
    with Context(NOOPT=1):
        runs = {
            "plain": captured(build, contextlib.nullcontext()),
            "forced": captured(build, autotune.forced("hybrid_grid")),
        }
    order: list[str] = []

    def noted(name: str) -> tuple[float, np.ndarray]:
        order.append(name)
        return runs[name]()

    found = compare({name: lambda name=name: noted(name) for name in runs}, rounds=4)  # type: ignore[misc]
    assert order == ["plain", "forced", "forced", "plain"] * 2
    assert found.baseline == "plain"
    assert found.ratio("plain").median == 1.0
    assert found.difference("plain") == 0.0
    assert 0.0 < found.difference("forced") < 1e-5
    assert all(len(taken) == 4 and min(taken) > 0 for taken in found.times_s.values())
