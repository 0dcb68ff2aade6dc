"""Measurements as an Optuna study: for what Optuna can say of them, and for its own dashboard."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.measurement import Measurement
from autotune.space import STRATEGY, Space
from autotune.statistics import median_ratio
from autotune.store import Store
from autotune.winner import Winner

if TYPE_CHECKING:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

MIN_TRIALS = 8
"""Fewer measurements of a strategy say nothing about its parameters."""


def trials_of(space: Space, measurements: Sequence[Measurement]) -> list[optuna.trial.FrozenTrial]:
    """A trial per timed measurement that the space knows, in order; its value is the logarithm of its time over
    `direct`'s. A candidate measured again is a trial again."""
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import create_trial

    trials = []
    for measurement in measurements:
        choices = space.choices(measurement.candidate)
        timed = measurement.ok and 0 < len(measurement.times_s) == len(measurement.yardstick_times_s)
        if choices is None or not timed:
            continue
        trials.append(
            create_trial(
                params={name: chosen for name, (chosen, _) in choices.items()},
                distributions={name: CategoricalDistribution(values) for name, (_, values) in choices.items()},
                value=math.log(median_ratio(measurement.times_s, measurement.yardstick_times_s)),
            )
        )
    return trials


def parameter_importance(space: Space, measurements: Sequence[Measurement], strategy: str) -> dict[str, float]:
    """How much of the differences between a strategy's candidates each parameter explains (PED-ANOVA, from 0 to 1, in
    sum 1), the most important first. Empty if too little was measured or all of it was equally fast."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    trials = [t for t in trials_of(space, measurements) if t.params[STRATEGY] == strategy]
    if len(trials) < MIN_TRIALS or len({trial.value for trial in trials}) == 1:
        return {}
    shared = set.intersection(*(set(trial.params) for trial in trials)) - {STRATEGY}
    varied = [name for name in shared if len({trial.params[name] for trial in trials}) > 1]
    if not varied:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study()
        study.add_trials(trials)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=sorted(varied))
    return {name.removeprefix(f"{strategy}."): share for name, share in found.items()}


def studies(store: Store, winners: Sequence[Winner]) -> optuna.storages.InMemoryStorage:
    """A study in memory for each of these winners' keys, of all that was measured for it. Nothing is written."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    for winner in winners:
        trials = trials_of(Space.of(winner.key), store.measurements(winner.key))
        if trials:
            study = optuna.create_study(storage=storage, study_name=f"{winner.key} {winner.key.digest[:6]}")
            study.add_trials(trials)
    return storage
