"""For GPUs with tensor cores, in float32 where the caller allows TF32: the product of `tensor_cores` in TF32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.graph import Conv, Lowered, Ranges
from strategies.key import ConvKey
from strategies.lowerings.tensor_cores import TensorCores, is_worth_blocks, product_of
from strategies.registry import strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCoresTF32(TensorCores):
    """The blocks of `tensor_cores`. A number has four bytes, so that shared memory has room for half as many."""

    GROUP: ClassVar[int] = 8


def applies(key: ConvKey) -> bool:
    """The caller chooses the precision, never the search."""
    return is_worth_blocks(key) and key.policy.allow_tf32 and key.shape.dtype == key.shape.acc_dtype == "float32"


@strategy("tensor_cores_tf32", TensorCoresTF32, applies=applies)
def tensor_cores_tf32(conv: Conv, params: TensorCoresTF32, ranges: Ranges) -> Lowered | None:
    """As `tensor_cores`, both operands rounded to the 10 binary digits of TF32, sums in float32.

    y = REDUCE(x * w; c, k)                       1 kernel
    ->  X[c, b, p, 8], W[c, k, o, 8], Y[o, (b, y)] = sum of W * X by a kernel of our own, y = Y
                                                  4 kernels
    """
    return product_of(conv, params.tiling, ranges)
