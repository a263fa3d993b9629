"""Worked examples in front of a prompt: what a method that learns in context shows.

They come from the training split and never from another; every item gets the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.methods.base import Method, Setting
from harness.methods.baselines import FewShot
from runners.worker.encoding import encode_answer, encode_prompt
from tasks.task import Item

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"
NAMED = 20
"""Items that the record names of those that got fewer examples."""


@dataclass
class Examples:
    """The examples of one cell.

    Attributes:
        items: in the order in which they are shown.
        separator: ends each of them.
        facts: for the record; ``fewer`` counts and names the items whose context was too short for all.
    """

    items: tuple[Item, ...]
    separator: str
    facts: dict[str, Any]
    _kept: dict[str, int] = field(default_factory=dict)

    def before(
        self, items: Sequence[Item], *, tokenizer: PreTrainedTokenizerBase, positions: int, completion: int
    ) -> list[Item]:
        """The items with the examples in front of their prompts.

        Where the context is too short for all of them and the answer, the last ones are left out, whole, until the
        rest fits.

        Args:
            positions: the model has, in tokens.
            completion: tokens that are generated at most; 0 where nothing is.
        """
        texts = [item.prompt + item.answer + self.separator for item in self.items]
        out = []
        for item in items:
            answers = item.choices or (item.answer,)
            needed = max(completion, *(len(encode_answer(tokenizer, answer)) - 1 for answer in answers))
            kept = len(texts)
            while kept and len(encode_prompt(tokenizer, "".join(texts[:kept]) + item.prompt)) > positions - needed:
                kept -= 1
            if kept < len(texts):
                self._kept[item.id] = kept
            shown = "".join(texts[:kept])
            contexts = tuple(shown + context for context in item.contexts)
            out.append(replace(item, prompt=shown + item.prompt, contexts=contexts))
        if self._kept:
            first = dict(list(self._kept.items())[:NAMED])
            self.facts["fewer"] = {"n": len(self._kept), "examples_left": first}
        return out


def chosen(train: Sequence[Item], k: int, seed: int) -> Examples:
    """k examples of the training items, drawn by the seed as the method ``few-shot`` draws them."""
    params = {"k": k, "separator": SEPARATOR}
    setting = Setting(kind="causal-lm", base="fp", seed=seed, steps=0, learning_rate=0.0)
    found = draw(FewShot(params, setting), train)
    assert found is not None  # this method always shows some
    return found


def draw(method: Method, train: Sequence[Item]) -> Examples | None:
    """The examples that the method shows of the training items; None where it shows none.

    Raises:
        UserError: there are too few training items, or the separator occurs in an example's answer, which would cut a
            completion there.
    """
    shown = method.shows(len(train))
    if shown is None:
        return None
    items = tuple(train[position] for position in shown.positions)
    for item in items:
        if shown.separator in item.answer:
            raise UserError(
                f"the separator {shown.separator!r} of the examples occurs in the answer of training item {item.id}",
                fix="Choose another separator: completions are cut at it.",
            )
    return Examples(items, shown.separator, {"items": [item.id for item in items]})
