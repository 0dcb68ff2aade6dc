"""A candidate: everything that is needed to reproduce one lowering, as plain JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from strategies.shape import JsonObject

Value = int | str | bool
Option = tuple[Any, ...]
"""`(op, axis, arg)`: the name of an operation of tinygrad's, a number or None, a number, several or None."""


class CandidateFormatError(ValueError):
    """JSON that is not a candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """tinygrad's options for one kernel, in the order in which they are applied.

    `axes` are the kernel's loops before the first of them, as `g64 g56 R64 R3`: what the axis numbers count, and so
    what a kernel must have for the options to be meant for it; or their kinds alone, as `g g R R`, for options that
    were found on another shape. An option is `(op, axis, arg)`, as `("UPCAST", 1, 4)`.
    """

    axes: str
    options: tuple[Option, ...]

    @property
    def anywhere(self) -> KernelOptions:
        """For kernels with loops of the same kinds, whatever their extents."""
        return replace(self, axes=kinds_of(self.axes))

    def to_json(self) -> JsonObject:
        return {"axes": self.axes, "options": [_thawed(option) for option in self.options]}

    @classmethod
    def from_json(cls, data: Any) -> KernelOptions:
        axes, options = (data.get("axes"), data.get("options")) if isinstance(data, Mapping) else (None, None)
        if not isinstance(axes, str) or not isinstance(options, list) or not all(map(_is_option, options)):
            raise CandidateFormatError(f"a kernel's options are axes and a list of [op, axis, arg]: got {data!r}")
        return cls(axes=axes, options=tuple(map(_frozen, options)))


def kinds_of(axes: str) -> str:
    """`g g R R` of `g64 g56 R64 R3`."""
    return " ".join(axis[:1] for axis in axes.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A strategy's name, its parameters as sorted (name, value) pairs, and options per kernel.

    `kernel_options` holds options for kernels by their role in the lowering: XHAT, GHAT, product, tiles, output, or
    convolution, where all of it is one kernel. Of kernels that are not named, tinygrad's own heuristics decide.
    """

    strategy: str
    params: tuple[tuple[str, Value], ...] = ()
    kernel_options: tuple[tuple[str, KernelOptions], ...] = ()

    @classmethod
    def of(cls, strategy: str, **params: Value) -> Candidate:
        return cls(strategy=strategy, params=tuple(sorted(params.items())))

    @property
    def structure(self) -> Candidate:
        """Without options: what its kernels are before any are chosen."""
        return replace(self, kernel_options=())

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 over the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> JsonObject:
        return {
            "strategy": self.strategy,
            "params": dict(self.params),
            "kernel_options": {role: options.to_json() for role, options in self.kernel_options},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        strategy: object = data.get("strategy") if hasattr(data, "get") else None
        if not isinstance(strategy, str):
            raise CandidateFormatError(f"a candidate needs a strategy's name: got {data!r}")
        params, options = data.get("params", {}), data.get("kernel_options", {})
        if not isinstance(params, Mapping) or not all(isinstance(v, int | str | bool) for v in params.values()):
            raise CandidateFormatError(f"params must map names to numbers, text or booleans: got {params!r}")
        if not isinstance(options, Mapping) or not all(isinstance(role, str) for role in options):
            raise CandidateFormatError(f"kernel_options must map kernels to options: got {options!r}")
        return cls(
            strategy=strategy,
            params=tuple(sorted(params.items())),
            kernel_options=tuple((role, KernelOptions.from_json(options[role])) for role in sorted(options)),
        )

    def __str__(self) -> str:
        params = f"({', '.join(f'{name}={value}' for name, value in self.params)})" if self.params else ""
        chosen = (
            f" with options for {', '.join(role for role, _ in self.kernel_options)}" if self.kernel_options else ""
        )
        return f"{self.strategy}{params}{chosen}"


def _is_option(value: Any) -> bool:
    """`[op, axis, arg]` as JSON; whether it makes sense for a kernel is for tinygrad to say."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    op, axis, arg = value
    return isinstance(op, str) and _is_number(axis) and (_is_number(arg) or _is_numbers(arg))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, all the way down: a tensor core's option holds a list itself."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return list(map(_thawed, value)) if isinstance(value, tuple) else value
