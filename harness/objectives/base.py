"""Base class of objectives: a declaration that lists nothing heavy, and hooks the worker calls.

A method chooses which parameters train; an objective chooses the loss and what must be known of a training row for
it. The two are separate axes of a sweep: every objective runs with every method unless one of them says why not.
Nothing here imports torch at module level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypedDict

from harness.errors import CheckFailed
from harness.item import Item
from harness.methods.base import Method, ModelKind
from harness.registry import overlaid

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from transformers.utils import ModelOutput

DEFAULT = "sft"
"""The objective of a sweep that names none. It is no part of a cell's key, so that older records stay current."""

Reads = Literal["answers", "pairs", "judgements"]
"""Texts that an objective needs of a training item: the right answer; a chosen and a rejected one; an answer and
whether it is good."""

Role = Literal["reference", "teacher"]


@dataclass(frozen=True)
class ObjectiveDeclaration:
    """Declaration of an objective; shown by ``peft-matrix objectives`` and checked by the plan.

    Attributes:
        name: registered name.
        summary: one sentence a reader understands.
        loss: the equation in words.
        paper: arXiv id, with the version where one is known; "" where there is none.
        reads: what a training item must hold.
        needs: other models that the training rows are shown to before training. The ``reference`` is the base itself
            unless the sweep names another; a ``teacher`` must be named.
        kinds: model kinds it trains.
        defaults: parameters with their default values.
        defaults_source: where those come from.
        lr_factor: centre of the learning rate, as a multiple of what the method has under supervised fine-tuning.
        parity: what its loss is compared with in the tests.
        trap: what is easily got wrong.
    """

    name: str
    summary: str
    loss: str
    paper: str = ""
    reads: Reads = "answers"
    needs: frozenset[Role] = frozenset()
    kinds: frozenset[ModelKind] = frozenset({"causal-lm"})
    defaults: Mapping[str, object] = field(default_factory=dict)
    defaults_source: str = ""
    lr_factor: float = 1.0
    parity: str = ""
    trap: str = ""


@dataclass(frozen=True)
class Example:
    """One training item as token sequences to be.

    Attributes:
        sequences: (prompt, completion) of each; the completion carries the loss. All examples of an objective have
            the same number of them.
        numbers: further values of the item, such as whether it is good.
    """

    sequences: tuple[tuple[str, str], ...]
    numbers: Mapping[str, float] = field(default_factory=dict)


class TokenSequence(TypedDict):
    """Ids of a sequence, and for each of them its label or -100; of a classifier one label, the class."""

    input_ids: list[int]
    labels: list[int] | int


def token_labels(sequence: TokenSequence) -> list[int]:
    """The labels of a language model's sequence, one a token."""
    labels = sequence["labels"]
    return labels if isinstance(labels, list) else [labels]


class Row(TypedDict):
    """An encoded training item.

    ``extra`` maps a name to a number, or to a tensor with one entry per labelled token.
    :class:`runners.worker.encoding.Collator` makes batches of rows: numbers become [B], tensors are joined along the
    labelled tokens to [N, ...].
    """

    sequences: list[TokenSequence]
    extra: dict[str, float | torch.Tensor]


class OtherModels(Protocol):
    """Requests that :meth:`Objective.prepare` may make to other models. Each is loaded for its request alone."""

    def log_probs(self, rows: Sequence[Row]) -> list[list[float]]:
        """Log-probability (nat) of every sequence of every row under the reference, summed over labelled tokens."""
        ...

    def top_log_probs(self, rows: Sequence[Row], k: int, temperature: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The teacher's k most likely tokens at every labelled position of a row's first sequence.

        Returns:
            per row token ids [n, k] (int64) and log-probabilities at ``temperature`` [n, k] (float32).

        Raises:
            Unsupported: the teacher's tokenizer is another one.
        """
        ...

    def answers(self, items: Sequence[Item]) -> list[str]:
        """The teacher's answer to each prompt, decoded greedily."""
        ...


class Objective:
    """Objective of a cell's training. Subclasses set ``declaration`` and override the hooks they need.

    Args:
        params: parameters as resolved by :meth:`resolve`.
    """

    declaration: ClassVar[ObjectiveDeclaration]

    def __init__(self, params: Mapping[str, object]) -> None:
        self.params: dict[str, Any] = dict(params)

    # --- before any model is there -------------------------------------------------------------
    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: a parameter that this objective does not have.
        """
        return overlaid("objective", cls.declaration.name, cls.declaration.defaults, params, where=where)

    @classmethod
    def check(cls, kind: str, task_kind: str, method: type[Method], other: Mapping[str, object]) -> str | None:
        """Why this objective cannot train such a cell, or None. Imports nothing heavy.

        Args:
            kind: what the model is used for.
            task_kind: kind of the task.
            method: of the cell.
            other: the other models that the sweep names.
        """
        d = cls.declaration
        if kind not in d.kinds:
            return f"the objective {d.name} does not train {kind} models"
        if d.reads == "pairs" and task_kind != "preference":
            return f"the objective {d.name} needs chosen and rejected answers, and the task has none"
        if d.reads == "judgements" and task_kind not in ("preference", "judged"):
            return f"the objective {d.name} needs answers judged good or bad, and the task has none"
        if d.reads != "judgements" and task_kind == "judged":
            return f"the objective {d.name} would train on answers that the task calls bad"
        if "teacher" in d.needs and "teacher" not in other:
            return f"the objective {d.name} needs a teacher: name one with 'teacher:'"
        for role in other:
            if role not in d.needs:
                return f"the objective {d.name} has no use for a {role}"
        if d.name != DEFAULT and method.training_step is not Method.training_step:
            return f"{method.declaration.name} takes whole steps by itself on the supervised loss"
        return None

    # --- rows ----------------------------------------------------------------------------------
    def examples(self, items: Sequence[Item]) -> list[Example]:
        """The items (:class:`tasks.task.Item`) as sequences to be: prompt and right answer, unless overridden."""
        return [Example(((item.prompt, item.answer),)) for item in items]

    def rewrite(self, items: Sequence[Item], models: OtherModels) -> Sequence[Item]:
        """The items to train on in the place of the task's, before they are encoded. Billed in ``targets``."""
        return items

    def prepare(self, rows: list[Row], models: OtherModels) -> None:
        """Write what other models say about the rows into their ``extra``. Billed in the stage ``targets``."""

    # --- training ------------------------------------------------------------------------------
    def loss(
        self,
        outputs: ModelOutput,
        batch: Mapping[str, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
        task_loss: torch.Tensor,
    ) -> torch.Tensor:
        """The scalar to minimise, before the method's own ``loss`` hook.

        Args:
            outputs: of the model on ``batch``.
            batch: ``input_ids``, ``attention_mask`` and ``labels``; the first sequences of all rows, then the second.
            extra: what the rows hold besides.
            task_loss: the model's own loss on the batch.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Findings for the record."""
        return {}


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
        self,
        outputs: ModelOutput,
        batch: Mapping[str, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
        task_loss: torch.Tensor,
    ) -> torch.Tensor:
        """The model's own loss; weighted token by token where a recipe gives weights."""
        if "weights" not in extra:
            return task_loss
        from harness.objectives.losses import weighted_cross_entropy

        return weighted_cross_entropy(outputs.logits, batch["labels"], extra["weights"])


def halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the second sequences of a batch.

    Raises:
        CheckFailed: ``pairs``: there is an odd number of them.
    """
    if values.shape[0] % 2:
        raise CheckFailed("pairs", f"a batch of pairs has {values.shape[0]} sequences")
    first, second = values.chunk(2)
    return first, second
