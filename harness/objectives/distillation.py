"""Distillation: a student learns from a teacher's probabilities, or from what a teacher writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.item import Item
from harness.objectives.base import Objective, ObjectiveDeclaration, OtherModels, Row

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class DistillLogits(Objective):
    """Word-level distillation on the training rows' own answers."""

    declaration = ObjectiveDeclaration(
        name="distill-logits",
        summary="Brings the student's probabilities to the teacher's at every token of the right answers.",
        loss="alpha T^2 KL at temperature T + (1 - alpha) NLL of the right answer",
        paper="1503.02531v1",
        needs=frozenset({"teacher"}),
        kinds=frozenset({"causal-lm", "sequence-classification"}),
        defaults={"alpha": 0.5, "temperature": 2.0, "direction": "forward", "top_k": 64},
        defaults_source="alpha and T: common middle values, the paper states none for this use; top_k: memory",
        parity="TRL GKDTrainer.generalized_jsd_loss at beta 0 (forward) and 1 (reverse), whole vocabulary",
        trap="The softmax gradient shrinks with T^2, so the loss is multiplied by T^2; tokenizers must be the same.",
    )

    @classmethod
    def resolve(cls, params: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: no such parameter, or a value outside its range.
        """
        found = super().resolve(params, where=where)
        if found["direction"] not in ("forward", "reverse"):
            raise UserError(
                "direction is 'forward' (teacher || student) or 'reverse' (student || teacher)", where=where
            )
        if not (0 <= found["alpha"] <= 1 and found["temperature"] > 0 and found["top_k"] >= 1):
            raise UserError("alpha lies in 0 to 1, temperature above 0, top_k at 1 or above", where=where)
        return found

    def prepare(self, rows: list[Row], models: OtherModels) -> None:
        """Keep the teacher's most likely tokens of every row."""
        found = models.top_log_probs(rows, self.params["top_k"], self.params["temperature"])
        for row, (indices, log_probs) in zip(rows, found, strict=True):
            row["extra"] |= {"teacher_indices": indices, "teacher_log_probs": log_probs}

    def loss(
        self,
        outputs: ModelOutput,
        batch: Mapping[str, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
        task_loss: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of a batch."""
        from harness.objectives.losses import divergence, labelled_logits

        labels = batch["labels"]
        logits = outputs.logits if labels.dim() == 1 else labelled_logits(outputs.logits, labels)[0]
        t: float = self.params["temperature"]
        alpha: float = self.params["alpha"]
        kl = divergence(
            logits,
            extra["teacher_indices"],
            extra["teacher_log_probs"],
            temperature=t,
            direction=self.params["direction"],
        ).mean()
        return alpha * t**2 * kl + (1 - alpha) * task_loss


class DistillSequence(Objective):
    """Sequence-level distillation: supervised fine-tuning on the teacher's answers."""

    declaration = ObjectiveDeclaration(
        name="distill-sequence",
        summary="Trains on what the teacher answers in the place of the right answers; any tokenizer.",
        loss="mean negative log-likelihood of the teacher's greedy answer",
        paper="1606.07947v4",
        needs=frozenset({"teacher"}),
        defaults_source="greedy decoding in the place of the paper's beam search of 5",
        parity="transformers' own loss on the teacher's answers",
        trap="Empty answers carry no loss; they are left out and counted.",
    )

    def __init__(self, params: Mapping[str, object]) -> None:
        super().__init__(params)
        self._empty = 0

    def rewrite(self, items: Sequence[Item], models: OtherModels) -> Sequence[Item]:
        """The items with the teacher's answers.

        Raises:
            UserError: every answer is empty.
        """
        answers = models.answers(items)
        kept = [replace(item, answer=text) for item, text in zip(items, answers, strict=True) if text.strip()]
        self._empty = len(items) - len(kept)
        if not kept:
            raise UserError(
                "the teacher answered nothing to any of the training prompts", fix="Choose another teacher."
            )
        return kept

    def loss(
        self,
        outputs: ModelOutput,
        batch: Mapping[str, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
        task_loss: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of a batch."""
        return task_loss

    def facts(self) -> dict[str, Any]:
        """The choices, for the record."""
        return {"empty_answers_left_out": self._empty}
