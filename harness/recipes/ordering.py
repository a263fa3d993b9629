"""Recipes that order rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import UserError
from harness.recipes.base import Desk, Recipe, RecipeDeclaration


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
    def resolve(cls, params: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
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

    def items(self, items: Sequence[Any], desk: Desk) -> Sequence[Any]:
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

    def facts(self) -> dict[str, Any]:
        """The choices, for the record."""
        return {"rows_in_order": self.drawn}


def interleaved(ranked: Sequence[Any], groups: int) -> list[Any]:
    """Ranked rows in ``groups`` of like rank, which take turns; within a group the order stays."""
    size = -(-len(ranked) // groups)
    parts = [ranked[start : start + size] for start in range(0, len(ranked), size)]
    return [part[i] for i in range(size) for part in parts if i < len(part)]
