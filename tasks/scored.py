"""A scored item, and a quantity over scored items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored item.

    Attributes:
        item: the item's id.
        correct: whether it was answered right; None where nothing was judged.
        prediction: the class, the chosen option, or the completion as it came.
        answer: the right one.
        logp_answer: log-probability of the right answer, summed over its tokens, in nat.
        logp_choices: that of every class or option.
        margin: log-probability of the right class or option less that of the best wrong one, in nat.
        length: tokens of the completion or of the answer; 0 for a class.
        cut: whether the input was longer than the context.
        correct_norm: whether the option with the highest log-probability per byte is right; of a pair, whether the
            chosen answer has the higher log-probability per token.
        lengths: tokens of the chosen and the rejected answer of a pair.
        reference: log-probabilities of both under the reference model, in nat; of a single judged answer, of it alone.
    """

    item: str
    correct: bool | None
    prediction: str
    answer: str
    logp_answer: float | None = None
    logp_choices: list[float] | None = None
    margin: float | None = None
    length: int = 0
    cut: bool = False
    correct_norm: bool | None = None
    lengths: tuple[int, int] | None = None
    reference: tuple[float, ...] | None = None

    def as_row(self) -> dict[str, object]:
        """The columns kept in a record's samples."""
        return {name: getattr(self, name) for name in SAMPLE_COLUMNS}


SAMPLE_COLUMNS = (
    "item",
    "correct",
    "prediction",
    "answer",
    "logp_answer",
    "logp_choices",
    "margin",
    "length",
    "cut",
)


class Summary(NamedTuple):
    """A quantity over scored items.

    Attributes:
        value: None where no item says anything about it.
        n: items behind it.
        standard_error: of the mean, from the items' sample variance (Miller 2024, arXiv:2411.00640, equation 1);
            None for fewer than two items and for quantities that are not means.
    """

    value: float | None
    n: int
    standard_error: float | None


def mean_of(values: list[float]) -> Summary:
    """Mean, number and standard error of ``values``; no value where there are none."""
    n = len(values)
    if n == 0:
        return Summary(None, 0, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Summary(float(np.mean(values)), n, error)
