"""The convolutions that a program would run, found by the hook's own matcher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tinygrad import Tensor

from strategies.graph import seam
from strategies.graph.match import Conv
from strategies.graph.ranges import Ranges
from strategies.shape import ConvShape


def find_convolutions(build: Callable[[], Tensor | Sequence[Tensor]]) -> Counter[ConvShape]:
    """Canonical shape of every convolution in the graph of `build()`, with how often it occurs, in order.

    The graph is scheduled, nothing is compiled or run: tensors that it assigns to are of no use afterwards.
    Convolutions that no ConvShape describes are left out.
    """
    found: Counter[ConvShape] = Counter()

    def record(convs: Sequence[Conv], _: Ranges) -> list[None]:
        found.update(shape for conv in convs if (shape := conv.shape) is not None)
        return [None] * len(convs)

    with seam.attached(record):
        built = build()
        first, *rest = built if isinstance(built, Sequence) else (built,)
        first.schedule_linear(*rest)
    return found
