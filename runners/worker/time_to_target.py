"""Scores of the validation split during training: time and energy to a target, and early stopping.

Evaluations are left out of times and energy.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch

from harness.meters.energy import COARSEST, Energy, Lap
from harness.meters.nvml import BoardError
from harness.metrics import missing, reading
from harness.record import Reading, WhyMissing
from runners.worker.memory import forked_random
from runners.worker.scoring import mean_nll, score
from tasks.scoring import summarise

if TYPE_CHECKING:
    from harness.meters.panel import Panel
    from harness.spec import EarlyStopping, Target
    from runners.worker.context import Context


def validation_score(ctx: Context, metric: str) -> float:
    """``accuracy`` or ``validation_nll`` of the model as it is; neither its mode nor any random number is changed."""
    training = ctx.model.training
    with forked_random(ctx.device):
        ctx.model.eval()
        try:
            if metric == "validation_nll":
                return mean_nll(ctx, ctx.task, ctx.splits.validation)[0]
            found = summarise(score(ctx, ctx.task, ctx.splits.validation))["accuracy"].value
            return math.nan if found is None else found
        finally:
            ctx.model.train(training)


class Resumes(Protocol):
    """A clock of steps."""

    def resume(self) -> None:
        """Something else was done after the last step."""


class LiveCurve:
    """Losses that were not yet reported, for trackers.

    Args:
        losses: grows by one with every micro-batch.
    """

    def __init__(self, losses: list[torch.Tensor]) -> None:
        self._losses = losses
        self._told = 0

    def report(self, clock: Resumes) -> dict[str, object]:
        """The losses since the last report, as a part of a progress message. Reading them counts to no step."""
        new = self._losses[self._told :]
        self._told = len(self._losses)
        values = torch.stack(new).float().tolist() if new else []
        clock.resume()
        return {"losses": values}


class BestWeights:
    """Early stopping: keeps the trained tensors of the best evaluation in the host's memory.

    Attributes:
        scores: one per evaluation, in order.
        best_step: step of the best one.
    """

    def __init__(self, asked: EarlyStopping, steps: int) -> None:
        self.asked, self.steps = asked, steps
        self.scores: list[float] = []
        self.best_step = 0
        self._best = math.nan
        self._since = 0
        self._kept: dict[str, torch.Tensor] = {}

    def due(self, step: int) -> bool:
        """True if the split is scored after ``step``."""
        return step % self.asked.every == 0 or step == self.steps

    def evaluate(self, ctx: Context, step: int) -> bool:
        """Score the validation split; True if training ends here."""
        value = validation_score(ctx, self.asked.metric)
        self.scores.append(value)
        if math.isnan(self._best) or self.asked.better(value, self._best):
            self._best, self.best_step, self._since = value, step, 0
            self._kept = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in ctx.model.named_parameters()
                if parameter.requires_grad
            }
        else:
            self._since += 1
        return self._since >= self.asked.patience

    def restore(self, model: torch.nn.Module) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for name, values in self._kept.items():
                model.get_parameter(name).copy_(values)

    def facts(self, steps: int) -> dict[str, object]:
        """For the record, after so many steps."""
        return {
            **self.asked.model_dump(mode="json"),
            "best_step": self.best_step,
            "best_score": self._best,
            "trained_steps": steps,
            "stopped_early": steps < self.steps,
        }


class TargetWatch:
    """Scores the validation split now and then during training, until the target is met.

    Attributes:
        scores: one per evaluation, in order.
        met_at: the step after which the target was first met, None as long as it was not.
    """

    def __init__(self, target: Target, steps: int, panel: Panel | None) -> None:
        self.target = target
        self.steps = steps
        self.scores: list[float] = []
        self.met_at: int | None = None
        energy = panel.get("energy") if panel is not None else None
        self._energy = energy if isinstance(energy, Energy) else None
        self._why_no_energy: tuple[WhyMissing, str] = ("no_device", "no energy meter works here")
        self._laps: list[Lap] = []  # begin and end of each stretch of training

    def begin(self) -> None:
        """Training begins."""
        self._lap()

    def due(self, step: int) -> bool:
        """True if the split is scored after ``step``."""
        return self.met_at is None and (step % self.target.every == 0 or step == self.steps)

    def evaluate(self, ctx: Context, step: int) -> None:
        """Score the validation split with the model as it is; neither its mode nor any random number is changed."""
        self._lap()
        value = validation_score(ctx, self.target.metric)
        self.scores.append(value)
        if self.target.met(value):
            self.met_at = step
        else:
            self._lap()

    def time_reading(self, step_ms: list[float], source: str) -> Reading:
        """``time_to_target_s``: the steps up to the target."""
        if self.met_at is None:
            return self._not_reached("time_to_target_s", source)
        seconds = math.fsum(step_ms[: self.met_at]) / 1e3
        return reading("time_to_target_s", seconds, source=source, n=self.met_at, details=self._details())

    def energy_reading(self) -> Reading:
        """``energy_to_target_j``: the counters' differences over the training between the evaluations."""
        name, source = "energy_to_target_j", "NVML counter, unaligned"
        if self.met_at is None:
            return self._not_reached(name, source)
        if self._energy is None:
            why, text = self._why_no_energy
            return missing(name, why, source=source, details={"why": text})
        stretches = [pair for index, pair in enumerate(pairwise(self._laps)) if index % 2 == 0]
        joules = math.fsum(b.joules - a.joules for a, b in stretches)
        seconds = math.fsum(b.time_s - a.time_s for a, b in stretches)
        update_s = max(lap.update_s for lap in self._laps)
        bound = 2 * len(stretches) * update_s / seconds
        details = {**self._details(), "window_s": seconds, "stretches": len(stretches), "quantization_bound": bound}
        if bound > COARSEST:
            return missing(name, "window_too_short", source=source, details=details)
        return reading(name, joules, source=source, resolution=bound * joules / 2, details=details)

    def _lap(self) -> None:
        if self._energy is not None:
            try:
                self._laps.append(self._energy.lap())
            except BoardError as error:
                self._energy, self._why_no_energy = None, (error.absence.why, error.absence.text)

    def _details(self) -> dict[str, object]:
        return {
            "target": self.target.model_dump(mode="json"),
            "met_at_step": self.met_at,
            "evaluations": len(self.scores),
        }

    def _not_reached(self, name: str, source: str) -> Reading:
        return missing(name, "target_not_reached", source=source, details={**self._details(), "scores": self.scores})
