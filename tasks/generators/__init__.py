"""Tasks that a program makes up: deterministic, disjoint splits, no download.

A generator is ``generate(params, split, n, seed) -> list[Item]``, one registry line and one test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from harness.registry import Registry

if TYPE_CHECKING:
    from harness.item import Item


class Generator(Protocol):
    """Makes the items of a split."""

    def __call__(self, params: Mapping[str, object], split: str, n: int, seed: int) -> list[Item]:
        """``n`` items of ``split``, the same for the same arguments; two splits never share one.

        Raises:
            UserError: a parameter is wrong, or there are fewer than ``n`` items.
        """
        ...


GENERATORS: Registry[Generator] = Registry(
    "generator",
    {
        "strings": "tasks.generators.strings:generate",
        "string-pairs": "tasks.generators.strings:generate_pairs",
        "addition": "tasks.generators.addition:generate",
        "filler": "tasks.generators.strings:generate_filler",
    },
)
