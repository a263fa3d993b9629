"""Addition of two numbers with the digits of the sum reversed: ``12+34=`` is answered ``640``.

The sum has one digit more than its terms, padded with zero, so that every answer has the same length; it is
reversed because a carry then runs in the direction of writing (Lee et al. 2023, arXiv:2307.03381).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from harness.item import Item
from tasks.generators.draw import Params, draw, read_params


class AdditionParams(Params):
    """Parameters.

    Attributes:
        digits: of each term.
        offset: added to every sum; another value than 0 makes a task that an adder does not know.
    """

    digits: int = Field(default=2, ge=1, le=9)
    offset: int = Field(default=0, ge=0, le=9)


def generate(params: Mapping[str, Any], split: str, n: int, seed: int) -> list[Item]:
    """``n`` different sums of ``split``. See :class:`AdditionParams`."""
    wanted: AdditionParams = read_params(AdditionParams, params, "addition")
    width, terms = wanted.digits, 10**wanted.digits
    items = []
    for number in draw(terms * terms, split, n, seed):
        left, right = divmod(number, terms)
        asked = f"{left:0{width}}+{right:0{width}}"
        answer = f"{left + right + wanted.offset:0{width + 1}}"[::-1]
        items.append(Item(id=f"{split}/{asked}", prompt=f"{asked}=", answer=answer))
    return items
