"""A network by name: built in, a callable of the user's, or an ONNX file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.console import CliError, UsageError
from api.text import one_line

if TYPE_CHECKING:
    from tinygrad import Tensor

Build = Callable[[], "Tensor"]
"""Makes the network's lazy output, the same every time."""


def load(name: str, *, batch: int) -> Build:
    """`resnet18`, `package.module:callable` or `file.onnx`; weights and inputs are realized where we make them.

    A callable takes no arguments and gives the network's lazy output, or a pair of the network and its input. Raises
    UsageError for a name that is none of these, CliError for a network that cannot be made.
    """
    from autotune.models import NETWORKS

    if name in NETWORKS:
        model, x = NETWORKS[name].built(batch=batch)
        return lambda: model(x)
    if name.endswith(".onnx"):
        return _onnx(Path(name), batch)
    module, colon, attribute = name.partition(":")
    if colon and module and attribute:
        return _callable(module, attribute)
    raise UsageError(
        f"expected one of {', '.join(NETWORKS)}, a callable like package.module:callable or a file like model.onnx, "
        f"found {name!r}"
    )


def _callable(module: str, attribute: str) -> Build:
    from tinygrad import Tensor

    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - a console script does not look there by itself
    name = f"{module}:{attribute}"
    try:
        made: Any = importlib.import_module(module)
        for part in attribute.split("."):
            made = getattr(made, part)
        result = made()
    except Exception as error:  # the user's code raises anything
        raise CliError(f"{name} cannot be called: {type(error).__name__}: {one_line(str(error))}") from error
    if isinstance(result, Tensor):
        return lambda: _tensor(made(), name)
    if isinstance(result, tuple) and len(result) == 2 and callable(result[0]):
        network, x = result
        return lambda: _tensor(network(x), name)
    raise CliError(
        f"expected {name}() to give a tinygrad Tensor, or a network and its input, found {type(result).__name__}"
    )


def _tensor(value: Any, name: str) -> Tensor:
    from tinygrad import Tensor

    if not isinstance(value, Tensor):
        raise CliError(f"expected the output of {name} to be a tinygrad Tensor, found {type(value).__name__}")
    return value


def _onnx(path: Path, batch: int) -> Build:
    """Random inputs; a size that the file leaves open is the batch. The first output counts."""
    from tinygrad import Tensor, dtypes
    from tinygrad.nn.onnx import OnnxRunner

    if not path.is_file():
        raise UsageError(f"expected an ONNX file, found none at {path}: check its path")
    Tensor.manual_seed(0)
    try:
        make: Any = OnnxRunner  # not typed
        runner = make(path)
        inputs = {}
        for name, spec in runner.graph_inputs.items():
            shape = tuple(size if isinstance(size, int) else batch for size in spec.shape)
            floating = dtypes.is_float(spec.dtype)
            made = Tensor.randn(*shape, dtype=spec.dtype) if floating else Tensor.zeros(*shape, dtype=spec.dtype)
            inputs[name] = made.contiguous().realize()
        first = runner.graph_outputs[0]

        def build() -> Tensor:
            return _tensor(runner(inputs)[first], str(path))

        build()
    except CliError:
        raise
    except Exception as error:  # an importer raises anything on a file that it cannot read
        raise CliError(f"{path} cannot be imported: {type(error).__name__}: {one_line(str(error))}") from error
    return build
