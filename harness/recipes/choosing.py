"""Recipes that choose rows: a random part, a band of the base's loss, the most likely of several answers, a teacher's
lead over the base, gradients like those of the validation split; and mixtures of tasks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import UserError
from harness.item import Item
from harness.methods.base import ModelKind
from harness.recipes.base import Desk, Recipe, RecipeDeclaration

BOTH: frozenset[ModelKind] = frozenset({"causal-lm", "sequence-classification"})
ANSWERED = frozenset({"generation", "multiple-choice"})


def fraction_of(params: Mapping[str, Any], recipe: str, where: str) -> None:
    """Raise unless ``fraction`` lies above 0 and at 1 at most."""
    if not 0 < params["fraction"] <= 1:
        raise UserError(f"{recipe}: fraction lies above 0 and at 1 at most", where=where)


def best(items: Sequence[Item], scores: Sequence[float], fraction: float) -> list[Item]:
    """The share of the items with the highest scores, in their order; one at least."""
    n = max(1, round(fraction * len(items)))
    chosen = sorted(range(len(items)), key=lambda i: (-scores[i], i))[:n]
    return [items[i] for i in sorted(chosen)]


class _Fraction(Recipe):
    """A recipe that keeps a ``fraction`` of the rows."""

    kept = 0
    of = 0

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: no such parameter, or a value outside its range.
        """
        found = super().resolve(params, where=where)
        fraction_of(found, cls.declaration.name, where)
        return found

    def scores(self, items: Sequence[Item], desk: Desk) -> Sequence[float]:
        """Score of each row; the highest are kept."""
        raise NotImplementedError

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        chosen = best(items, self.scores(items, desk), self.params["fraction"])
        self.kept, self.of = len(chosen), len(items)
        return chosen

    def facts(self) -> dict[str, Any]:
        """The choices, for the record."""
        return {"kept": self.kept, "of": self.of}


class Subset(_Fraction):
    """The control of every selection."""

    declaration = RecipeDeclaration(
        name="subset",
        summary="A random part of the rows: what any selection must beat.",
        changes=frozenset({"choose"}),
        rule="each row has the same chance",
        kinds=BOTH,
        defaults={"fraction": 0.5},
        defaults_source="as the other selections here",
        trap="Compare a selection with this at the same fraction, not with all rows.",
    )

    def scores(self, items: Sequence[Item], desk: Desk) -> Sequence[float]:
        """Score of each row; the highest are kept."""
        draw = random.Random(desk.seed)
        return [draw.random() for _ in items]


