"""Recipes that put other rows in the place of the task's: own answers, rationales, several questions in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.errors import UserError
from harness.item import Item
from harness.objectives.base import Row, token_labels
from harness.recipes.base import Desk, Recipe, RecipeDeclaration

GENERATION = frozenset({"generation"})


class S3FT(Recipe):
    """Selective self-supervision."""

    declaration = RecipeDeclaration(
        name="s3ft",
        summary="The base's own answer where it is judged right, the given answer elsewhere.",
        changes=frozenset({"rewrite", "generate"}),
        rule="sample one answer per prompt; keep it if the task's parser finds it right",
        paper="2502.08130",
        task_kinds=GENERATION,
        defaults={"temperature": 0.0},
        defaults_source="one greedy answer; the paper samples",
        trap="The answer is judged by the parser, so that a right result after a wrong argument is kept as well.",
        differs="The paper also paraphrases the given answer where the own one is wrong, and judges by an LLM.",
    )
    own = 0
    of = 0

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        answers = desk.answers_of(items, temperature=self.params["temperature"])
        right = desk.judged_right(items, answers)
        self.own, self.of = sum(right), len(items)
        return [replace(i, answer=a) if ok else i for i, a, ok in zip(items, answers, right, strict=True)]

    def facts(self) -> dict[str, Any]:
        """The choices, for the record."""
        return {"own_answers": self.own, "of": self.of}


class SelfPlay(Recipe):
    """One round of SPIN."""

    declaration = RecipeDeclaration(
        name="self-play",
        summary="Pairs whose worse answer is what the base itself answers: one round of SPIN.",
        changes=frozenset({"rewrite", "generate"}),
        rule="chosen: the given answer; rejected: the base's own; rows where they are the same are left out",
        paper="2401.01335",
        task_kinds=GENERATION,
        objectives=frozenset({"dpo", "ipo", "simpo", "orpo", "kto"}),
        makes_pairs=True,
        defaults={"temperature": 0.0},
        defaults_source="one greedy answer; the paper samples",
        trap="A base that is already right has nothing to lose against: such rows must go.",
        differs="One round; a further round starts from what this one trained.",
    )
    same = 0
    of = 0

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        answers = desk.answers_of(items, temperature=self.params["temperature"])
        pairs = [replace(i, rejected=a) for i, a in zip(items, answers, strict=True) if a.strip() and a != i.answer]
        self.same, self.of = len(items) - len(pairs), len(items)
        if not pairs:
            raise UserError("self-play leaves no rows: the base already gives every right answer, or answers nothing")
        return pairs

    def facts(self) -> dict[str, Any]:
        """The choices, for the record."""
        return {"left_out": self.same, "of": self.of}


class StepByStep(Recipe):
    """Distilling step-by-step: label and rationale as two tasks."""

    declaration = RecipeDeclaration(
        name="step-by-step",
        summary="Two rows per item: one asks for the answer alone, one for the rationale, distinguished by a prefix.",
        changes=frozenset({"rewrite", "weight"}),
        rule="loss of the answer rows + weight x loss of the rationale rows",
        paper="2305.02301",
        teacher="optional",
        task_kinds=GENERATION,
        objectives=frozenset({"sft"}),
        defaults={
            "marker": "####",
            "weight": 1.0,
            "answer_prefix": "",
            "rationale_prefix": "[rationale] ",
        },
        defaults_source="weight 1: the paper; answer rows keep the task's prompt, with which they are scored",
        trap="The rationale must not come before the answer in one row: at test time only the answer is asked for.",
        differs="The paper's prefixes are [label] and [rationale]; rationales here are in the row, or a teacher's.",
    )
    without = 0

    def items(self, items: Sequence[Item], desk: Desk) -> Sequence[Item]:
        """The items to train on."""
        found: list[Item] = []
        for item in items:
            rationale, mark, answer = item.answer.rpartition(self.params["marker"])
            if not mark or not rationale.strip():
                self.without += 1
                found.append(item)
                continue
            asked = self.params["answer_prefix"] + item.prompt
            why = self.params["rationale_prefix"] + item.prompt
            found.append(replace(item, id=f"{item.id}#answer", prompt=asked, answer=f"{mark}{answer}"))
            found.append(replace(item, id=f"{item.id}#rationale", prompt=why, answer=rationale.rstrip()))
        if len(found) == len(items):
            raise UserError(
                f"step-by-step finds no rationale: no answer holds {self.params['marker']!r} with text before it",
                fix="Set 'marker' to the text between rationale and answer in this task.",
            )
        return found

    def rows(self, rows: list[Row], items: Sequence[Item], desk: Desk) -> list[Row]:
        """The rows with what this recipe writes into them."""
        import torch

        for row, item in zip(rows, items, strict=True):
            labelled = sum(label != -100 for label in token_labels(row["sequences"][0]))
            weight = self.params["weight"] if item.id.endswith("#rationale") else 1.0
            row["extra"]["weights"] = torch.full((labelled,), float(weight))
        return rows

    def facts(self) -> dict[str, object]:
        """The choices, for the record."""
        return {"items_without_rationale": self.without}


class ManyShot(Recipe):
    """Several questions with their answers in one row, each answer trained on."""

    declaration = RecipeDeclaration(
        name="many-shot",
        summary="Several items in one row, one after the other, with the loss on every answer (ManyICL).",
        changes=frozenset({"rewrite"}),
        rule="join ``shots`` encoded rows; their labels stay",
        paper="2506.11103",
        task_kinds=GENERATION,
        objectives=frozenset({"sft"}),
        defaults={"shots": 4},
        defaults_source="as many as fit a short context; the paper uses hundreds",
        trap="A step then sees as many items times the shots: compare at the same number of items, not of steps.",
    )
    joined = 0

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: no such parameter, or a value outside its range.
        """
        found = super().resolve(params, where=where)
        if found["shots"] < 2:
            raise UserError("many-shot: shots is 2 or more", where=where)
        return found

    def rows(self, rows: list[Row], items: Sequence[Item], desk: Desk) -> list[Row]:
        """The rows with what this recipe writes into them."""
        n = self.params["shots"]
        found: list[Row] = []
        for start in range(0, len(rows) - n + 1, n):
            parts = [row["sequences"][0] for row in rows[start : start + n]]
            ids = [token for part in parts for token in part["input_ids"]]
            labels = [label for part in parts for label in token_labels(part)]
            found.append({"sequences": [{"input_ids": ids, "labels": labels}], "extra": {}})
        if not found:
            raise UserError(f"many-shot joins {n} rows into one, and there are {len(rows)}")
        self.joined = len(found)
        return found

    def facts(self) -> dict[str, object]:
        """The choices, for the record."""
        return {"rows": self.joined}
