"""Letters without meaning, to a stated length: rows for sweeps that measure memory, speed and energy.

Nothing can be learned from them; what a row costs depends on its length alone.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.generators.draw import Params, draw, read_params
from tasks.item import Item

_SUPPLY = 10**9


class FillerParams(Params):
    """Parameters.

    Attributes:
        prompt_characters: length of every prompt.
        answer_characters: length of every answer.
    """

    prompt_characters: int = Field(ge=1, le=100_000)
    answer_characters: int = Field(ge=1, le=100_000)


def generate(params: Mapping[str, Any], split: str, n: int, seed: int) -> list[Item]:
    """``n`` rows of ``split``. See :class:`FillerParams`."""
    wanted: FillerParams = read_params(FillerParams, params, "filler")
    items = []
    for number in draw(_SUPPLY, split, n, seed):
        letters = random.Random(number).choices(
            string.ascii_lowercase, k=wanted.prompt_characters + wanted.answer_characters
        )
        text = "".join(letters)
        prompt, answer = text[: wanted.prompt_characters], text[wanted.prompt_characters :]
        items.append(Item(id=f"{split}/{number}", prompt=prompt, answer=answer))
    return items
