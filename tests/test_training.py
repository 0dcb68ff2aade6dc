"""Training with the hook: gradients within the bound, and the same steps."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import TOLERANCE, WINOGRAD, Array, counted, normal, relative
from tinygrad import Tensor, TinyJit, nn
from tinygrad.helpers import Context

import autotune

SIZE = (2, 3, 8, 7)


def gradients() -> list[Array]:
    x, w, b, v = normal(*SIZE), normal(4, 3, 3, 3, seed=1), normal(4, seed=2), normal(4, 2, 3, 3, seed=3)
    y = x.conv2d(w, b, padding=1).relu().conv2d(v, padding=(0, 1), groups=2)
    loss = (y * normal(2, 4, 6, 7, seed=4)).square().mean()
    return [g.numpy() for g in loss.gradient(x, w, b, v)]


QUICK = ("hybrid_grid", "deferred_mhat", "single_fused")


@pytest.mark.parametrize(
    "strategy", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WINOGRAD]
)
def test_gradients(strategy: str) -> None:
    with Context(NOOPT=1):
        expected = gradients()
        with autotune.forced(strategy):
            found: list[list[Array]] = []
            did = counted(lambda: found.append(gradients()))
    assert did.applied >= 2
    assert did.fallbacks == 0
    for mine, plain in zip(found[0], expected, strict=True):
        assert relative(mine, plain) < TOLERANCE


class Net:
    def __init__(self) -> None:
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.norm, self.last = nn.BatchNorm(4), nn.Linear(4 * 6 * 5, 5)

    def __call__(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.norm(self.first(x)).relu()).relu().flatten(1))


def train(jit: bool) -> tuple[list[float], list[Array]]:
    Tensor.manual_seed(0)
    net = Net()
    parameters = nn.state.get_parameters(net)
    optimiser = nn.optim.SGD(parameters, lr=0.05, momentum=0.9)
    x, y = normal(*SIZE), Tensor([1, 3])

    def step() -> Tensor:
        with Context(TRAINING=1):
            optimiser.zero_grad()
            loss = net(x).sparse_categorical_crossentropy(y).backward()
            return loss.realize(*optimiser.schedule_step())

    run = TinyJit(step) if jit else step
    losses = [run().item() for _ in range(4)]
    return losses, [p.numpy() for p in parameters]


@pytest.mark.parametrize(("strategy", "jit"), [("hybrid_grid", False), ("blocked", True)])
def test_optimiser_steps(strategy: str, jit: bool) -> None:
    found: list[tuple[list[float], list[Array]]] = []
    with Context(NOOPT=1):
        losses, parameters = train(jit)
        with autotune.forced(strategy):
            did = counted(lambda: found.append(train(jit)))
    assert did.applied >= 2
    assert losses[-1] < losses[0]
    assert np.allclose(found[0][0], losses, rtol=1e-4)
    for mine, plain in zip(found[0][1], parameters, strict=True):
        assert relative(mine, plain) < 5 * TOLERANCE
