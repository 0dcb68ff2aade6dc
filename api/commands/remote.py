"""What the commands that talk to a service share."""

from __future__ import annotations

import os

from api.settings import Settings
from autotune.client import Client
from strategies.flags import KERNEL_FLAGS
from strategies.key import Policy
from strategies.shape import ConvShape, JsonObject


def client_of(settings: Settings) -> Client:
    """The service of AUTOTUNE_URL."""
    return Client(settings.url, token=settings.token)


def caller_flags() -> dict[str, str]:
    """The codegen flags in this environment: a winner belongs to the caller's BEAM, not to the service's."""
    return {name: os.environ[name] for name in KERNEL_FLAGS if os.environ.get(name)}


def shape_body(shape: ConvShape, policy: Policy, device: str | None) -> JsonObject:
    """A shape as `POST /tune` takes it."""
    flat = [side for pad in reversed(shape.padding) for side in pad]  # as tinygrad has it: last dimension first
    return {
        "input": list(shape.input_shape), "weight": list(shape.weight_shape), "padding": flat,
        "stride": list(shape.stride), "dilation": list(shape.dilation), "groups": shape.groups, "dtype": shape.dtype,
        "policy": policy.to_json(), "flags": caller_flags(), **({"device": device} if device else {}),
    }  # fmt: skip
