"""Numbered examples shared out among the splits by a hash of their number, and drawn without repetition."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UserError, did_you_mean, requirement

SHARES: dict[str, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Tenths of all examples that belong to each split."""

_ENUMERATED = 100_000
"""Up to this many examples all are shuffled; of more, random ones are picked."""


class Params(BaseModel):
    """Base of a generator's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_params(model: type[Params], params: Mapping[str, object], generator: str) -> Any:
    """``params`` as an instance of ``model``.

    Raises:
        UserError: the first thing that is wrong with them.
    """
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            fix = did_you_mean(name, model.model_fields)
            raise UserError(f"generator {generator!r} has no parameter {name!r}", fix=fix) from None
        what = requirement(first)
        raise UserError(f"generator {generator!r}, parameter {name!r}: {what}") from None


def split_of(number: int) -> str:
    """The split of example ``number``: 80 % train, 10 % validation, 10 % test, independent of the seed."""
    tenth = int.from_bytes(blake2b(str(number).encode(), digest_size=8).digest()) % 10
    return next(split for split, tenths in SHARES.items() if tenth in tenths)


def draw(size: int, split: str, n: int, seed: int) -> list[int]:
    """``n`` different numbers below ``size`` that belong to ``split``; fewer numbers are a prefix of more.

    Raises:
        UserError: ``split`` has fewer than ``n`` numbers.
    """
    # picking without repetition becomes slow near the end of a large supply, so half of a tenth is the most
    most = size // 20 if size > _ENUMERATED else size
    numbers = list(islice((k for k in _shuffled(size, seed) if split_of(k) == split), min(n, most)))
    if len(numbers) < n:
        raise UserError(
            f"{n} different {split} items are asked for, and this generator gives at most {len(numbers)}",
            fix="Ask for fewer (max_rows), or make the examples longer.",
        )
    return numbers


def _shuffled(size: int, seed: int) -> Iterator[int]:
    """Numbers below ``size`` in random order, each at most once."""
    rng = random.Random(seed)
    if size <= _ENUMERATED:
        numbers = list(range(size))
        rng.shuffle(numbers)
        yield from numbers
        return
    seen: set[int] = set()
    while len(seen) < size:
        number = rng.randrange(size)
        if number not in seen:
            seen.add(number)
            yield number
