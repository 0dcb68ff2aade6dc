"""A candidate: everything that is needed to reproduce one lowering, as plain JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strategies.shape import JsonObject

Value = int | str | bool


class CandidateFormatError(ValueError):
    """JSON that is not a candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A strategy's name, its parameters as sorted (name, value) pairs, and options per kernel.

    `kernel_options` holds, for each stage by name, the tinygrad options applied to its kernel as `[op, axis, arg]`
    (empty: tinygrad's own heuristics decide).
    """

    strategy: str
    params: tuple[tuple[str, Value], ...] = ()
    kernel_options: tuple[tuple[str, tuple[tuple[Any, ...], ...]], ...] = ()

    @classmethod
    def of(cls, strategy: str, **params: Value) -> Candidate:
        return cls(strategy=strategy, params=tuple(sorted(params.items())))

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 over the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> JsonObject:
        return {
            "strategy": self.strategy,
            "params": dict(self.params),
            "kernel_options": {stage: _thawed(options) for stage, options in self.kernel_options},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        strategy: object = data.get("strategy") if hasattr(data, "get") else None
        if not isinstance(strategy, str):
            raise CandidateFormatError(f"a candidate needs a strategy's name: got {data!r}")
        params, options = data.get("params", {}), data.get("kernel_options", {})
        if not isinstance(params, Mapping) or not all(isinstance(v, int | str | bool) for v in params.values()):
            raise CandidateFormatError(f"params must map names to numbers, text or booleans: got {params!r}")
        if not isinstance(options, Mapping) or not all(
            isinstance(v, list) and all(isinstance(option, list) for option in v) for v in options.values()
        ):
            raise CandidateFormatError(f"kernel_options must map stages to lists of [op, axis, arg]: got {options!r}")
        return cls(
            strategy=strategy,
            params=tuple(sorted(params.items())),
            kernel_options=tuple(
                (stage, tuple(_frozen(option) for option in stage_options))
                for stage, stage_options in sorted(options.items())
            ),
        )

    def __str__(self) -> str:
        if not self.params:
            return self.strategy
        return f"{self.strategy}({', '.join(f'{name}={value}' for name, value in self.params)})"


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, all the way down: a tensor core's option holds a list itself."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return list(map(_thawed, value)) if isinstance(value, tuple) else value