class LossBand(_Fraction):
    """Selection by how likely the base finds the right answer."""

    declaration = RecipeDeclaration(
        name="loss-band",
        summary="Rows the base finds likely, unlikely, or neither; a teacher's confidence where one is named.",
        changes=frozenset({"choose"}),
        rule="rank by mean log-probability of the answer per token; keep the top, the bottom or the middle",
        paper="2403.12776",
        teacher="optional",
        task_kinds=ANSWERED,
        defaults={"fraction": 0.5, "band": "high", "by": "base"},
        defaults_source="half of the rows; confident ones, as CLEAR's filter keeps",
        trap="Per token and not summed, or short answers would always be kept.",
        differs="CLEAR also corrects answers and takes its confidence from several LLM judgements of each row.",
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: no such parameter, or a value outside its range.
        """
        found = super().resolve(params, where=where)
        if found["band"] not in ("high", "middle", "low"):
            raise UserError("loss-band: band is 'high' (likely answers), 'middle' or 'low'", where=where)
        if found["by"] not in ("base", "teacher"):
            raise UserError("loss-band: by is 'base' or 'teacher'", where=where)
        return found

    def scores(self, items: Sequence[Item], desk: Desk) -> Sequence[float]:
        """Score of each row; the highest are kept."""
        means = [logp / max(1, n) for logp, n in desk.log_probs_of(items, self.params["by"])]
        if self.params["band"] == "middle":
            middle = sorted(means)[len(means) // 2]
            return [-abs(mean - middle) for mean in means]
        return means if self.params["band"] == "high" else [-mean for mean in means]


class DifferenceSampling(_Fraction):
    """MiniPLM's selection, on fine-tuning rows."""

    declaration = RecipeDeclaration(
        name="difference-sampling",
        summary="Rows that the teacher finds much more likely than the base does.",
        changes=frozenset({"choose"}),
        rule="keep the highest log p_teacher - log p_base of the answer",
        paper="2410.17215",
        teacher="required",
        task_kinds=ANSWERED,
        defaults={"fraction": 0.5},
        defaults_source="the released code keeps the top half",
        trap="The two must score the same text; different tokenizers are fine, since whole answers are compared.",
        differs="The paper selects pre-training text; the small model there is a reference of the same size.",
    )

    def scores(self, items: Sequence[Item], desk: Desk) -> Sequence[float]:
        """Score of each row; the highest are kept."""
        teacher, base = desk.log_probs_of(items, "teacher"), desk.log_probs_of(items, "base")
        return [a - b for (a, _), (b, _) in zip(teacher, base, strict=True)]


class GRAPE(Recipe):
    """One answer per prompt: the one that is most like the base's own."""

    declaration = RecipeDeclaration(
        name="grape",
        summary="Of several right answers to a prompt, the one the base finds most likely.",
        changes=frozenset({"choose"}),
        rule="argmax over a prompt's answers of the mean log-probability per token under the base",
        paper="2502.04194",
        task_kinds=frozenset({"generation"}),
        trap="Per token; and it needs rows that share a prompt, else nothing is chosen.",
    )
    prompts = 0
    of = 0

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        by_prompt: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            by_prompt.setdefault(item.prompt, []).append(i)
        if len(by_prompt) == len(items):
            raise UserError(
                "grape chooses between several answers to one prompt, and every prompt has one answer only",
                fix="Give the task several rows with the same prompt.",
            )
        means = [logp / max(1, n) for logp, n in desk.log_probs_of(items)]
        self.prompts, self.of = len(by_prompt), len(items)
        return [items[max(rows, key=lambda i: means[i])] for rows in by_prompt.values()]

    def facts(self) -> dict[str, object]:
        """The choices, for the record."""
        return {"kept": self.prompts, "of": self.of}


class LESS(_Fraction):
    """Selection by gradients."""

    declaration = RecipeDeclaration(
        name="less",
        summary="Rows whose LoRA gradient points where the gradient of the validation rows points.",
        changes=frozenset({"choose"}),
        rule="keep the highest mean cosine between projected gradients of a row and of the validation rows",
        paper="2402.04333",
        task_kinds=ANSWERED,
        defaults={"fraction": 0.5, "dimensions": 1024, "warm_up_steps": 8, "validation_items": 32},
        defaults_source="the paper: 5 % of 270,000 rows, 8192 dimensions; here sized for a small model",
        trap="A fresh LoRA has B = 0 and so no gradient in A: it must be trained a little first.",
        differs="Plain gradients of one checkpoint; the paper sums Adam's updates over four.",
    )

    def scores(self, items: Sequence[Item], desk: Desk) -> Sequence[float]:
        """Score of each row; the highest are kept."""
        if not desk.validation:
            raise UserError("less chooses by the validation split, and the task has none")
        draw = random.Random(desk.seed)
        warm_up = draw.sample(list(items), min(len(items), 64))
        wanted = list(desk.validation)[: self.params["validation_items"]]
        found = desk.gradients(
            [*items, *wanted],
            warm_up=warm_up,
            dimensions=self.params["dimensions"],
            steps=self.params["warm_up_steps"],
        )
        rows, target = found[: len(items)], found[len(items) :]
        return [float(score) for score in (rows @ target.T).mean(axis=1)]


class Mixture(Recipe):
    """Several tasks in one training set."""

    declaration = RecipeDeclaration(
        name="mixture",
        summary="Training rows of several tasks with stated weights; scored on the cell's own task.",
        changes=frozenset({"choose"}),
        rule="as many rows of each task as its weight says, of the rows that training will read",
        task_kinds=ANSWERED,
        defaults={"tasks": {}, "own": 1.0},
        defaults_source="nothing is mixed in unless it is named",
        trap="A task with fewer rows than its share is repeated, which the record says.",
    )
    shares: dict[str, object]

    @classmethod
    def tasks(cls, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The tasks that are mixed in."""
        return tuple(sorted(params["tasks"]))

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: no such parameter, or a value outside its range.
        """
        found = super().resolve(params, where=where)
        weights = [found["own"], *found["tasks"].values()]
        if not found["tasks"] or min(weights) < 0 or sum(weights) <= 0:
            raise UserError("mixture: 'tasks' maps task names to weights, 0 or more, one above 0", where=where)
        return found

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        sources = {"own": list(items), **{name: desk.items_of(name) for name in self.tasks(self.params)}}
        weights = {"own": self.params["own"], **self.params["tasks"]}
        draw = random.Random(desk.seed)
        mixed: list[Item] = []
        self.shares = {}
        for name, rows in sources.items():
            n = round(desk.budget * weights[name] / sum(weights.values()))
            whole, rest = divmod(n, len(rows))
            mixed += [*(rows * whole), *draw.sample(rows, rest)]
            self.shares[name] = {"rows": n, "distinct": min(n, len(rows))}
        draw.shuffle(mixed)
        return mixed

    def facts(self) -> dict[str, object]:
        """The choices, for the record."""
        return {"shares": self.shares}


class Curriculum(Recipe):
    """Easy rows first, or other orders by the same difficulty."""

    declaration = RecipeDeclaration(
        name="curriculum",
        summary="Rows in the order of their difficulty: their length, or the loss of the base on them.",
        changes=frozenset({"order"}),
        rule="ascending, descending, or interleaved: groups of like difficulty take turns, each from easy to hard",
        paper="2408.07888",
        kinds=frozenset({"causal-lm", "sequence-classification"}),
        ordered=True,
        defaults={"by": "loss", "order": "ascending", "groups": 4},
        defaults_source="the paper's loss-based order; quartiles",
        trap="With more rows than training reads, the order alone would train on the easiest: rows are drawn first.",
    )
    drawn = 0

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: no such parameter, or a value outside its range.
        """
        found = super().resolve(params, where=where)
        if found["by"] not in ("loss", "length") or found["order"] not in ("ascending", "descending", "interleaved"):
            raise UserError(
                "curriculum: by is 'loss' or 'length', order is 'ascending', 'descending' or 'interleaved'", where=where
            )
        if found["groups"] < 2:
            raise UserError("curriculum: groups is 2 or more", where=where)
        return found

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        drawn = list(items)
        if len(drawn) > desk.budget:
            drawn = random.Random(desk.seed).sample(drawn, desk.budget)
        self.drawn = len(drawn)
        if self.params["by"] == "length":
            difficulty: list[float] = [float(n) for n in desk.lengths(drawn)]
        else:
            difficulty = [-logp / max(1, n) for logp, n in desk.log_probs_of(drawn)]
        ranked = [drawn[i] for i in sorted(range(len(drawn)), key=lambda i: (difficulty[i], i))]
        if self.params["order"] == "descending":
            return ranked[::-1]
        return interleaved(ranked, self.params["groups"]) if self.params["order"] == "interleaved" else ranked

    def facts(self) -> dict[str, object]:
        """The choices, for the record."""
        return {"rows_in_order": self.drawn}


def interleaved(ranked: Sequence[Item], groups: int) -> list[Item]:
    """Ranked rows in ``groups`` of like rank, which take turns; within a group the order stays."""
    size = -(-len(ranked) // groups)
    parts = [ranked[start : start + size] for start in range(0, len(ranked), size)]
    return [part[i] for i in range(size) for part in parts if i < len(part)]
