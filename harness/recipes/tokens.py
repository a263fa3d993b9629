"""Recipes that act on tokens while training: masked inputs, and losses that read the model's own certainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.item import Item
from harness.objectives.base import Row
from harness.recipes.base import Desk, Recipe, RecipeDeclaration

if TYPE_CHECKING:
    import torch

SFT = frozenset({"sft"})


class MaskedThought(Recipe):
    """Masked Thought."""

    declaration = RecipeDeclaration(
        name="masked-thought",
        summary="A part of the answer's input tokens is replaced by a mask token; the labels stay.",
        changes=frozenset({"mask"}),
        rule="each labelled input token with chance ratio; the ratio rises linearly over the first part of training",
        paper="2403.02178",
        task_kinds=frozenset({"generation"}),
        objectives=SFT,
        defaults={"ratio": 0.4, "warm_up": 0.67},
        defaults_source="ratio 0.4 and the linear rise: the paper's setting for GSM8K",
        trap="Inputs only: a masked label would teach the mask. A mask drawn once per row would not be noise.",
        differs="The mask is the tokenizer's mask, unknown or padding token; the paper adds a new token.",
    )

    def __init__(self, params: Mapping[str, object]) -> None:
        super().__init__(params)
        self._draw: torch.Generator | None = None
        self._mask = 0
        self._masked = 0
        self._seen = 0

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: no such parameter, or a value outside its range.
        """
        found = super().resolve(params, where=where)
        if not (0 < found["ratio"] < 1 and 0 <= found["warm_up"] <= 1):
            raise UserError("masked-thought: ratio lies between 0 and 1, warm_up in 0 to 1", where=where)
        return found

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        import torch

        self._mask = desk.mask_token
        self._draw = torch.Generator().manual_seed(desk.seed)
        return items

    def batch(self, batch: dict[str, torch.Tensor], step: int, steps: int) -> dict[str, torch.Tensor]:
        """The batch with inputs masked."""
        import torch

        rising = self.params["warm_up"] * steps
        ratio = self.params["ratio"] * (min(1.0, step / rising) if rising else 1.0)
        ids = batch["input_ids"]
        labelled = batch["labels"] != -100
        chance = torch.rand(ids.shape, generator=self._draw).to(ids.device)
        masked = labelled & (chance < ratio)
        self._masked += int(masked.sum())
        self._seen += int(labelled.sum())
        return {**batch, "input_ids": ids.masked_fill(masked, self._mask)}

    def facts(self) -> dict[str, Any]:
        """The choices, for the record."""
        return {"masked_share": self._masked / self._seen if self._seen else 0.0, "mask_token": self._mask}


class UncertaintyAware(Recipe):
    """Uncertainty-aware fine-tuning."""

    declaration = RecipeDeclaration(
        name="uncertainty-aware",
        summary="Adds a loss that wants high entropy where the model is wrong and low entropy where it is right.",
        changes=frozenset({"loss"}),
        rule="NLL + weight (-mean_wrong P log tanh H - mean_right (1 - P) log(1 - tanh H))",
        paper="2412.02904",
        task_kinds=frozenset({"generation", "multiple-choice"}),
        objectives=SFT,
        defaults={"weight": 1.0},
        defaults_source="unverified: the paper's full text was not at hand",
        trap="P is the probability of the label; tanh H reaches 1 in float32, where the logarithm is not finite.",
        differs="Declared from the catalogue's equation, not from the paper's text.",
    )

    def loss(
        self,
        task_loss: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The loss of a batch."""
        from harness.objectives.losses import labelled_logits

        predicted, wanted = labelled_logits(logits, labels)
        weight: float = self.params["weight"]
        return task_loss + weight * calibration_loss(predicted, wanted)


def calibration_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The uncertainty term, a scalar; ``logits`` [N, V], ``wanted`` [N]. It is 0 where N is 0."""
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    certainty = entropy.tanh().clamp(1e-6, 1 - 1e-6)
    p = logp.gather(-1, wanted[:, None])[:, 0].exp()
    right = logits.argmax(-1) == wanted
    wrong_part = (p * certainty.log())[~right]
    right_part = ((1 - p) * (1 - certainty).log())[right]
    total = logits.new_zeros(())
    if wrong_part.numel():
        total = total - wrong_part.mean()
    if right_part.numel():
        total = total - right_part.mean()
    return total


class PoFT(Recipe):
    """Preference-oriented fine-tuning."""

    declaration = RecipeDeclaration(
        name="poft",
        summary="The model shall find the right answer more likely than an aligned teacher does.",
        changes=frozenset({"loss"}),
        rule="-log sigmoid(beta (mean log p of the answer - the teacher's mean log p))",
        paper="2412.12865",
        teacher="required",
        task_kinds=frozenset({"generation", "multiple-choice"}),
        objectives=SFT,
        defaults={"beta": 1.0},
        defaults_source="unverified: the paper's full text was not at hand",
        trap="A teacher that is sure of a row makes its gradient large; one that finds it unlikely makes it small.",
        differs="One teacher; the paper averages several aligned models.",
    )
    teacher_mean = 0.0

    def rows(self, rows: list[Row], items: Sequence[Item], desk: Desk) -> list[Row]:
        """The rows with what this recipe writes into them."""
        means = [logp / max(1, n) for logp, n in desk.log_probs_of(items, "teacher")]
        for row, mean in zip(rows, means, strict=True):
            row["extra"]["aligned"] = mean
        self.teacher_mean = sum(means) / len(means)
        return rows

    def loss(
        self,
        task_loss: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The loss of a batch."""
        from torch.nn.functional import logsigmoid

        from harness.objectives.losses import sequence_log_probs

        logp, lengths = sequence_log_probs(logits, labels)
        return -logsigmoid(self.params["beta"] * (logp / lengths.clamp(min=1) - extra["aligned"])).mean()

    def facts(self) -> dict[str, Any]:
        """The choices, for the record."""
        return {"teacher_mean_log_prob_per_token": self.teacher_mean}


class TokenWeights(Recipe):
    """Token weights: tokens the base gets wrong count for more."""

    declaration = RecipeDeclaration(
        name="token-weights",
        summary="Tokens that the base finds unlikely weigh more than those it already knows.",
        changes=frozenset({"weight"}),
        rule="weight = 1 - p_base(token)^power, scaled to a mean of 1 over the rows",
        paper="2412.15495",
        task_kinds=frozenset({"generation"}),
        objectives=SFT,
        defaults={"power": 1.0},
        defaults_source="ours",
        trap="The mean weight must stay 1, or the learning rate changes with it.",
        differs="TL-Training weighs the tokens of tool names and parameters and blocks rows with known errors; here "
        "the base's probability says which tokens matter, for any task.",
    )

    def rows(self, rows: list[Row], items: Sequence[Item], desk: Desk) -> list[Row]:
        """The rows with what this recipe writes into them."""
        import torch

        weights = [1 - logp.exp() ** self.params["power"] for logp in desk.token_log_probs(rows)]
        mean = torch.cat(weights).mean().clamp(min=1e-6)
        for row, one in zip(rows, weights, strict=True):
            row["extra"]["weights"] = one / mean
        return rows
