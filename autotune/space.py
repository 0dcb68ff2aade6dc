"""The candidates that there are for a key: every strategy that applies, with the parameters it declares."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from strategies.candidate import Candidate, Value
from strategies.key import ConvKey
from strategies.parameter import ParameterError, canonical
from strategies.registry import Strategy, strategies

DEFAULTS = ("direct", "tensor_winograd")
"""What tinygrad does by itself: measured first, and the winner unless it is beaten. `direct` is the yardstick."""

STRATEGY = "strategy"
"""The name of the first choice."""

Choose = Callable[[str, Sequence[Value]], Value]
"""Takes the name of a choice and its values, returns one of them; Optuna's `trial.suggest_categorical` is one."""


@dataclass(frozen=True, slots=True)
class Space:
    """A conditional space: the strategy first, then its parameters in their order, each where it means anything.

    A parameter is called `strategy.parameter`. Strategies without parameters are one candidate each: among the
    presets, and not chosen from.
    """

    strategies: tuple[Strategy, ...]
    key: ConvKey | None = None

    @classmethod
    def of(cls, key: ConvKey) -> Space:
        """Every installed strategy that applies to the key; the defaults apply always or say no themselves."""
        return cls(tuple(item for item in strategies() if item.applies(key)), key)

    @property
    def defaults(self) -> tuple[Candidate, ...]:
        """`direct`, and `tensor_winograd` where it applies. Raises LookupError without `direct`."""
        found = {item.name: item for item in self.strategies}
        if DEFAULTS[0] not in found:
            raise LookupError(f"no strategy {DEFAULTS[0]!r}, the yardstick, among {', '.join(found) or 'none'}")
        return tuple(found[name].candidate() for name in DEFAULTS if name in found)

    @property
    def presets(self) -> tuple[Candidate, ...]:
        """The defaults, then what strategies declare as good for the key, a candidate of each in turn, and of those
        that declare nothing at all what they are by default."""
        plain = [item.candidate() for item in self.strategies if not item.declares]
        turns = zip_longest(*(item.good(self.key) for item in self.strategies))
        declared = [candidate for turn in turns for candidate in turn if candidate is not None]
        return tuple(dict.fromkeys([*self.defaults, *declared, *plain]))

    def choose(self, choose: Choose) -> Candidate | None:
        """The candidate made of these choices; None if there is nothing to choose from."""
        names = tuple(item.name for item in self._tunable())
        if not names:
            return None
        item = self._strategy(str(choose(STRATEGY, names)))
        chosen: dict[str, Value] = {}
        for parameter in item.parameters:
            if parameter.active(chosen):
                chosen[parameter.name] = choose(f"{item.name}.{parameter.name}", parameter.choices)
        return item.candidate(chosen)

    def choices(self, candidate: Candidate) -> dict[str, tuple[Value, tuple[Value, ...]]] | None:
        """The choices that make this candidate, each with the values there were; None if none do (it is of another
        release, has kernel options, or is the only one of its strategy). A parameter that the strategy had not yet when
        the candidate was measured has its default."""
        whole = self._completed(candidate)
        if whole is None or candidate.kernel_options:
            return None
        wanted: dict[str, Value] = {STRATEGY: whole.strategy}
        wanted.update({f"{whole.strategy}.{name}": value for name, value in whole.params})
        made: dict[str, tuple[Value, tuple[Value, ...]]] = {}

        def replay(name: str, values: Sequence[Value]) -> Value:
            at = values.index(wanted[name])
            made[name] = (values[at], tuple(values))
            return values[at]

        try:
            again = self.choose(replay)
        except (KeyError, ValueError):  # not chosen here, or not among the values
            return None
        return made if again == whole else None

    def completed(self, candidate: Candidate) -> Candidate:
        """As it is spelled today: what was no parameter of its strategy yet when it was written has its default."""
        whole = self._completed(candidate)
        return candidate if whole is None else replace(whole, kernel_options=candidate.kernel_options)

    def _completed(self, candidate: Candidate) -> Candidate | None:
        item = next((item for item in self.strategies if item.name == candidate.strategy), None)
        try:
            return None if item is None else item.candidate(dict(candidate.params))
        except ParameterError:
            return None

    def neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        """Those that differ from `candidate` in one parameter."""
        if self.choices(candidate) is None:
            return
        item, values = self._strategy(candidate.strategy), dict(candidate.params)
        for parameter in item.parameters:
            for value in parameter.choices if parameter.name in values else ():
                other = Candidate.of(item.name, **canonical(item.params, {**values, parameter.name: value}))
                if other != candidate:
                    yield other

    def sample(self, rng: random.Random) -> Candidate | None:
        """One at random: a strategy, then each of its parameters, evenly."""
        return self.choose(lambda _, values: rng.choice(values))

    def __iter__(self) -> Iterator[Candidate]:
        """All that can be chosen, strategy by strategy."""
        for item in self._tunable():
            yield from _all(item, {}, 0)

    def _tunable(self) -> tuple[Strategy, ...]:
        return tuple(item for item in self.strategies if item.parameters)

    def _strategy(self, name: str) -> Strategy:
        return next(item for item in self.strategies if item.name == name)


def _all(item: Strategy, chosen: dict[str, Value], at: int) -> Iterator[Candidate]:
    if at == len(item.parameters):
        yield item.candidate(chosen)
        return
    parameter = item.parameters[at]
    if not parameter.active(chosen):
        yield from _all(item, chosen, at + 1)
        return
    for value in parameter.choices:
        yield from _all(item, {**chosen, parameter.name: value}, at + 1)
