"""Order cells by priority and fit them into a time budget.

Rule: the sweep's ``priority`` comes first. Without a time budget cells run in randomised blocks
(:mod:`runners.planning.blocks`), so that the machine's load falls on all methods alike. Under a budget the first
seed of every cell comes before the second seed of any, and among equals the cell that is predicted to be cheaper: as
many cells as possible are complete at every moment. A cell starts only if its predicted end is within the budget;
started cells are finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from harness.matrix import Cell
from harness.spec_axes import Priority
from runners.planning.cost_model import Prediction

Predicted = Callable[[Cell], Prediction]


def rank(cell: Cell, rules: Sequence[Priority]) -> int:
    """The cell's priority: the highest value of the rules that match it, 0 if none does."""
    return max((rule.value for rule in rules if _matches(rule, cell)), default=0)


def _matches(rule: Priority, cell: Cell) -> bool:
    points = (cell.model, cell.method, cell.quantization, cell.task, cell.hardware)
    patterns = (rule.model, rule.method, rule.quantization, rule.task, rule.hardware)
    return (rule.seed is None or rule.seed == cell.seed) and all(
        fnmatchcase(point.label, pattern) or fnmatchcase(point.name, pattern)
        for point, pattern in zip(points, patterns, strict=True)
    )


def in_order(
    cells: Sequence[Cell], rules: Sequence[Priority], *, seeds: Sequence[int], predicted: Predicted
) -> list[Cell]:
    """Cells in the order of the rule above for a time budget.

    Args:
        seeds: of the sweep, in its order.
    """
    place = {seed: i for i, seed in enumerate(seeds)}

    def key(cell: Cell) -> tuple[int, int, float]:
        seconds = predicted(cell).seconds
        return -rank(cell, rules), place.get(cell.seed, -1), float("inf") if seconds is None else seconds

    return sorted(cells, key=key)


@dataclass
class Budget:
    """The time given to a run.

    Attributes:
        seconds: how long.
        began: on the monotonic clock; a run of several plans has one budget.
    """

    seconds: float
    began: float

    @classmethod
    def of_hours(cls, hours: float) -> Budget:
        """A budget that begins now."""
        return cls(hours * 3600, time.monotonic())

    def refuses(self, predicted_s: float | None) -> str | None:
        """Reason why a cell should not start now, or None.

        One whose duration nothing predicts starts while time is left.
        """
        left = self.began + self.seconds - time.monotonic()
        if left <= 0:
            return f"the budget of {self.seconds / 3600:.3g} h is used up"
        if predicted_s is not None and predicted_s > left:
            return f"it is predicted to take {predicted_s:.0f} s, and {left:.0f} s of the budget are left"
        return None


def fitting(
    cells: Sequence[Cell], predicted: Predicted, *, seconds: float, slots: int
) -> tuple[list[Cell], list[Cell]]:
    """Cells that fit the budget, and cells that do not, if every prediction were true.

    Args:
        cells: in order.
        slots: cells that run at once.
    """
    ends = [0.0] * max(1, slots)
    inside, outside = [], []
    for cell in cells:
        slot = min(range(len(ends)), key=ends.__getitem__)
        needs = predicted(cell).seconds or 0.0
        if ends[slot] >= seconds or ends[slot] + needs > seconds:
            outside.append(cell)
        else:
            ends[slot] += needs
            inside.append(cell)
    return inside, outside
