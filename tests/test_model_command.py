"""`autotune model`: from a network's name to a table and a comparison."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from api.cli import main
from api.console import CliError, UsageError
from api.networks import load

NETWORK = """
from tinygrad import Tensor, nn

def lazy():
    return Tensor.ones(1, 2, 8, 8).contiguous().conv2d(Tensor.ones(2, 2, 3, 3).contiguous(), padding=1)

def pair():
    conv = nn.Conv2d(2, 2, 3)
    return conv, Tensor.ones(1, 2, 8, 8)

def neither():
    return 3

def broken():
    raise RuntimeError("of the user's\\nown")

class Made:
    pair = staticmethod(pair)
"""


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a_network_of_mine.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(("name", "size"), [("lazy", 8), ("pair", 6), ("Made.pair", 6)])
def test_a_callable_of_the_users(name: str, size: int) -> None:
    build = load(f"a_network_of_mine:{name}", batch=1)
    assert build().shape == build().shape == (1, 2, size, size)


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("resnet19", UsageError, "expected one of resnet18"),
        ("none.onnx", UsageError, "found none at"),
        ("a_network_of_mine:absent", CliError, "AttributeError"),
        ("a_network_of_mine:neither", CliError, "found int"),
        ("a_network_of_mine:broken", CliError, "RuntimeError: of the user's own"),
        ("no_such_module:build", CliError, "ModuleNotFoundError"),
    ],
)
def test_what_is_no_network_is_one_line(name: str, error: type[CliError], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        load(name, batch=1)
    assert "\n" not in str(raised.value)


def an_onnx_file(path: Path) -> Path:
    """A convolution and a relu over images of any batch."""
    weights = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            onnx.helper.make_node("Relu", ["c"], ["y"]),
        ],
        "small",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4, 8, 8])],
        [weights],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.slow
def test_an_onnx_file_is_tuned_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AUTOTUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "model.db"))
    (tmp_path / "model.db").touch()
    file = an_onnx_file(tmp_path / "small.onnx")
    assert main(["model", str(file), "--batch", "2", "--budget", "2s", "--rounds", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    [row] = said["convolutions"]
    assert (row["name"], row["count"]) == ("2x3x8x8 4x3x3x3 padding 1", 1)
    assert row["direct_s"] > 0
    assert row["winner"]["state"] == "verified"
    assert said["whole"]["difference"] <= 1e-5
    assert row["share_before"] == pytest.approx(row["direct_s"] / said["whole"]["plain_s"])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(file.read_bytes()[:40])
    assert main(["model", str(damaged)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_service_is_not_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_URL", "http://127.0.0.1:1")
    assert main(["model", "resnet18"]) == 2
    assert "unset AUTOTUNE_URL" in capsys.readouterr().err
