"""The strategies there are, and adding one: one new file, and nothing else is touched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import counted, kernel_count, normal
from tinygrad import Tensor
from tinygrad.helpers import Context

import autotune
from strategies import lowerings, registry
from strategies.key import ConvKey, DeviceSpec
from strategies.parameter import ParameterError
from strategies.registry import UnknownStrategyError, get_strategy, strategies
from strategies.shape import ConvShape

NEW = '''
"""Only GHAT staged."""

from dataclasses import dataclass

from strategies.graph.winowrite import Plan, Stage, winowrite
from strategies.parameter import param
from strategies.registry import strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    tile: int = param(2, (2, 4), "outputs per tile and axis")


@strategy("added", Added)
def added(conv, params, ranges):
    """What a newcomer wrote."""
    return winowrite(conv, Plan(tile=params.tile, ghat=Stage(layout="AGOC"), output="inline"), ranges)
'''


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A further place for strategies."""
    monkeypatch.setattr(lowerings, "__path__", [*lowerings.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("strategies.lowerings."):
            del sys.modules[name]


def test_the_named_strategies_are_there() -> None:
    names = [item.name for item in strategies()]
    assert names == sorted(names)
    assert {
        "direct", "tensor_winograd", "four_buffer", "hybrid_grid", "deferred_mhat", "inline_transforms",
        "single_fused", "blocked",
    } <= set(names)  # fmt: skip
    assert [item.name for item in strategies() if item.lower is None] == ["direct"]
    assert all(item.about for item in strategies())


def test_one_file_each() -> None:
    files = {path.stem for path in Path(lowerings.__file__ or "").parent.glob("*.py")} - {"__init__"}
    assert files == {item.name for item in strategies()}


def test_a_new_file_is_a_new_strategy(directory: Path) -> None:
    with pytest.raises(UnknownStrategyError, match="no strategy 'added': there are blocked, "):
        get_strategy("added")
    (directory / "added.py").write_text(NEW)
    importlib.invalidate_caches()
    item = get_strategy("added")
    assert item in strategies()
    assert [p.name for p in item.parameters] == ["tile"]
    assert item.about == "What a newcomer wrote."

    x, w = normal(1, 3, 8, 8), normal(4, 3, 3, 3, seed=1)
    plain = x.conv2d(w, padding=1).numpy()
    with Context(NOOPT=1), autotune.forced("added", tile=4):
        assert kernel_count(x.conv2d(w, padding=1)) == 2
        tuned: list[Tensor] = []
        did = counted(lambda: tuned.append(x.conv2d(w, padding=1).realize()))
        assert (did.convolutions, did.applied) == (0, 0)  # the schedule above is cached
    assert np.allclose(tuned[0].numpy(), plain, rtol=1e-4, atol=1e-4)


def test_a_name_that_is_taken(directory: Path) -> None:
    (directory / "copied.py").write_text(NEW.replace('"added"', '"direct"'))
    importlib.invalidate_caches()
    with pytest.raises(ParameterError, match="two strategies are called 'direct'"):
        strategies()


def test_parameters_are_refused_before_anything_is_attached() -> None:
    with pytest.raises(ParameterError, match="tile must be one of"), autotune.forced("four_buffer", tile=5):
        pass
    with pytest.raises(UnknownStrategyError, match="no strategy 'five_buffer'"), autotune.forced("five_buffer"):
        pass


@pytest.mark.parametrize(
    ("shape", "winograd", "tensor"),
    [
        (ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3)), True, True),
        (ConvShape.of((1, 4, 8), (4, 4, 3)), True, True),
        (ConvShape.of((1, 4, 8, 8), (4, 4, 3, 5)), True, False),
        (ConvShape.of((1, 4, 8, 8), (4, 4, 1, 3)), True, True),  # 1-D in all but name
        (ConvShape.of((1, 4, 8, 8), (4, 4, 1, 1)), False, False),
        (ConvShape.of((1, 4, 8, 8), (4, 4, 5, 5)), False, False),
        (ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), stride=2), False, False),
        (ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), stride=(1, 2)), True, False),
        (ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), dilation=2), False, False),
        (ConvShape.of((1, 4, 3, 3), (4, 4, 3, 3)), False, False),  # one output: a plain sum
    ],
)
def test_applicability_from_the_key(shape: ConvShape, winograd: bool, tensor: bool) -> None:
    key = ConvKey(shape=shape, device=DeviceSpec(device="CL"))
    applies = {item.name for item in strategies() if item.applies(key)}
    assert "direct" in applies
    assert ("tensor_winograd" in applies) == tensor
    any_kernel = {"direct", "tensor_cores", "tensor_cores_tf32", "implicit_gemm"}
    others = {item.name for item in strategies()} - any_kernel - {"im2col", "cache_blocked", "tensor_winograd"}
    assert applies >= others if winograd else not applies & others
    on_cpu = ConvKey(shape=shape, device=DeviceSpec(device="CPU"))
    assert not get_strategy("shared_memory").applies(on_cpu)
    assert get_strategy("im2col").applies(on_cpu)
    assert not get_strategy("im2col").applies(key)
