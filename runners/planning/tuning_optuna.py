"""Optuna's samplers over the learning rate and a knob together: the same budget for every method, in batches.

A study is rebuilt from the finished trials each time, in the same order and with the same seed, so that it proposes
the same trials again and an interrupted search goes on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from runners.planning.tuning import Search

RANGE = 2
"""The rate is searched from the centre over factor^2 to the centre times factor^2, logarithmically."""


def sampled(search: Search) -> None:
    """Fill the search's trials and scores.

    Raises:
        UserError: optuna is not installed.
        runners.planning.tuning.Pending: a batch has to run first.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            f"the sampler {search.tune.sampler!r} needs optuna", fix="pip install 'peft-matrix[tuning]'"
        ) from None
    from runners.planning.tuning import Choice

    tune = search.tune
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = optuna.samplers
    sampler = (
        samplers.TPESampler(seed=tune.seed) if tune.sampler == "optuna-tpe" else samplers.RandomSampler(seed=tune.seed)
    )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    reach = tune.factor**RANGE
    knob = tune.knob.get(search.cell.method.label, {})
    assert tune.trials is not None  # the sweep's validation holds it
    while len(study.trials) < tune.trials:
        batch = []
        for _ in range(min(tune.learning_rates, tune.trials - len(study.trials))):
            trial = study.ask()
            rate = trial.suggest_float("learning_rate", search.centre / reach, search.centre * reach, log=True)
            params = tuple((name, trial.suggest_categorical(name, list(values))) for name, values in knob.items())
            batch.append((trial, Choice(float(f"{rate:.4g}"), params)))
        search.try_all([choice for _, choice in batch])
        for trial, choice in batch:
            curve, score = search.curves[choice], search.scores[choice]
            for index, value in enumerate(curve):
                trial.report(value, (index + 1) * (tune.prune_every or 1))
            if curve and not math.isfinite(score):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, min(score, 1e9))
