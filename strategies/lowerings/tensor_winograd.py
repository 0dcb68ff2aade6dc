"""tinygrad's tensor-level Winograd (`WINO=1`), rebuilt at the seam: the notes' OLD."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.graph import Conv, Lowered, Plan, Ranges, Stage, winowrite
from strategies.key import ConvKey
from strategies.registry import strategy, three_tap_axes


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorWinograd:
    """No parameters: `WINO=1` has none."""


PLAN = Plan(
    tile=4,
    xhat=Stage(layout="ABGCT"),
    ghat=Stage(layout="AGOC"),
    mhat=Stage(layout="ABGOT"),
    output="inline",
    nested=False,
)


def applies(key: ConvKey) -> bool:
    """Where `WINO=1` acts: every axis has three taps, stride 1, dilation 1."""
    return all(three_tap_axes(key))


@strategy("tensor_winograd", TensorWinograd, applies=applies)
def tensor_winograd(conv: Conv, _: TensorWinograd, ranges: Ranges) -> Lowered | None:
    """F(4, 3) with XHAT, GHAT and MHAT staged, alpha outermost: the kernels of `Tensor.conv2d` under `WINO=1`.

        y = REDUCE(x * w; c, k)                       1 kernel
        ->  XHAT[a, b, c, t], GHAT[a, o, c], MHAT[a, b, o, t] = REDUCE(XHAT * GHAT; c), y = (At x At) MHAT
                                                      4 kernels, the last with the consumer fused

    `WINO=1` adds a CONTIGUOUS behind the output and so keeps its consumers apart; that is not rebuilt. Nor are its
    intermediates in float16 and bfloat16: here they are float32, which the error bound asks for, and which keeps the
    product off the tensor cores that `WINO=1` may then use.
    """
    return winowrite(conv, PLAN, ranges) if all(axis.is_winograd for axis in conv.axes) else None
