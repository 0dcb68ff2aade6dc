"""From what a caller writes to the key that the tuner, the store and the hook agree on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from api.bodies import LookupQuery, ShapeBody
from api.devices import Devices
from api.settings import MAX_DEVICES
from strategies.key import ConvKey, DeviceSpec, KeyFormatError, Policy
from strategies.shape import ConvShape, ShapeError

REMEMBERED = 4096
"""Keys, which are asked for again and again: to make one and its digest takes 0.2 ms, to find it again 0.02."""


def body_shape(body: ShapeBody) -> ConvShape:
    """Raises ShapeError."""
    return _shape(_text([body.input, body.weight, body.options()]))


def body_keys(bodies: Sequence[ShapeBody], devices: Devices) -> list[ConvKey]:
    """Of many, in order. All shapes come before any device: opening one may take seconds.

    Raises ShapeError, UnknownDeviceError, and KeyFormatError for more different devices than one request may name.
    """
    shapes = []
    for index, body in enumerate(bodies):
        try:
            shapes.append(body_shape(body))
        except ShapeError as error:
            raise ShapeError(f"shapes[{index}]: {error}" if len(bodies) > 1 else str(error)) from None
    named = {_named(body): body for body in bodies}
    expect_few_devices(len(named))
    described = {name: devices.describe(body.device, body.flags) for name, body in named.items()}
    return [
        _key(shape, described[_named(body)], body.policy.policy()) for shape, body in zip(shapes, bodies, strict=True)
    ]


def expect_few_devices(count: int) -> None:
    """Raises KeyFormatError for more different devices than one request may name."""
    if count > MAX_DEVICES:
        raise KeyFormatError(
            f"a request may name {MAX_DEVICES} different devices and flags: got {count}; send several requests"
        )


def _named(body: ShapeBody) -> tuple[object, ...]:
    """What tells its device from another."""
    return (body.device, None if body.flags is None else tuple(sorted(body.flags.items())))


def query_shape(query: LookupQuery) -> ConvShape:
    """Raises ShapeError."""
    return parse_shape(
        query.input, query.weight, padding=query.padding, stride=query.stride, dilation=query.dilation,
        groups=query.groups, dtype=query.dtype, acc_dtype=query.acc_dtype,
    )  # fmt: skip


def query_policy(query: LookupQuery) -> Policy:
    """The policy in a lookup's URL."""
    return Policy(
        max_error=query.max_error, allow_tf32=query.allow_tf32, frozen_weights=query.frozen_weights,
        max_workspace_bytes=query.max_workspace_bytes,
    )  # fmt: skip


def parse_shape(
    input_text: str, weight_text: str, *, padding: str = "0", stride: str = "1", dilation: str = "1", **options: Any
) -> ConvShape:
    """A shape written as text, as on the command line: `1x64x56x56 64x64x3x3`, padding `1` or `1,2`."""
    return ConvShape.parse(
        input_text, weight_text, padding=parse_numbers("padding", padding), stride=parse_numbers("stride", stride),
        dilation=parse_numbers("dilation", dilation), **options,
    )  # fmt: skip


def parse_numbers(name: str, text: str) -> int | list[int]:
    """`1` or `1,2`; raises ShapeError."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ShapeError(f"{name} must look like 1 or 1,2: got {text[:40]!r}") from None
    return numbers[0] if len(numbers) == 1 else numbers


def parse_flags(text: str | None) -> dict[str, str] | None:
    """`BEAM=2,NOOPT=1`; None stays None. Raises KeyFormatError."""
    if text is None:
        return None
    flags = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise KeyFormatError(f"flags must look like BEAM=2,NOOPT=1: got {text[:40]!r}")
        flags[name] = value
    return flags


def json_key(data: Mapping[str, Any]) -> ConvKey:
    """A key from a request's JSON. Raises KeyFormatError or ShapeError, whatever is in it."""
    return _parsed_key(_text(data))


def _text(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:  # it was just within bounds when it was parsed
        raise KeyFormatError("expected a convolution, found JSON that is nested hundreds of levels deep") from None


@lru_cache(maxsize=REMEMBERED)
def _shape(text: str) -> ConvShape:
    input_shape, weight_shape, options = json.loads(text)
    return ConvShape.of(input_shape, weight_shape, **options)


@lru_cache(maxsize=REMEMBERED)
def _key(shape: ConvShape, device: DeviceSpec, policy: Policy) -> ConvKey:
    return ConvKey(shape=shape, device=device, policy=policy)


@lru_cache(maxsize=REMEMBERED)
def _parsed_key(text: str) -> ConvKey:
    try:
        key = ConvKey.from_json(json.loads(text))
        key.digest  # noqa: B018 - what cannot be digested is no key
    except (KeyFormatError, ShapeError):
        raise
    except (TypeError, AttributeError, KeyError, ValueError, OverflowError) as error:
        raise KeyFormatError(f"not a convolution key: {error}; send what ConvKey.to_json gives") from None
    return key
