"""Options in another order, on real prompts and on made ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from tasks.data import load_split
from tasks.prompt_variants import as_given, orders, over_orders, relisted
from tasks.scored import Scored
from tasks.scoring import score_choices
from tasks.task import Item, load_task

LETTERS = (" A", " B", " C", " D")
MMLU = Item("t/0", "Is 'A. b' text?\nA. yes\nB. no way\nC. C. may\nD. all\nAnswer:", " B", 1, LETTERS)


def test_orders_are_all_different_and_never_the_given_one() -> None:
    found = orders(MMLU, 5)
    assert len(set(found)) == 5
    assert (0, 1, 2, 3) not in found
    assert orders(MMLU, 3) == found[:3]  # more orders are additional ones, the same in every cell
    assert len(orders(MMLU, 100)) == 23
    assert orders(Item("t/1", "", " A", 0, LETTERS[:2]), 9) == [(1, 0)]


def test_texts_move_and_letters_stay() -> None:
    moved = relisted(load_task("mmlu", []), MMLU, (3, 1, 0, 2))
    assert moved.prompt == "Is 'A. b' text?\nA. all\nB. no way\nC. yes\nD. C. may\nAnswer:"
    assert (moved.label, moved.answer, moved.choices) == (1, " B", LETTERS)
    assert relisted(load_task("mmlu", []), MMLU, (1, 0, 2, 3)).label == 0
    with pytest.raises(UserError, match="does not list its options"):
        relisted(load_task("mmlu", []), Item("t/0", "What?\nAnswer:", " B", 1, LETTERS), (3, 1, 0, 2))


@pytest.mark.parametrize("name", ["arc-easy", "arc-challenge", "openbookqa", "piqa", "siqa", "winogrande"])
def test_every_real_prompt_lists_its_options_as_its_task_says(name: str, data_root: Path) -> None:
    task = load_task(name, [])
    for item in load_split(task, "test", data_root=data_root, max_items=None, seed=0):
        (order,) = orders(item, 1)
        moved = relisted(task, item, order)
        assert sorted(moved.prompt.split()) == sorted(item.prompt.split())
        back = tuple(order.index(k) for k in range(len(order)))
        assert relisted(task, moved, back) == item


def test_scores_of_another_order_map_to_the_given_options() -> None:
    order = (3, 1, 0, 2)
    (scored,) = score_choices(load_task("mmlu", []), [relisted(load_task("mmlu", []), MMLU, order)], [[-1, -2, -3, -4]])
    told = as_given(MMLU, order, scored)
    assert (told.prediction, told.answer, told.correct) == (" D", " B", False)
    assert told.logp_choices == [-3, -2, -4, -1]
    assert told.logp_answer == told.logp_choices[1]


def test_means_are_over_orders_then_over_items() -> None:
    def scored(item: str, said: str, *, right: bool) -> Scored:
        return Scored(item, right, said, "b")

    given = [scored("1", "b", right=True), scored("2", "a", right=False)]
    again = [[scored("1", "a", right=False), scored("2", "a", right=False)], [scored("1", "b", right=True)]]
    accuracy, changes = over_orders(given, again)
    assert accuracy.value == pytest.approx((2 / 3 + 0) / 2)
    assert (changes.value, changes.n) == (0.5, 2)
