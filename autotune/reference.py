"""The convolution in float64, and the inputs that candidates are verified on."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from strategies.shape import ConvShape

Array = np.ndarray[Any, Any]

DISTRIBUTIONS = ("normal", "wide", "integers")
BLOCK_BYTES = 16 << 20
"""Of inputs gathered for one matrix product."""


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

    Matrix products (cout, cin x taps) x (cin x taps, outputs), of some rows of one image's outputs at a time: every
    output is computed and written once. Rows are dealt out to as many threads as there are processors, which helps
    most where BLAS has one thread for each call, as in the process that measures (autotune/child_environment.py).
    """
    padded = np.pad(x, ((0, 0), (0, 0), *shape.padding))
    per_group, couts = shape.cin // shape.groups, shape.cout // shape.groups
    images = padded.reshape(shape.batch, shape.groups, per_group, *padded.shape[2:])
    weights = w.reshape(shape.groups, couts, -1)
    result = np.empty((shape.batch, shape.groups, couts, *shape.output), x.dtype)
    row_bytes = weights.shape[2] * shape.groups * math.prod(shape.output[1:]) * x.itemsize
    rows = max(1, BLOCK_BYTES // row_bytes)

    def compute(image: int, start: int) -> None:
        part = slice(start, start + rows)
        taps = _windows(images[image], shape)[(slice(None),) * (2 + len(shape.kernel)) + (part,)]
        outputs = result[image, :, :, part]
        outputs[...] = (weights @ taps.reshape(shape.groups, weights.shape[2], -1)).reshape(outputs.shape)

    blocks = [(image, start) for image in range(shape.batch) for start in range(0, shape.output[0], rows)]
    with ThreadPoolExecutor(min(len(blocks), processors())) as pool:
        for done in [pool.submit(compute, *block) for block in blocks]:
            done.result()
    return result.reshape(shape.output_shape)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _windows(image: Array, shape: ConvShape) -> Array:
    """A view (groups, cin / groups, *kernel, *output) of a padded image (groups, cin / groups, *spatial)."""
    steps = image.strides[2:]
    taps = tuple(dilation * step for dilation, step in zip(shape.dilation, steps, strict=True))
    outputs = tuple(stride * step for stride, step in zip(shape.stride, steps, strict=True))
    sizes = (*image.shape[:2], *shape.kernel, *shape.output)
    strides = (*image.strides[:2], *taps, *outputs)
    return np.lib.stride_tricks.as_strided(image, sizes, strides, writeable=False)
