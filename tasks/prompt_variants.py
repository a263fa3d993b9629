"""The same items asked in another way: options in another order, other prompts. Pure: nothing here scores."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from harness.errors import UserError
from tasks.scored import Scored, Summary, mean_of
from tasks.task import Item, Task

Order = tuple[int, ...]
"""Option of the item at each position."""


def orders(item: Item, n: int) -> list[Order]:
    """``n`` orders of the item's options other than the given one, all different; fewer where there are fewer.

    Drawn from the item's id alone, so that every cell asks in the same orders.
    """
    given = tuple(range(len(item.choices)))
    wanted = min(n, math.factorial(len(given)) - 1)
    draw = random.Random(f"orders/{item.id}")
    found: dict[Order, None] = {}
    while len(found) < wanted:
        order = tuple(draw.sample(given, len(given)))
        if order != given:
            found[order] = None
    return list(found)


def relisted(task: Task, item: Item, order: Order) -> Item:
    """The item with its options listed in ``order``; what is answered with (a letter, say) stays at its place.

    Args:
        task: one whose ``options`` say how its prompt lists them.
        item: as the task gives it.
        order: the option at each position.

    Raises:
        UserError: the prompt does not list the options as the task says.
    """
    listed = task.options
    if listed is None:
        raise ValueError(f"the prompt of task {task.definition.name!r} lists no options")
    text = item.prompt
    upto = end = text.rfind(listed.before) if listed.before else len(text)
    texts: list[str] = []
    gaps: list[str] = []
    markers: list[str] = []
    for place in reversed(range(len(order))):
        option = item.choices[place].removeprefix(task.delimiter)
        marker = listed.marker.replace("{n}", str(place + 1)).replace("{option}", option)
        start = text.rfind(marker, 0, max(upto, 0))
        if start < 0:
            raise UserError(
                f"the prompt does not list its options as the task's 'options' say: no {marker!r}",
                where=f"task {task.definition.name!r}, item {item.id}",
            )
        body = text[start + len(marker) : upto]
        texts.insert(0, body.rstrip())
        gaps.insert(0, body[len(body.rstrip()) :])
        markers.insert(0, marker)
        upto = start
    middle = "".join(markers[k] + texts[option] + gaps[k] for k, option in enumerate(order))
    label = order.index(item.label)
    return replace(item, prompt=text[:upto] + middle + text[end:], label=label, answer=item.choices[label])


def as_given(item: Item, order: Order, scored: Scored) -> Scored:
    """A score of the relisted item, mapped back to the options of the item as it was given."""
    logps = scored.logp_choices or []
    back = [logps[order.index(option)] for option in range(len(logps))]
    chosen = order[item.choices.index(scored.prediction)]
    return replace(scored, prediction=item.choices[chosen], answer=item.answer, logp_choices=back)


def over_orders(given: Sequence[Scored], shuffled: Sequence[Sequence[Scored]]) -> tuple[Summary, Summary]:
    """Mean accuracy over the given order and the others, and the share of items whose answer is not always the same.

    Args:
        given: every item in the order of its prompt.
        shuffled: the k-th orders of the items that have as many, mapped as by :func:`as_given`.
    """
    again: dict[str, list[Scored]] = {s.item: [s] for s in given}
    for scored in (s for arm in shuffled for s in arm):
        again[scored.item].append(scored)
    right = [sum(bool(s.correct) for s in times) / len(times) for times in again.values()]
    moved = [float(len({s.prediction for s in times}) > 1) for times in again.values()]
    return mean_of(right), mean_of(moved)


def asked_as(task: Task, prompt: str) -> Task:
    """The task with another prompt."""
    return replace(task, definition=task.definition.model_copy(update={"prompt": prompt}))
