"""The shape of one convolution, as a value: what a lowering may depend on and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")
MAX_SPATIAL_DIMS = 2
MAX_DIM = 2**20
MAX_ELEMENTS = 2**31

JsonObject = dict[str, Any]


class ShapeError(ValueError):
    """A shape that makes no sense. The message says what was expected, what came and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvShape:
    """One convolution, in elements. `padding` is (before, after) per spatial dimension, in the order of `spatial`.

    `cin` and `cout` count all groups together, as in the input `(batch, cin, *spatial)` and the weight
    `(cout, cin // groups, *kernel)`. `acc_dtype` is the type the products are summed in.
    """

    batch: int
    cin: int
    cout: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    groups: int = 1
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dtype: str = "float32"
    acc_dtype: str = ""

    def __post_init__(self) -> None:
        dims = len(self.kernel)
        object.__setattr__(self, "stride", tuple(self.stride) or (1,) * dims)
        object.__setattr__(self, "dilation", tuple(self.dilation) or (1,) * dims)
        object.__setattr__(self, "padding", tuple(self.padding) or ((0, 0),) * dims)
        object.__setattr__(self, "acc_dtype", self.acc_dtype or "float32")
        _check(self)

    @property
    def output(self) -> tuple[int, ...]:
        """Spatial size of the output, in elements."""
        return tuple(
            (size + before + after - dilation * (taps - 1) - 1) // stride + 1
            for size, (before, after), taps, stride, dilation in zip(
                self.spatial, self.padding, self.kernel, self.stride, self.dilation, strict=True
            )
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.cin, *self.spatial)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.cout, self.cin // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.cout, *self.output)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the plain lowering."""
        return math.prod(self.output_shape) * math.prod(self.weight_shape[1:])

    def canonical(self) -> ConvShape:
        """The one spelling of this computation: what a graph shows, however the user wrote it.

        Along an axis whose windows share nothing the outputs are a batch and the taps are channels, and input that no
        output reads is not there. A 1x1 convolution keeps its stride: it computes what one without does, in loops that
        step otherwise through memory.
        """
        axes = list(zip(self.spatial, self.kernel, self.stride, self.dilation, self.padding, self.output, strict=True))
        pointwise = max(self.kernel) == 1 and not any(map(any, self.padding)) and min(self.output) > 1
        if not pointwise:
            axes = [_reduced(*axis) for axis in axes]
        kept = [a for a in axes if windows_share(a[5], a[1], a[2], a[3])] or axes
        folded = [a for a in axes if a not in kept]
        batch, cin = self.batch * math.prod(a[5] for a in folded), self.cin * math.prod(a[1] for a in folded)
        if max(batch, cin) > MAX_DIM:
            return self
        spatial, padding = [], []
        for size, taps, stride, dilation, (before, after), out in kept:
            unread = size + before + after - ((out - 1) * stride + dilation * (taps - 1) + 1)
            spatial.append(max(1, size - max(0, unread - after)))  # no output may read any of it
            padding.append((before, max(0, after - unread)))
        return ConvShape(
            batch=batch, cin=cin, cout=self.cout, groups=self.groups,
            spatial=tuple(spatial), kernel=tuple(a[1] for a in kept), stride=tuple(a[2] for a in kept),
            dilation=tuple(a[3] if a[1] > 1 else 1 for a in kept), padding=tuple(padding),
            dtype=self.dtype, acc_dtype=self.acc_dtype,
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        *,
        padding: int | Sequence[int] | Sequence[Sequence[int]] = 0,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        dtype: str = "float32",
        acc_dtype: str = "",
    ) -> ConvShape:
        """From the shapes of input `(N, C, *S)` and weight `(O, C/groups, *K)`, the way tinygrad prints them.

        `padding` is an int, one per dimension, or tinygrad's flat form (last dimension first, before then after).
        Raises ShapeError when the numbers do not make a convolution.
        """
        x = _ints("input", input_shape)
        w = _ints("weight", weight_shape)
        if len(x) != len(w) or not 3 <= len(x) <= 2 + MAX_SPATIAL_DIMS:
            raise ShapeError(
                f"input and weight need the same number of dimensions, 3 (1-D) or 4 (2-D): "
                f"got {_dims(x)} and {_dims(w)}; write for example 1x64x56x56 64x64x3x3"
            )
        _positive("input", x)
        _positive("weight", w)
        groups = _int("groups", groups)
        if groups < 1 or x[1] % groups or w[0] % groups:
            raise ShapeError(f"groups must divide the input's {x[1]} and the weight's {w[0]} channels: got {groups}")
        if w[1] * groups != x[1]:
            raise ShapeError(
                f"input has {x[1]} channels, weight expects {w[1]} x {groups} groups = {w[1] * groups}: "
                f"give a weight of {w[0]}x{x[1] // groups}x{_dims(w[2:])} or another number of groups"
            )
        dims = len(x) - 2
        return cls(
            batch=x[0], cin=x[1], cout=w[0], spatial=x[2:], kernel=w[2:], groups=groups,
            stride=_per_dim("stride", stride, dims), dilation=_per_dim("dilation", dilation, dims),
            padding=_padding(padding, dims), dtype=dtype, acc_dtype=acc_dtype,
        )  # fmt: skip

    @classmethod
    def parse(cls, input_text: str, weight_text: str, **options: Any) -> ConvShape:
        """From `1x64x56x56` and `64x64x3x3`; `options` as in `of`."""
        return cls.of(_parse_dims("input", input_text), _parse_dims("weight", weight_text), **options)

    def to_json(self) -> JsonObject:
        return {
            name: [list(item) if isinstance(item, tuple) else item for item in value]
            if isinstance(value, tuple)
            else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConvShape:
        """The inverse of `to_json`; raises ShapeError on anything else."""
        try:
            fields = dict(data)
            for name in ("spatial", "kernel", "stride", "dilation"):
                if name in fields:
                    fields[name] = _ints(name, fields[name])
            if "padding" in fields:
                fields["padding"] = tuple((_int("padding", a), _int("padding", b)) for a, b in fields["padding"])
            return cls(**fields)
        except (TypeError, ValueError) as error:
            if isinstance(error, ShapeError):
                raise
            raise ShapeError(f"not a convolution shape: {error}") from None

    def __str__(self) -> str:
        text = f"{_dims(self.input_shape)} {_dims(self.weight_shape)}"
        ones = (1,) * len(self.kernel)
        if any(pad != (0, 0) for pad in self.padding):
            text += f" padding {_compact(self.padding)}"
        if self.stride != ones:
            text += f" stride {_compact(self.stride)}"
        if self.dilation != ones:
            text += f" dilation {_compact(self.dilation)}"
        if self.groups != 1:
            text += f" groups {self.groups}"
        return text if self.dtype == "float32" else f"{text} {self.dtype}"


def windows_share(size: int, taps: int, stride: int, dilation: int) -> bool:
    """Whether some of the `size` outputs along an axis read an element in common. If not, it is a matrix product."""
    common = math.gcd(stride, dilation)
    return size > dilation // common and taps > stride // common


def _reduced(
    size: int, taps: int, stride: int, dilation: int, padding: tuple[int, int], out: int
) -> tuple[int, int, int, int, tuple[int, int], int]:
    """An axis without what stride and dilation have in common: only every g-th padded position is ever read."""
    g = math.gcd(stride if out > 1 else 0, dilation if taps > 1 else 0)
    if g <= 1:
        return (size, taps, stride, dilation, padding, out)
    positions = range(0, (out - 1) * stride + dilation * (taps - 1) + 1, g)
    before = sum(p < padding[0] for p in positions)
    inside = sum(padding[0] <= p < padding[0] + size for p in positions)
    if not inside:
        return (size, taps, stride, dilation, padding, out)
    return (inside, taps, max(1, stride // g), max(1, dilation // g), (before, len(positions) - before - inside), out)


def _check(shape: ConvShape) -> None:
    dims = len(shape.kernel)
    if not 1 <= dims <= MAX_SPATIAL_DIMS:
        raise ShapeError(f"expected 1 or {MAX_SPATIAL_DIMS} spatial dimensions, got {dims}")
    for name in ("spatial", "stride", "dilation", "padding"):
        if len(getattr(shape, name)) != dims:
            raise ShapeError(f"{name} needs {dims} entries, one per spatial dimension: got {getattr(shape, name)}")
    for name in ("batch", "cin", "cout", "groups"):
        _positive(name, (_int(name, getattr(shape, name)),))
    for name in ("spatial", "kernel", "stride", "dilation"):
        _positive(name, _ints(name, getattr(shape, name)))
    if any(_int("padding", side) < 0 or side > MAX_DIM for pad in shape.padding for side in pad):
        raise ShapeError(f"padding must be 0 or more on every side: got {_compact(shape.padding)}")
    if shape.cin % shape.groups or shape.cout % shape.groups:
        raise ShapeError(f"groups must divide {shape.cin} and {shape.cout} channels: got {shape.groups}")
    if shape.dtype not in DTYPES or shape.acc_dtype not in DTYPES:
        raise ShapeError(f"dtype must be one of {', '.join(DTYPES)}: got {shape.dtype!r} summed in {shape.acc_dtype!r}")
    if any(size < 1 for size in shape.output):
        raise ShapeError(
            f"the kernel {_dims(shape.kernel)} does not fit in the padded input {_dims(shape.spatial)} "
            f"with padding {_compact(shape.padding)}: give a larger input or more padding"
        )
    if max(math.prod(s) for s in (shape.input_shape, shape.weight_shape, shape.output_shape)) > MAX_ELEMENTS:
        raise ShapeError(f"a tensor of this convolution has more than {MAX_ELEMENTS} elements: make it smaller")


def _padding(padding: Any, dims: int) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, Sequence) and not isinstance(padding, str):
        items = list(padding)
        if len(items) == dims and all(isinstance(item, Sequence) and len(item) == 2 for item in items):
            return tuple((_int("padding", a), _int("padding", b)) for a, b in items)
        flat = _ints("padding", items)
        if len(flat) == 2 * dims:  # tinygrad: last dimension first
            return tuple((flat[2 * d], flat[2 * d + 1]) for d in reversed(range(dims)))
        if len(flat) == dims:
            return tuple((p, p) for p in flat)
        raise ShapeError(f"padding takes 1, {dims} or {2 * dims} numbers here: got {len(flat)}")
    return ((_int("padding", padding),) * 2,) * dims


def _per_dim(name: str, value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        values = _ints(name, value)
        if len(values) != dims:
            raise ShapeError(f"{name} takes one number or {dims}: got {len(values)}")
        return values
    return (_int(name, value),) * dims


def _int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ShapeError(f"{name} must be a whole number: got {value!r}")
    return value


def _ints(name: str, values: Any) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ShapeError(f"{name} must be a list of whole numbers: got {values!r}")
    return tuple(_int(name, value) for value in values)


def _positive(name: str, values: tuple[int, ...]) -> None:
    if any(not 1 <= value <= MAX_DIM for value in values):
        raise ShapeError(f"{name} sizes must be between 1 and {MAX_DIM}: got {_dims(values)}")


def _parse_dims(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ShapeError(f"{name} must look like 1x64x56x56: got {text!r}") from None


def _dims(values: Sequence[int]) -> str:
    return "x".join(str(value) for value in values)


def _compact(values: Sequence[Any]) -> str:
    """`1` when every entry says the same, else the entries."""
    flat = [v for item in values for v in (item if isinstance(item, tuple) else (item,))]
    return str(flat[0]) if len(set(flat)) == 1 else ",".join(str(v) for v in flat)
