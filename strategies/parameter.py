"""The parameters of a strategy: a frozen dataclass whose fields carry their search space."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from strategies.candidate import Value

_METADATA = "parameter"


class ParameterError(ValueError):
    """A value outside a strategy's search space, or a parameter that it does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter: its default, the values a search may choose from, and when it means anything.

    `when` gets the values chosen so far (parameters are decided in order of declaration); where it is false the
    parameter keeps its default and is left out of the candidate.
    """

    name: str
    default: Value
    choices: tuple[Value, ...]
    about: str = ""
    when: Callable[[Mapping[str, Any]], bool] | None = None

    def active(self, chosen: Mapping[str, Any]) -> bool:
        return self.when is None or self.when(chosen)


def param(
    default: Value,
    choices: tuple[Value, ...],
    about: str = "",
    when: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Any:
    """A dataclass field with its search space; see Parameter."""
    if default not in choices:
        raise ParameterError(f"default {default!r} is not among {choices}")
    return dataclasses.field(default=default, metadata={_METADATA: (choices, about, when)})


@functools.cache
def parameters_of(params: type) -> tuple[Parameter, ...]:
    """The declared parameters of a dataclass, in order."""
    result = []
    for field in dataclasses.fields(params):
        choices, about, when = field.metadata[_METADATA]
        result.append(
            Parameter(name=field.name, default=cast("Value", field.default), choices=choices, about=about, when=when)
        )
    return tuple(result)


def bind(params: type, values: Mapping[str, Any]) -> Any:
    """An instance of `params` with `values`; raises ParameterError for anything outside the search space."""
    declared = {parameter.name: parameter for parameter in parameters_of(params)}
    for name, value in values.items():
        if name not in declared:
            raise ParameterError(f"no parameter {name!r}: there are {', '.join(declared) or 'none'}")
        if not any(value == choice and type(value) is type(choice) for choice in declared[name].choices):
            raise ParameterError(f"{name} must be one of {declared[name].choices}: got {value!r}")
    return params(**values)


def canonical(params: type, values: Mapping[str, Any]) -> dict[str, Value]:
    """`values` completed with defaults, parameters that mean nothing here left out: one spelling per lowering."""
    chosen: dict[str, Value] = {}
    for parameter in parameters_of(params):
        if parameter.active(chosen):
            chosen[parameter.name] = values.get(parameter.name, parameter.default)
    return chosen
