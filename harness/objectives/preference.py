"""Objectives that learn from preferences: DPO, IPO, ORPO, SimPO on pairs, KTO on single judged answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.item import Item
from harness.objectives.base import Example, Objective, ObjectiveDeclaration, OtherModels, Row, halves

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class _Pairs(Objective):
    """Chosen and rejected answer to the same prompt, as two sequences."""

    def examples(self, items: Sequence[Item]) -> list[Example]:
        """Both answers of each pair, the chosen one first."""
        return [Example(((item.prompt, item.answer), (item.prompt, item.rejected))) for item in items]

    def pair_losses(
        self,
        chosen: tuple[torch.Tensor, torch.Tensor],
        rejected: tuple[torch.Tensor, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Loss of every pair, [B], from (summed log-probability, tokens) of both answers."""
        raise NotImplementedError

    def loss(
        self,
        outputs: ModelOutput,
        batch: Mapping[str, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
        task_loss: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of a batch."""
        from harness.objectives.losses import sequence_log_probs

        logp, lengths = sequence_log_probs(outputs.logits, batch["labels"])
        (chosen, rejected), (long, short) = halves(logp), halves(lengths)
        return self.pair_losses((chosen, long), (rejected, short), extra).mean()


class _AgainstReference(_Pairs):
    """Pairs whose log-probabilities are compared with those of a model that does not train."""

    def prepare(self, rows: list[Row], models: OtherModels) -> None:
        """Write what the other models say into the rows."""
        for row, (chosen, rejected) in zip(rows, models.log_probs(rows), strict=True):
            row["extra"] |= {"reference_chosen": chosen, "reference_rejected": rejected}


class DPO(_AgainstReference):
    """Direct preference optimization."""

    declaration = ObjectiveDeclaration(
        name="dpo",
        summary="Widens the gap between chosen and rejected answers relative to a reference model.",
        loss="-log sigmoid(beta (log ratio of the chosen answer - log ratio of the rejected answer))",
        paper="2305.18290v3",
        reads="pairs",
        needs=frozenset({"reference"}),
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        defaults_source="beta 0.1: section 6; label smoothing 0: the paper's loss",
        lr_factor=0.1,
        parity="TRL DPOTrainer, loss_type sigmoid",
        trap="The likelihood of both answers may fall while their gap grows: check the answer NLL too.",
    )

    def pair_losses(
        self,
        chosen: tuple[torch.Tensor, torch.Tensor],
        rejected: tuple[torch.Tensor, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Loss of every pair, [B]."""
        from harness.objectives.losses import dpo

        return dpo(chosen[0], rejected[0], extra["reference_chosen"], extra["reference_rejected"], **self.params)


class IPO(_AgainstReference):
    """Identity preference optimization."""

    declaration = ObjectiveDeclaration(
        name="ipo",
        summary="Pulls the gap of the log ratios to a fixed value, so that it does not grow without bound as DPO's.",
        loss="(gap of the log ratios per token - 1 / (2 beta))^2",
        paper="2310.12036v2",
        reads="pairs",
        needs=frozenset({"reference"}),
        defaults={"beta": 0.1},
        defaults_source="TRL's default; the paper sweeps tau",
        lr_factor=0.1,
        parity="TRL DPOTrainer, loss_type ipo",
        trap="Per token and not summed: with sums the target would depend on the length of the answers.",
    )

    def pair_losses(
        self,
        chosen: tuple[torch.Tensor, torch.Tensor],
        rejected: tuple[torch.Tensor, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Loss of every pair, [B]."""
        from harness.objectives.losses import ipo

        reference = extra["reference_chosen"], extra["reference_rejected"]
        return ipo(chosen[0], rejected[0], *reference, chosen[1], rejected[1], **self.params)


class ORPO(_Pairs):
    """Odds-ratio preference optimization."""

    declaration = ObjectiveDeclaration(
        name="orpo",
        summary="Supervised loss on the chosen answer plus a penalty on the odds of the rejected one; no reference.",
        loss="NLL of the chosen answer per token - beta log sigmoid(log odds chosen - log odds rejected)",
        paper="2403.07691v2",
        reads="pairs",
        defaults={"beta": 0.1},
        defaults_source="lambda 0.1: section 5",
        parity="TRL ORPOTrainer.odds_ratio_loss; the NLL term is over the answer alone, TRL's over the prompt too",
        trap="Log odds need log(1 - p), which cancels near p = 1.",
    )

    def pair_losses(
        self,
        chosen: tuple[torch.Tensor, torch.Tensor],
        rejected: tuple[torch.Tensor, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Loss of every pair, [B]."""
        from harness.objectives.losses import orpo_ratio

        ratio = orpo_ratio(chosen[0] / chosen[1], rejected[0] / rejected[1])
        nll = -chosen[0].sum() / chosen[1].sum()  # over the batch's tokens, as the supervised loss is
        beta: float = self.params["beta"]
        return nll + beta * ratio


class SimPO(_Pairs):
    """Simple preference optimization."""

    declaration = ObjectiveDeclaration(
        name="simpo",
        summary="Widens the gap of the mean log-probabilities beyond a margin; no reference model.",
        loss="-log sigmoid(beta (mean log-probability chosen - mean log-probability rejected) - gamma)",
        paper="2405.14734v3",
        reads="pairs",
        defaults={"beta": 2.0, "gamma": 1.0},
        defaults_source="the paper's setting for Llama-3-Base; over its settings beta is 2.0 to 2.5, gamma 0.3 to 1.6",
        lr_factor=0.1,
        parity="TRL CPOTrainer.cpo_loss, loss_type simpo",
        trap="TRL's simpo_gamma divided by beta is subtracted before beta multiplies: gamma is the margin itself.",
    )

    def pair_losses(
        self,
        chosen: tuple[torch.Tensor, torch.Tensor],
        rejected: tuple[torch.Tensor, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Loss of every pair, [B]."""
        from harness.objectives.losses import simpo

        return simpo(chosen[0] / chosen[1], rejected[0] / rejected[1], **self.params)


class KTO(Objective):
    """Kahneman-Tversky optimization."""

    declaration = ObjectiveDeclaration(
        name="kto",
        summary="Raises answers judged good and lowers answers judged bad relative to a reference; needs no pairs.",
        loss="weight (1 - sigmoid(+-beta (log ratio - KL))), KL estimated on answers of other prompts",
        paper="2402.01306v4",
        reads="judgements",
        needs=frozenset({"reference"}),
        defaults={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        defaults_source="beta 0.1: section 4; weights: balanced data",
        lr_factor=0.1,
        parity="TRL KTOTrainer, loss_type kto",
        trap="The KL term needs answers of other prompts; the answer itself would hide the signal. Batches above 1.",
    )

    def examples(self, items: Sequence[Item]) -> list[Example]:
        """A pair gives a good and a bad answer; each comes with the answer of the prompt before, for the KL term.

        Raises:
            UserError: there is only one prompt, so that no answer belongs to another.
        """
        judged: list[tuple[str, str, float]] = []
        for item in items:
            judged.append((item.prompt, item.answer, 1.0 if item.good is None else float(item.good)))
            if item.rejected:
                judged.append((item.prompt, item.rejected, 0.0))
        return [
            Example(((prompt, answer), (prompt, _other(judged, at))), {"good": good})
            for at, (prompt, answer, good) in enumerate(judged)
        ]

    def prepare(self, rows: list[Row], models: OtherModels) -> None:
        """Write what the other models say into the rows."""
        for row, (own, mismatched) in zip(rows, models.log_probs(rows), strict=True):
            row["extra"] |= {"reference": own, "reference_mismatched": mismatched}

    def loss(
        self,
        outputs: ModelOutput,
        batch: Mapping[str, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
        task_loss: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of a batch."""
        from harness.objectives.losses import kto, sequence_log_probs

        own, mismatched = halves(sequence_log_probs(outputs.logits, batch["labels"])[0])
        losses = kto(own, extra["reference"], extra["good"], mismatched, extra["reference_mismatched"], **self.params)
        return losses.mean()


def _other(judged: Sequence[tuple[str, str, float]], at: int) -> str:
    """The nearest answer before ``at`` (the list goes round) that belongs to another prompt.

    Raises:
        UserError: all answers belong to one prompt.
    """
    prompt = judged[at][0]
    for back in range(1, len(judged)):
        other = judged[at - back]
        if other[0] != prompt:
            return other[1]
    raise UserError("KTO compares with answers of other prompts, and all training rows have the same prompt")
