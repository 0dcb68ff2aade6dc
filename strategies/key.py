"""What a winner belongs to: shape + device + policy, with a digest that outlives processes and exports."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from strategies.flags import is_flag
from strategies.shape import ConvShape, JsonObject

KEY_VERSION = 1
"""Part of every digest: a changed meaning of a field makes new keys, never wrong winners."""


class KeyFormatError(ValueError):
    """JSON that is not a key of this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """The device and the code generator in front of it.

    Everything above `driver` changes the kernels and is in the digest. `driver`, `os` and `compiler` may change
    their speed: a difference there makes a winner provisional, not unknown.
    """

    device: str
    arch: str = ""
    renderer: str = ""
    cores: int = 0
    tinygrad: str = ""
    flags: tuple[tuple[str, str], ...] = ()
    """Code generation flags that change kernels (`BEAM`, `TC`, `NOOPT`, ...), as sorted (name, value) pairs."""
    driver: str = ""
    os: str = ""
    compiler: str = ""
    simulated: str = ""
    """What only pretends to be this device, empty for a real one. Its times mean nothing: in the digest, so that no
    winner of it meets a real device's key, and such winners are neither exported nor imported."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "flags", tuple(sorted(self.flags)))

    def identity(self) -> JsonObject:
        """The fields in the digest."""
        real: JsonObject = {
            "device": self.device, "arch": self.arch, "renderer": self.renderer, "cores": self.cores,
            "tinygrad": self.tinygrad, "flags": [list(pair) for pair in self.flags],
        }  # fmt: skip
        return real | ({"simulated": self.simulated} if self.simulated else {})

    @property
    def title(self) -> str:
        """Its name for a table."""
        return f"{self.device} (simulated)" if self.simulated else self.device

    @property
    def surroundings(self) -> tuple[str, str, str]:
        """The fields whose change makes a winner provisional."""
        return (self.driver, self.os, self.compiler)

    def to_json(self) -> JsonObject:
        return {**self.identity(), "driver": self.driver, "os": self.os, "compiler": self.compiler}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceSpec:
        _expect(isinstance(data, Mapping), f"a device must be an object: got {data!r}")
        known = {f.name for f in fields(cls)}
        _expect(set(data) <= known, f"unknown device fields {sorted(set(data) - known)}")
        values = dict(data)
        pairs = values.get("flags", ())
        _expect(
            isinstance(pairs, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs),
            "flags must be a list of [name, value] pairs",
        )
        values["flags"] = tuple((str(name), str(value)) for name, value in pairs)
        # they become a process's environment: nothing but tinygrad's own settings, with plain values
        unknown = sorted(name for name, value in values["flags"] if not is_flag(name, value))
        _expect(
            not unknown, f"{', '.join(map(repr, unknown))}: not among the flags that change kernels, or no plain value"
        )
        texts = ("device", "arch", "renderer", "tinygrad", "driver", "os", "compiler", "simulated")
        _expect(all(isinstance(values.get(t, ""), str) for t in texts), f"{', '.join(texts)} must be text")
        _expect(isinstance(values.get("cores", 0), int), "cores must be a whole number")
        _expect("device" in values, "device is missing")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the caller allows and promises. `max_error` tightens the verification bound, it never loosens it; with
    `allow_tf32` that of float32 is TF32's, 1e-3."""

    max_error: float | None = None
    allow_tf32: bool = False
    frozen_weights: bool = False
    max_workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_error is not None:  # 1 and 1.0 are one policy, and one digest
            object.__setattr__(self, "max_error", float(self.max_error))

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        _expect(isinstance(data, Mapping), f"a policy must be an object: got {data!r}")
        known = {f.name for f in fields(cls)}
        _expect(set(data) <= known, f"unknown policy fields {sorted(set(data) - known)}")
        error, workspace = data.get("max_error"), data.get("max_workspace_bytes")
        _expect(
            # a whole number may be beyond every float, of which the policy makes one
            error is None or (type(error) in (int, float) and 0 < error <= sys.float_info.max),
            f"max_error must be a positive number: got {error!r}",
        )
        _expect(
            workspace is None or (isinstance(workspace, int) and not isinstance(workspace, bool) and workspace >= 0),
            f"max_workspace_bytes must be 0 or more: got {workspace!r}",
        )
        for name in ("allow_tf32", "frozen_weights"):
            _expect(isinstance(data.get(name, False), bool), f"{name} must be true or false: got {data.get(name)!r}")
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class ConvKey:
    """One convolution on one device under one policy. Equal digests mean that a winner may be reused."""

    shape: ConvShape
    device: DeviceSpec
    policy: Policy = field(default_factory=Policy)

    @cached_property
    def digest(self) -> str:
        """32 hex digits of SHA-256 over the canonical JSON of canonical shape, device identity and policy."""
        content = {
            "version": KEY_VERSION, "shape": self.shape.canonical().to_json(),
            "device": self.device.identity(), "policy": self.policy.to_json(),
        }  # fmt: skip
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def difference(self, other: ConvKey) -> dict[str, tuple[Any, Any]]:
        """Field by field, `{"shape.cin": (64, 128)}`: why two keys are not the same."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        names = sorted(mine.keys() | theirs.keys())
        return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}

    def to_json(self) -> JsonObject:
        return {
            "version": KEY_VERSION, "shape": self.shape.to_json(),
            "device": self.device.to_json(), "policy": self.policy.to_json(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConvKey:
        _expect(isinstance(data, Mapping), f"a key must be an object: got {type(data).__name__}")
        version = data.get("version", KEY_VERSION)
        _expect(version == KEY_VERSION, f"key version {version} is not {KEY_VERSION}: written by another release")
        for name in ("shape", "device"):
            _expect(isinstance(data.get(name), Mapping), f"{name} is missing or not an object")
        _expect(isinstance(data.get("policy", {}), Mapping), "policy must be an object")
        return cls(
            shape=ConvShape.from_json(data["shape"]),
            device=DeviceSpec.from_json(data["device"]),
            policy=Policy.from_json(data.get("policy", {})),
        )

    def __str__(self) -> str:
        return f"{self.shape} on {self.device.device}"


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise KeyFormatError(message)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in data.items():
        if name == "flags":
            result.update({f"{prefix}flags.{flag}": setting for flag, setting in value})
        elif isinstance(value, Mapping):
            result.update(_flat(value, f"{prefix}{name}."))
        else:
            result[prefix + name] = value
    return result
