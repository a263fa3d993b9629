"""Base class of recipes: a declaration that lists nothing heavy, and hooks the worker calls.

A recipe sees the training split alone (and the validation split, where it selects by it); never the test split. What
it costs is a separate stage, ``recipe``, with time, memory, energy and the calls it made to a model. The rows that
are trained on are digested in the record. Nothing here imports torch at module level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from harness.item import Item
from harness.methods.base import Method, ModelKind
from harness.objectives.base import Row
from harness.registry import overlaid

if TYPE_CHECKING:  # heavy, and only for types
    import numpy as np
    import torch
    from numpy.typing import NDArray

DEFAULT = "plain"
"""The recipe of a sweep that names none: the rows as they are. It is no part of a cell's key."""

Changes = Literal["choose", "order", "weight", "rewrite", "generate", "mask", "loss"]
By = Literal["base", "teacher"]


@dataclass(frozen=True)
class RecipeDeclaration:
    """Declaration of a recipe; shown by ``peft-matrix recipes`` and checked by the plan.

    Attributes:
        name: registered name.
        summary: one sentence a reader understands.
        changes: what it does to the rows.
        rule: how, in words or as an equation.
        paper: arXiv id, or "" where there is none.
        teacher: whether it asks a second model, which the sweep must name. ``optional``: it may.
        kinds: model kinds whose rows it can treat.
        task_kinds: task kinds whose rows it can treat.
        objectives: objectives it is defined for; empty for all.
        ordered: the rows are trained in the order it gives, and not shuffled.
        makes_pairs: its items have a rejected answer, whatever the task.
        defaults: parameters with their default values.
        defaults_source: where those come from.
        trap: what is easily got wrong.
        differs: how it differs from the paper, "" where it does not knowingly.
    """

    name: str
    summary: str
    changes: frozenset[Changes]
    rule: str
    paper: str = ""
    teacher: Literal["no", "optional", "required"] = "no"
    kinds: frozenset[ModelKind] = frozenset({"causal-lm"})
    task_kinds: frozenset[str] = frozenset({"generation", "multiple-choice", "preference", "sequence-classification"})
    objectives: frozenset[str] = frozenset()
    ordered: bool = False
    makes_pairs: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)
    defaults_source: str = ""
    trap: str = ""
    differs: str = ""


class Desk(Protocol):
    """Models and data that a recipe may use. Every call to a model is counted and billed."""

    @property
    def seed(self) -> int:
        """Of the cell; draw by it alone."""
        ...

    @property
    def budget(self) -> int:
        """Rows that training will read: steps x batch size x accumulation."""
        ...

    @property
    def steps(self) -> int:
        """Training steps."""
        ...

    @property
    def validation(self) -> Sequence[Item]:
        """Items of the validation split; empty where the task has none."""
        ...

    @property
    def mask_token(self) -> int:
        """Id of a token that means nothing: the mask token, else the unknown one, else padding."""
        ...

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Tokens of prompt and answer of each item."""
        ...

    def log_probs_of(self, items: Sequence[Item], by: By = "base") -> list[tuple[float, int]]:
        """Log-probability of each right answer (nat, summed) and its tokens."""
        ...

    def token_log_probs(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Log-probability of every labelled token of each row's first sequence under the base, [n] each."""
        ...

    def answers_of(self, items: Sequence[Item], *, by: By = "base", temperature: float = 0.0) -> list[str]:
        """One completion for each prompt, the delimiter included."""
        ...

    def judged_right(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        """Whether each completion is right by the task's parser."""
        ...

    def items_of(self, task: str) -> list[Item]:
        """The training items of another task."""
        ...

    def gradients(
        self, items: Sequence[Item], *, warm_up: Sequence[Item], dimensions: int, steps: int
    ) -> NDArray[np.float32]:
        """Projected LoRA gradients of each item, a NumPy array [items, dimensions] with rows of length 1.

        Args:
            warm_up: items on which the LoRA is trained for ``steps`` steps first, because its A has no gradient while
                its B is 0.
        """
        ...


class Recipe:
    """A change of the training rows. Subclasses set ``declaration`` and override the hooks they need.

    Args:
        params: parameters as resolved by :meth:`resolve`.
    """

    declaration: ClassVar[RecipeDeclaration]

    def __init__(self, params: Mapping[str, object]) -> None:
        self.params: dict[str, Any] = dict(params)

    # --- before any model is there -------------------------------------------------------------
    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: a parameter that this recipe does not have.
        """
        return overlaid("recipe", cls.declaration.name, cls.declaration.defaults, params, where=where)

    @classmethod
    def check(cls, kind: str, task_kind: str, objective: str, method: type[Method], *, teacher: bool) -> str | None:
        """Why this recipe cannot treat the rows of such a cell, or None. Imports nothing heavy."""
        d = cls.declaration
        if kind not in d.kinds or task_kind not in d.task_kinds:
            return f"the recipe {d.name} does not treat the rows of a {task_kind} task"
        if d.objectives and objective not in d.objectives:
            return f"the recipe {d.name} is defined for {', '.join(sorted(d.objectives))}, not for {objective}"
        if d.teacher == "required" and not teacher:
            return f"the recipe {d.name} needs a teacher: name one with 'teacher:'"
        if d.teacher == "no" and teacher:
            return f"the recipe {d.name} has no use for a teacher"
        in_loop = d.changes & {"weight", "mask", "loss"}
        if in_loop and method.training_step is not Method.training_step:
            return f"{method.declaration.name} takes whole steps by itself on the supervised loss"
        return None

    @classmethod
    def tasks(cls, params: Mapping[str, object]) -> tuple[str, ...]:
        """Other tasks whose training items it reads; their digests become part of the cell."""
        return ()

    # --- rows ----------------------------------------------------------------------------------
    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The training items to use, in the order to use them.

        Raises:
            UserError: none are left.
        """
        return items

    def rows(self, rows: list[Row], items: Sequence[Item], desk: Desk) -> list[Row]:
        """The encoded rows, one per item, to train on; ``extra["weights"]`` holds one number per labelled token."""
        return rows

    # --- training ------------------------------------------------------------------------------
    def batch(self, batch: dict[str, torch.Tensor], step: int, steps: int) -> dict[str, torch.Tensor]:
        """Before each forward pass: the batch with its inputs changed; labels stay. ``step`` counts from 0."""
        return batch

    def loss(
        self,
        task_loss: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The loss in the place of the supervised one.

        Args:
            task_loss: what the objective gave.
            logits: [B, T', V].
            labels: [B, T].
            extra: what the rows hold besides.
        """
        return task_loss

    def facts(self) -> dict[str, Any]:
        """The choices and findings, for the record."""
        return {}


class Plain(Recipe):
    """The rows as they are, shuffled by the training loop."""

    declaration = RecipeDeclaration(
        name=DEFAULT,
        summary="The training rows as they are, shuffled.",
        changes=frozenset(),
        rule="none",
        task_kinds=frozenset(
            {"generation", "multiple-choice", "preference", "sequence-classification", "language-modelling"}
        ),
        kinds=frozenset({"causal-lm", "sequence-classification"}),
    )
