"""The training budget of a sweep: steps, batch, learning rate and its schedule, optimizer, early stopping."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.spec_axes import OptimizerName
from harness.yamlfile import FileModel, Later

SCHEDULE_KEYS = {
    "restart_cycles": "cosine_with_restarts",
    "polynomial_power": "polynomial",
    "decay_fraction": "wsd",
}
"""Keys of the training budget that one schedule reads."""


class Target(FileModel):
    """A score on the validation split; how long and how much energy it takes to meet it is measured.

    The split is scored every ``every`` steps, outside the step times and the energy to the target; the energy of
    the whole ``train`` stage contains these evaluations.
    """

    metric: Literal["accuracy", "validation_nll"]
    value: float
    every: int = Field(gt=0, description="steps between two evaluations")

    def met(self, score: float) -> bool:
        """True if ``score`` reaches the target."""
        return score >= self.value if self.metric == "accuracy" else score <= self.value


class EarlyStopping(FileModel):
    """Training ends when the validation split has not become better for ``patience`` evaluations in a row.

    The trained weights are those of the best evaluation. The split is scored every ``every`` steps and after the last
    one, outside the step times. The learning rate follows the schedule of all steps.
    """

    every: int = Field(gt=0, description="steps between two evaluations")
    patience: int = Field(default=3, gt=0)
    metric: Literal["accuracy", "validation_nll"] = "validation_nll"

    def better(self, score: float, than: float) -> bool:
        """True if ``score`` is the better one; a score that is no number is better than none."""
        return score > than if self.metric == "accuracy" else score < than


class Training(FileModel):
    """The training budget, the same for every method of the sweep: ``steps``, or ``epochs`` over the training items.

    ``epochs`` become steps when the sweep is planned: batches of full size, of the items that the task has here.

    ``learning_rate`` is that of *full* fine-tuning; a method trains at this times its declared factor unless the sweep
    sets a learning rate for the method.

    ``on_oom: halve_batch`` lets a cell that runs out of memory in training restart with half the batch and twice the
    accumulation, so that a step sees the same items; its record has the batch asked for and the batch used, and its row
    is marked. Without it the cell ends as ``oom``.

    Attributes:
        schedule: of the learning rate, over the steps after a linear warm-up: ``cosine`` and ``linear`` fall to 0,
            ``cosine_with_restarts`` falls so ``restart_cycles`` times, ``polynomial`` falls with the power
            ``polynomial_power``, ``constant_with_warmup`` stays, ``wsd`` stays and then falls by a cosine over the last
            ``decay_fraction`` of all steps (warm-up, stable, decay: arXiv 2404.06395); ``constant`` has no warm-up.
        optimizer: in the place of AdamW: ``adamw-8bit`` and ``lion`` (arXiv 2302.06675, betas 0.9 and 0.99) of
            bitsandbytes, ``adafactor`` (arXiv 1804.04235) and ``sgd`` (without momentum) of torch. A method that brings
            its own optimizer or training step is refused.
    """

    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, gt=0)
    gradient_accumulation: int = Field(default=1, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts", "wsd"
    ] = "cosine"
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_length: int = Field(default=512, gt=0, description="tokens; longer examples are counted and cut")
    gradient_checkpointing: bool = False
    target: Annotated[Target | None, Later()] = None
    on_oom: Annotated[Literal["record", "halve_batch"], Later()] = "record"
    early_stopping: Annotated[EarlyStopping | None, Later()] = None
    optimizer: Annotated[OptimizerName, Later()] = "adamw"
    restart_cycles: Annotated[int, Later()] = Field(default=2, gt=1)
    polynomial_power: Annotated[float, Later()] = Field(default=2.0, gt=0)
    decay_fraction: Annotated[float, Later()] = Field(default=0.2, gt=0, le=1)

    @model_validator(mode="after")
    def _one_budget(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("training needs either 'steps' or 'epochs'")
        return self

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Training:
        for key, schedule in SCHEDULE_KEYS.items():
            if key in self.model_fields_set and self.schedule != schedule:
                raise ValueError(f"'{key}' belongs to 'schedule: {schedule}'")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction and decay_fraction together are more than all steps")
        return self

    def steps_of(self, items: int) -> int:
        """The steps of the budget over so many training items: at least one."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # checked when the file was read
        return max(1, math.ceil(self.epochs * (items // self.batch_size) / self.gradient_accumulation))

    def identity(self) -> dict[str, Any]:
        """Training fields that are part of the cell key; rate and steps are part of it as the method's."""
        return self.model_dump(mode="json", exclude={"learning_rate", "steps", "epochs"})
