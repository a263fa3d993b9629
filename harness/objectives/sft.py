"""Supervised fine-tuning: the likelihood of the right answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.objectives.base import DEFAULT, Objective, ObjectiveDeclaration

if TYPE_CHECKING:
    import torch


class SupervisedFineTuning(Objective):
    """The task's own loss. On pairs it trains on the chosen answers."""

    declaration = ObjectiveDeclaration(
        name=DEFAULT,
        summary="Raises the likelihood of the right answer; on pairs, of the chosen one.",
        loss="mean negative log-likelihood of the answer's tokens (classes: cross-entropy)",
        kinds=frozenset({"causal-lm", "sequence-classification"}),
        defaults_source="nothing to choose",
        parity="transformers' own loss, which it is",
        trap="On pairs the rejected answers are not read, so that their likelihood may rise as well.",
    )

    def loss(
        self, outputs: Any, batch: Mapping[str, Any], extra: Mapping[str, torch.Tensor], task_loss: torch.Tensor
    ) -> torch.Tensor:
        """The model's own loss; weighted token by token where a recipe gives weights."""
        if "weights" not in extra:
            return task_loss
        from harness.objectives.losses import weighted_cross_entropy

        return weighted_cross_entropy(outputs.logits, batch["labels"], extra["weights"])
