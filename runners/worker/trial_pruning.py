"""Trials of tuning that are worse than others were at the same step are stopped: optuna's pruners, in the worker."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.errors import Diverged, Pruned
from runners.worker.job import CURVE
from runners.worker.time_to_target import validation_score

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.pruners import BasePruner

    from runners.worker.context import Context


class Pruning:
    """Scores the validation split every so many steps and asks the pruner, which knows the trials before this one.

    Args:
        asked: ``pruner`` (its name), ``every`` (steps), ``past`` (the curves of earlier trials, NLL in nats).
        steps: of the whole training; after the last one there is nothing left to save.
    """

    def __init__(self, asked: Mapping[str, Any], steps: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.every = int(asked["every"])
        self.steps = steps
        study = optuna.create_study(direction="minimize", pruner=_pruner(asked["pruner"]))
        looks = (steps - 1) // self.every
        for curve in asked["past"]:
            values = {self.every * (index + 1): value for index, value in enumerate(curve)}
            if len(curve) == looks:
                study.add_trial(optuna.create_trial(value=curve[-1], intermediate_values=values))
            elif values:  # pruned itself; optuna compares with trials that came to their end
                pruned = optuna.trial.TrialState.PRUNED
                study.add_trial(optuna.create_trial(state=pruned, intermediate_values=values))
        self._trial = study.ask()

    def due(self, step: int) -> bool:
        """True if the split is scored after ``step``."""
        return step % self.every == 0 and step < self.steps

    def look(self, ctx: Context, step: int) -> None:
        """Score, note it in the record's series, and go on or not.

        Raises:
            Diverged: the score is not finite.
            Pruned: the trial is worse than the pruner allows at this step.
        """
        value = validation_score(ctx, "validation_nll")
        if not math.isfinite(value):
            raise Diverged(f"stopped early: the validation NLL became {value} after step {step}")
        ctx.series[CURVE] = (*ctx.series.get(CURVE, ()), value)
        self._trial.report(value, step)
        if self._trial.should_prune():
            raise Pruned(
                f"stopped early: pruned after step {step} of {self.steps}, "
                f"where its validation NLL {value:.3g} is worse than earlier trials' were"
            )


def _pruner(name: str) -> BasePruner:
    """The pruner called ``name``; it judges from the first trial and step on, since a whole batch ran before."""
    from optuna.pruners import PercentilePruner

    return PercentilePruner({"optuna-median": 50.0, "optuna-quarter": 25.0}[name], n_startup_trials=1)
