"""String operations on single characters, and their compositions: ``Xabcdef=`` is answered ``gfedcb``.

A tiny model learns copy, reverse and shift within a minute and knows nothing of a composition, so that a composed
operation is a true adaptation task whose forgetting can be seen on the three it is made of.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from harness.item import Item
from tasks.generators.draw import Params, draw, read_params

Operation = Literal["copy", "reverse", "shift"]


def _distinct(alphabet: str) -> str:
    if len(set(alphabet)) != len(alphabet):
        raise ValueError("a character occurs twice")
    return alphabet


class StringParams(Params):
    """Parameters.

    Attributes:
        operations: applied from first to last.
        symbol: precedes the string and names the operation.
        length: characters of a string.
        alphabet: its characters; ``shift`` replaces each by the next one, the last by the first.
    """

    operations: tuple[Operation, ...] = Field(min_length=1)
    symbol: str = Field(min_length=1)
    length: int = Field(default=6, ge=1, le=64)
    alphabet: Annotated[str, Field(min_length=2), AfterValidator(_distinct)] = "abcdefghij"


def generate(params: Mapping[str, Any], split: str, n: int, seed: int) -> list[Item]:
    """``n`` different strings of ``split``, each with its operations applied. See :class:`StringParams`.

    The same strings, by length, alphabet and seed, are drawn for every operation, and a string of one task's test
    split is in no other task's train split.
    """
    wanted: StringParams = read_params(StringParams, params, "strings")
    base = len(wanted.alphabet)
    items = []
    for number in draw(base**wanted.length, split, n, seed):
        text = _spell(number, wanted)
        items.append(Item(id=f"{split}/{text}", prompt=f"{wanted.symbol}{text}=", answer=apply(text, wanted)))
    return items


class StringPairParams(StringParams):
    """Parameters of :func:`generate_pairs`.

    Attributes:
        rejected: operations whose result is the worse answer.
    """

    rejected: tuple[Operation, ...] = Field(min_length=1)


def generate_pairs(params: Mapping[str, object], split: str, n: int, seed: int) -> list[Item]:
    """Preferences over strings: the result of ``operations`` is better than that of ``rejected``.

    Where the two are the same text, the worse answer has another last character. See :func:`generate`.
    """
    wanted: StringPairParams = read_params(StringPairParams, params, "string-pairs")
    other = wanted.model_copy(update={"operations": wanted.rejected})
    following = str.maketrans(wanted.alphabet, wanted.alphabet[1:] + wanted.alphabet[0])
    plain = {name: value for name, value in params.items() if name != "rejected"}
    items = []
    for item in generate(plain, split, n, seed):
        worse = apply(item.id.partition("/")[2], other)
        if worse == item.answer:
            worse = worse[:-1] + worse[-1].translate(following)
        items.append(replace(item, rejected=worse))
    return items


def apply(text: str, params: StringParams) -> str:
    """``text`` after the operations of ``params``, first to last."""
    alphabet = params.alphabet
    following = str.maketrans(alphabet, alphabet[1:] + alphabet[0])
    for operation in params.operations:
        if operation == "reverse":
            text = text[::-1]
        elif operation == "shift":
            text = text.translate(following)
    return text


def _spell(number: int, params: StringParams) -> str:
    """String ``number``, written in the alphabet as digits."""
    characters = []
    for _ in range(params.length):
        number, digit = divmod(number, len(params.alphabet))
        characters.append(params.alphabet[digit])
    return "".join(characters)


_SUPPLY = 10**9


class FillerParams(Params):
    """Parameters.

    Attributes:
        prompt_characters: length of every prompt.
        answer_characters: length of every answer.
    """

    prompt_characters: int = Field(ge=1, le=100_000)
    answer_characters: int = Field(ge=1, le=100_000)


def generate_filler(params: Mapping[str, object], split: str, n: int, seed: int) -> list[Item]:
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
