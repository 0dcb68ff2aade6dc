"""The convolution in float64, and the inputs that candidates are verified on."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from strategies.shape import ConvShape

Array = np.ndarray[Any, Any]

DISTRIBUTIONS = ("normal", "wide", "integers")


def inputs(shape: ConvShape, distribution: str, seed: int) -> tuple[Array, Array]:
    """Input and weight in float64, of `shape.input_shape` and `shape.weight_shape`.

    `normal` is what networks see, `wide` spreads magnitudes over four decades (two in half precision, which could not
    hold the sums), on small `integers` a direct convolution is exact. Raises ValueError for any other name.
    """
    rng = np.random.default_rng((seed, DISTRIBUTIONS.index(distribution)))
    sizes = (shape.input_shape, shape.weight_shape)
    if distribution == "integers":
        x, w = (rng.integers(-8, 9, size).astype(np.float64) for size in sizes)
    else:
        x, w = (rng.normal(size=size) for size in sizes)
    if distribution == "wide":
        decades = 2.0 if shape.dtype == "float16" else 4.0
        x = x * 10.0 ** rng.uniform(-decades, 0.0, x.shape)
    if shape.dtype == "float16":  # keep sums over many channels below 65504
        w = w / np.sqrt(np.prod(shape.weight_shape[1:])) if distribution != "integers" else np.sign(w)
    return x, w


def convolve(x: Array, w: Array, shape: ConvShape) -> Array:
    """The convolution of `x` (batch, cin, *spatial) with `w` (cout, cin / groups, *kernel) in their own precision.

    One matrix product per tap: (cout, cin) x (cin, outputs), for each image and group.
    """
    padded = np.pad(x, ((0, 0), (0, 0), *shape.padding))
    per_group = shape.cin // shape.groups
    grouped = padded.reshape(shape.batch, shape.groups, per_group, *padded.shape[2:])
    weights = w.reshape(shape.groups, shape.cout // shape.groups, per_group, *shape.kernel)
    result = np.zeros((shape.batch, shape.groups, shape.cout // shape.groups, int(np.prod(shape.output))), x.dtype)
    for tap in itertools.product(*map(range, shape.kernel)):
        window = tuple(
            slice(k * dilation, k * dilation + (out - 1) * stride + 1, stride)
            for k, out, stride, dilation in zip(tap, shape.output, shape.stride, shape.dilation, strict=True)
        )
        view = grouped[(slice(None),) * 3 + window].reshape(shape.batch, shape.groups, per_group, -1)
        result += weights[(slice(None),) * 3 + tap] @ view
    return result.reshape(shape.output_shape)
