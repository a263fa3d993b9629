"""Filler rows: the stated length, for text and for a skeleton's tokens."""

from __future__ import annotations

from harness.models.skeleton import build_tokenizer, skeleton
from tasks.data import load_split
from tasks.generators.filler import generate
from tasks.task import load_task


def test_rows_have_the_stated_length_and_no_split_shares_one() -> None:
    params = {"prompt_characters": 40, "answer_characters": 9}
    train, test = generate(params, "train", 50, 0), generate(params, "test", 50, 0)
    assert {(len(i.prompt), len(i.answer)) for i in train + test} == {(40, 9)}
    assert len({i.prompt + i.answer for i in train + test}) == 100
    assert generate(params, "train", 20, 0) == train[:20]


def test_a_row_of_the_definition_is_768_tokens_of_a_skeleton() -> None:
    tokenizer = build_tokenizer(skeleton("skeleton:smollm2-135m"))
    for item in load_split(load_task("filler-768", []), "train", data_root=None, max_items=3, seed=0):
        ids = tokenizer(item.prompt)["input_ids"] + tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        assert len(ids) + 1 == 768  # and the end of sequence
