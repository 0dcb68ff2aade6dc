"""The strategies there are. Each registers itself from its own file in `strategies/lowerings/`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strategies.candidate import Candidate
from strategies.key import ConvKey
from strategies.parameter import Parameter, ParameterError, bind, canonical, parameters_of

if TYPE_CHECKING:
    from strategies.graph.lowered import Lowered
    from strategies.graph.match import Conv
    from strategies.graph.ranges import Ranges

Lowering = Callable[["Conv", Any, "Ranges"], "Lowered | None"]


class UnknownStrategyError(LookupError):
    """No strategy of that name is installed: a winner of another release, or a typing error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A way to lower a convolution.

    `params` is a frozen dataclass whose fields are declared with `param`. `lower` turns a matched convolution into
    what replaces its REDUCE; None means that it does not apply to this graph. `lower` itself is None for
    the lowering that tinygrad does anyway. `applies` says so from the key alone, before anything is built.
    """

    name: str
    params: type
    lower: Lowering | None
    applies: Callable[[ConvKey], bool]
    about: str

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return parameters_of(self.params)

    def candidate(self, values: Mapping[str, Any] | None = None) -> Candidate:
        """The canonical candidate with these parameter values; raises ParameterError for values outside the space."""
        values = values or {}
        bind(self.params, values)
        return Candidate.of(self.name, **canonical(self.params, values))

    @property
    def declares(self) -> bool:
        """Whether it says what is good, if only that nothing is."""
        return hasattr(self.params, "presets")

    def good(self, key: ConvKey | None) -> tuple[Candidate, ...]:
        """What the strategy declares as good for the key, the best guess first: `presets` of its parameters' class, a
        sequence of mappings or a function from the key to one. A strategy that declares nothing has none."""
        declared = getattr(self.params, "presets", ())
        presets = declared(key) if callable(declared) else declared
        return tuple(self.candidate(values) for values in presets)

    def bound(self, candidate: Candidate) -> Any:
        """The candidate's parameters as an instance of `params`; raises ParameterError."""
        return bind(self.params, dict(candidate.params))


_registered: dict[str, Strategy] = {}


def strategy(
    name: str, params: type, *, applies: Callable[[ConvKey], bool] | None = None
) -> Callable[[Lowering], Lowering]:
    """Register the decorated lowering. `applies` defaults to: some axis is a dense convolution with three taps."""

    def register(lower: Lowering) -> Lowering:
        about = (lower.__doc__ or "").strip()
        register_strategy(
            Strategy(name=name, params=params, lower=lower, applies=applies or has_three_tap_axis, about=about)
        )
        return lower

    return register


def register_strategy(item: Strategy) -> None:
    known = _registered.get(item.name)
    if known is not None and (known.params.__module__, known.params.__qualname__) != (
        item.params.__module__,
        item.params.__qualname__,
    ):
        raise ParameterError(f"two strategies are called {item.name!r}: {known.params} and {item.params}")
    _registered[item.name] = item


def has_three_tap_axis(key: ConvKey) -> bool:
    """Winograd F(m, 3) needs an axis of three taps, stride 1, dilation 1; other axes stay plain sums."""
    return any(three_tap_axes(key))


def three_tap_axes(key: ConvKey) -> tuple[bool, ...]:
    """Which axes of the canonical shape F(m, 3) can be used along. One with a single output is none: it is a sum."""
    shape = key.shape.canonical()
    axes = zip(shape.kernel, shape.stride, shape.dilation, shape.output, strict=True)
    return tuple(taps == 3 and stride == dilation == 1 and size > 1 for taps, stride, dilation, size in axes)


def strategies() -> tuple[Strategy, ...]:
    """Every installed strategy, by name."""
    import strategies.lowerings as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return tuple(_registered[name] for name in sorted(_registered))


def get_strategy(name: str) -> Strategy:
    """Raises UnknownStrategyError, which names those that there are."""
    if name not in _registered:
        found = {item.name for item in strategies()}
        if name not in found:
            raise UnknownStrategyError(f"no strategy {name!r}: there are {', '.join(sorted(found))}")
    return _registered[name]


__all__ = [
    "Lowering", "Strategy", "UnknownStrategyError", "get_strategy", "has_three_tap_axis",
    "register_strategy", "strategies", "strategy",
]  # fmt: skip
