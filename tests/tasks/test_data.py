from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.models.skeleton import build_tokenizer, skeleton
from tasks import overlap
from tasks.data import contamination, load_split, task_digest
from tasks.generators import GENERATORS
from tasks.generators.addition import generate as addition
from tasks.generators.draw import draw, split_of
from tasks.generators.strings import generate as strings
from tasks.generators.strings import generate_filler
from tasks.prompt_variants import as_given, orders, over_orders, relisted
from tasks.scored import Scored
from tasks.scoring import score_choices, score_texts, summarise
from tasks.task import Item, Task, load_task
from tests.tasks.conftest import OWN_TASK, own_task, ticket_rows, tickets, write_rows

HUB_TASK = """\
name: listed
version: 1
summary: Rows of a data set with columns made from others.
kind: multiple-choice
licence: none
source:
  hub:
    id: {folder}
    splits: {{train: "train[2:]", validation: "train[:2]"}}
    columns:
      listed: {{from: "options[text]", each: "{{n}}: {{value}}", join: ", "}}
      named: {{from: "options[text]", each: "option{{n}}", join: "/"}}
      question: "{{stem}}? {{listed}}. Pick: {{named}}"
      answer: {{from: "{{key}}", values: {{A: option1, B: option2, C: option3}}}}
splits: {{train: {{from: train}}, validation: {{from: validation}}, test: {{from: test}}}}
prompt: "{{question}} ="
delimiter: " "
choices: {{field: question, after: "Pick: "}}
answer: "{{answer}}"
"""


def load(task: Task, split: str = "train", **more: object) -> list[Item]:
    return load_split(task, split, **{"data_root": None, "max_items": None, "seed": 0, **more})


def test_own_file(tmp_path: Path) -> None:
    task = tickets(tmp_path)
    train, test = load(task), load(task, "test")
    assert len(train) == 16
    assert len(test) == 4
    assert not {i.id for i in train} & {i.id for i in test}
    item = next(i for i in train + test if i.id == "train/3")
    assert item == Item("train/3", "s3: b3", "shipping", 1)
    assert load(task, "test") == test


def test_blank_lines_are_skipped_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    task = tickets(tmp_path)
    path = tmp_path / "tasks" / "tickets.jsonl"
    path.write_text("\ufeff" + path.read_text().replace("\n", "\n\n"), encoding="utf-8")
    assert len(load(task)) == 16


@pytest.mark.parametrize("seed", [0, 1])
def test_fewer_items_are_a_subset_of_more(tmp_path: Path, seed: int) -> None:
    task = tickets(tmp_path, ticket_rows(200))
    few, many = load(task, max_items=10, seed=seed), load(task, max_items=50, seed=seed)
    assert len(few) == 10
    assert {i.id for i in few} < {i.id for i in many}
    assert [i.id for i in few] == sorted((i.id for i in few), key=lambda x: int(x.split("/")[1]))
    assert len(load(task, max_items=1000)) == 196


def test_the_seed_draws_training_items_and_no_others(tmp_path: Path) -> None:
    task = tickets(tmp_path, ticket_rows(200), OWN_TASK.replace("hold_out: 4", "hold_out: 50"))
    assert load(task, max_items=10, seed=0) != load(task, max_items=10, seed=1)
    assert load(task, "test", max_items=10, seed=0) == load(task, "test", max_items=10, seed=1)


def test_two_held_out_splits_and_a_maximum(tmp_path: Path) -> None:
    splits = "validation: {from: train, hold_out: 5}, test: {from: train, hold_out: 4}"
    text = OWN_TASK.replace("train: {from: train},", "train: {from: train, max_rows: 7},")
    task = tickets(tmp_path, text=text.replace("test: {from: train, hold_out: 4}", splits))
    ids = {s: {i.id for i in load(task, s)} for s in ("train", "validation", "test")}
    assert {s: len(i) for s, i in ids.items()} == {"train": 7, "validation": 5, "test": 4}
    assert len(set.union(*ids.values())) == 16
    alone = tickets(tmp_path / "alone")
    assert {i.id for i in load(alone, "test")} == ids["test"], "another held-out split must not move the test split"


def test_rows_to_skip(tmp_path: Path) -> None:
    rows = [*ticket_rows(10), {"subject": "s", "body": "b", "team": -1}]
    task = tickets(tmp_path, rows, OWN_TASK + "skip: {team: -1}\n")
    assert len(load(task)) + len(load(task, "test")) == 10


def test_a_data_root_overrides_the_hub(tmp_path: Path) -> None:
    write_rows(tmp_path / "sst2" / "test.jsonl", [{"text": "fine", "label": 1}])
    assert load(load_task("sst2", []), "test", data_root=tmp_path) == [Item("test/0", "fine", "positive", 1)]


def broken(rows: list[dict], change: dict) -> list[dict]:
    return [*rows[:2], {k: v for k, v in {**rows[2], **change}.items() if v != "gone"}, *rows[3:]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"body": "gone"},
            "jsonl, line 3: there is no column 'body'; columns found: subject, team; the task's 'prompt' needs it",
        ),
        ({"team": "gone"}, "line 3: there is no column 'team'.*the task's 'label' needs it"),
        ({"team": "sales"}, "line 3: the label 'sales' is outside the set. Allowed: billing, shipping"),
        ({"team": 2}, "line 3: the label 2 is outside the set"),
        ({"body": None}, "line 3: 'body' is null"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict, says: str) -> None:
    task = tickets(tmp_path, broken(ticket_rows(), change), OWN_TASK.replace("hold_out: 4", "hold_out: 1"))
    with pytest.raises(UserError, match=says) as caught:
        load(task), load(task, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"), [('{"subject": ', "line 3: not valid JSON"), ("[1, 2]", "line 3: a row must be a JSON object")]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    task = tickets(tmp_path)
    lines = [json.dumps(r) for r in ticket_rows()]
    (tmp_path / "tasks" / "tickets.jsonl").write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(UserError, match=says):
        load(task), load(task, "test")


def test_missing_file(tmp_path: Path) -> None:
    task = own_task(tmp_path)
    for ask in (lambda: load(task), lambda: task_digest(task, data_root=None)):
        with pytest.raises(
            UserError, match=r"reads .*tickets\.jsonl, which does not exist.*relative to the task's file"
        ):
            ask()


def test_empty_file_and_hold_out_of_all(tmp_path: Path) -> None:
    task = tickets(tmp_path, [], OWN_TASK.replace("test: {from: train, hold_out: 4}", "test: {from: test}"))
    with pytest.raises(UserError, match=r"tickets\.jsonl: the train split of task 'tickets' is empty"):
        load(task)
    with pytest.raises(UserError, match="has no file for the source split 'test'; it has train"):
        load(task, "test")
    task = tickets(tmp_path / "other", ticket_rows(4))
    with pytest.raises(UserError, match="the test split of task 'tickets' holds out 4 rows of 4"):
        load(task)


def test_a_split_that_the_task_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no validation split; it has train, test"):
        load(tickets(tmp_path), "validation")


def test_data_root_that_does_not_exist_or_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the data root .*nowhere is not a folder"):
        load(load_task("sst2", []), data_root=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"finds no math10k/train\.jsonl in any data root\. Pass --data-root"):
        load(load_task("math10k-gsm8k", []))


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"'stanfordnlp/snli'.*cannot be downloaded from the Hub.*Pass --data-root DIR"
    ) as caught:
        load(load_task("snli", []), data_root=tmp_path)
    assert "DIR/snli/train.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_with_columns_made_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"stem": f"q{i}", "key": "ABC"[i % 3], "options": {"text": ["x", "y", "z"][: 3 - (i % 3 < 2)]}}
        for i in range(6)
    ]
    folder = tmp_path / "set"
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", rows[2:3])
    task = own_task(tmp_path, HUB_TASK.format(folder=folder), name="listed")
    assert load(task, "test") == [
        Item(
            "test/0",
            "q2? 1: x, 2: y, 3: z. Pick: option1/option2/option3 =",
            " option3",
            2,
            (" option1", " option2", " option3"),
        )
    ]
    assert [i.prompt[:2] for i in load(task, "validation")] == ["q0", "q1"]
    assert [i.prompt[:2] for i in load(task)] == ["q2", "q3", "q4", "q5"]
    rows[3]["key"] = "D"
    write_rows(folder / "train.jsonl", rows)
    with pytest.raises(UserError, match=r"row 1: 'D' is none of the values A, B, C; it is needed for the column"):
        load(task)


def test_the_right_answer_must_be_readable(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "gsm8k" / "test.jsonl", [{"question": "?", "answer": "#### 1"}, {"question": "?", "answer": "no"}]
    )
    with pytest.raises(UserError, match=r"item test/1: the parser 'gsm8k' finds no answer in the right answer ' no'"):
        load(load_task("gsm8k", []), "test", data_root=tmp_path)
    write_rows(tmp_path / "gsm8k" / "train.jsonl", [{"question": "?", "answer": " "}] * 600)
    with pytest.raises(UserError, match="the answer is empty"):
        load(load_task("gsm8k", []), data_root=tmp_path)


def test_digest_follows_what_can_change_an_item_and_nothing_else(tmp_path: Path) -> None:
    def digest(folder: str, text: str = OWN_TASK, rows: list[dict] | None = None) -> str:
        return task_digest(tickets(tmp_path / folder, rows, text), data_root=None)

    base = digest("a")
    assert digest("b") == base, "the place of the files"
    assert digest("c", OWN_TASK.replace("Which team", "What team") + "notes: words\n") == base
    assert digest("d", OWN_TASK.replace("{subject}: ", "{subject} ")) != base
    assert digest("e", OWN_TASK.replace("version: 1", "version: 2")) != base
    assert digest("f", OWN_TASK.replace("hold_out: 4", "hold_out: 5")) != base
    assert digest("g", OWN_TASK.replace("[billing, shipping]", "[shipping, billing]")) != base
    assert digest("h", rows=ticket_rows(21)) != base


def test_digest_sees_a_changed_file_in_the_same_process(tmp_path: Path) -> None:
    task = tickets(tmp_path)
    before = task_digest(task, data_root=None)
    path = tmp_path / "tasks" / "tickets.jsonl"
    path.write_text(path.read_text().replace("b3", "c3"))
    os.utime(path, ns=(1, 1))
    assert task_digest(task, data_root=None) != before


def test_digest_of_a_generated_task_follows_its_items(tmp_path: Path) -> None:
    text = (Path(load_task("strings-compose", []).path)).read_text()
    base = task_digest(load_task("strings-compose", []), data_root=None)

    def digest(old: str, new: str) -> str:
        assert old in text
        return task_digest(own_task(tmp_path, text.replace(old, new), name="strings-compose"), data_root=None)

    assert digest("symbol: X", "symbol: X, length: 6") == base, "a default written out"
    assert digest("symbol: X", "symbol: Y") != base
    assert digest("max_rows: 1000", "max_rows: 900") != base


def test_digest_of_a_hub_task_follows_its_revision(tmp_path: Path) -> None:
    text = load_task("boolq", []).path.read_text()
    pinned = own_task(tmp_path / "a", text, name="boolq")
    moved = own_task(tmp_path / "b", text.replace("revision: 35b2", "revision: 0000"), name="boolq")
    assert task_digest(pinned, data_root=None) == task_digest(load_task("boolq", []), data_root=None)
    assert task_digest(moved, data_root=None) != task_digest(pinned, data_root=None)


def test_contamination_counts_and_names() -> None:
    train = [Item("train/0", "A  cat\nsat.", "x"), Item("train/1", "Dogs bark.", "x")]
    test = [Item("test/0", "a cat sat. ", "y"), Item("test/1", "A cat sat", "y"), Item("test/2", "DOGS bark.", "y")]
    assert contamination(train, test) == ["test/0", "test/2"]


def test_rows_have_the_stated_length_and_no_split_shares_one() -> None:
    params = {"prompt_characters": 40, "answer_characters": 9}
    train, test = generate_filler(params, "train", 50, 0), generate_filler(params, "test", 50, 0)
    assert {(len(i.prompt), len(i.answer)) for i in train + test} == {(40, 9)}
    assert len({i.prompt + i.answer for i in train + test}) == 100
    assert generate_filler(params, "train", 20, 0) == train[:20]


def test_a_row_of_the_definition_is_768_tokens_of_a_skeleton() -> None:
    tokenizer = build_tokenizer(skeleton("skeleton:smollm2-135m"))
    for item in load_split(load_task("filler-768", []), "train", data_root=None, max_items=3, seed=0):
        ids = tokenizer(item.prompt)["input_ids"] + tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        assert len(ids) + 1 == 768  # and the end of sequence


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


sacrebleu = pytest.importorskip("sacrebleu")

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    (" a dog barks at night ", "the dog barked all night long"),
    ("", "something was said"),
]
SCORED = [Scored(f"t/{i}", None, given, f" {right}") for i, (given, right) in enumerate(PAIRS)]


def test_bleu_and_chrf_are_those_of_the_corpus() -> None:
    found = summarise(SCORED, ["bleu", "chrf"])
    given, right = [g.strip() for g, _ in PAIRS], [[r for _, r in PAIRS]]
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(given, right).score)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(given, right).score)
    assert found["bleu"].standard_error is None
    assert summarise(SCORED[:1], ["bleu"])["bleu"].value == pytest.approx(100)


def test_rouge_by_hand() -> None:
    found = summarise(SCORED, ["rouge_1", "rouge_2", "rouge_l"])
    # second pair: of 5 and 6 words "dog", "bark" (stem) and "night" are shared, and one pair of words of 4 and 5
    assert found["rouge_1"].value == pytest.approx((1 + 2 * 0.6 * 0.5 / 1.1 + 0) / 3)
    assert found["rouge_2"].value == pytest.approx((1 + 2 * 0.25 * 0.2 / 0.45 + 0) / 3)
    assert found["rouge_l"].value == found["rouge_1"].value
    assert found["rouge_1"].n == 3
    assert found["rouge_1"].standard_error is not None


def test_only_what_a_task_asks_for_is_computed() -> None:
    assert set(summarise(SCORED)) == {"accuracy", "answer_nll"}
    assert {"rouge_1", "rouge_2", "rouge_l"} <= set(summarise(SCORED, load_task("xsum", []).definition.metrics))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Exception, match=r"need the package sacrebleu.*peft-matrix\[lm-eval\]"):
        overlap.summaries(SCORED, ["bleu"])


def test_bits_per_byte_and_its_error() -> None:
    """Two texts of 4 and 12 bytes; the error by linearisation, worked out by hand."""
    items = [Item("t/0", "", "abcd"), Item("t/1", "", "éé" + "x" * 8)]
    scored = score_texts(items, [-4.0, -8.0], lengths=[2, 6], cut=[False, False])
    found = summarise(scored, ["bits_per_byte", "perplexity"])
    assert found["bits_per_byte"].value == pytest.approx(12 / 16 / math.log(2))
    residuals = [4 - 0.75 * 4, 8 - 0.75 * 12]
    error = math.sqrt(2 / 1 * sum(r * r for r in residuals)) / 16 / math.log(2)
    assert found["bits_per_byte"].standard_error == pytest.approx(error)
    assert found["perplexity"].value == pytest.approx(math.exp(12 / 8))
    assert found["accuracy"].value is None


@pytest.mark.parametrize(
    ("given", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("in the year 1889", "1889", 0.0, 0.5),
        ("red red blue", "red blue blue", 0.0, 2 / 3),  # a word counts as often as in both
        ("blue red", "red blue", 0.0, 1.0),
        ("", "1889", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),  # no word is left of either
        ("theatre", "atre", 0.0, 0.0),  # an article inside a word stays
    ],
)
def test_answers_are_compared_by_their_words(given: str, right: str, exact: float, f1: float) -> None:
    scored = [Scored("i", None, given, right)]
    found = summarise(scored, ["exact_match", "token_f1"])
    assert found["exact_match"].value == exact
    assert found["token_f1"].value == pytest.approx(f1)
    assert "token_f1" not in summarise(scored)


COMPOSE = {"operations": ["reverse", "shift"], "symbol": "X"}


def by_hand(text: str, operations: list[str]) -> str:
    for operation in operations:
        if operation == "reverse":
            text = "".join(reversed(text))
        if operation == "shift":
            text = "".join("abcdefghij"[("abcdefghij".index(c) + 1) % 10] for c in text)
    return text


@pytest.mark.parametrize("operations", [["copy"], ["reverse"], ["shift"], ["reverse", "shift"], ["shift", "shift"]])
def test_strings(operations: list[str]) -> None:
    for item in strings({"operations": operations, "symbol": "Q"}, "test", 200, 0):
        text = item.prompt[1:-1]
        assert item.prompt == f"Q{text}="
        assert len(text) == 6
        assert item.answer == by_hand(text, operations)


def test_the_example_of_the_documentation() -> None:
    assert by_hand("abcdef", ["reverse", "shift"]) == "gfedcb"
    items = strings({**COMPOSE, "length": 2, "alphabet": "ab"}, "train", 2, 0)
    assert {i.prompt: i.answer for i in items}.items() <= {
        "Xaa=": "bb",
        "Xab=": "ab",
        "Xba=": "ba",
        "Xbb=": "aa",
    }.items()


def test_deterministic_and_different_by_seed() -> None:
    assert strings(COMPOSE, "train", 500, 0) == strings(COMPOSE, "train", 500, 0)
    assert strings(COMPOSE, "train", 500, 0) != strings(COMPOSE, "train", 500, 1)
    assert strings(COMPOSE, "train", 500, 0)[:100] == strings(COMPOSE, "train", 100, 0)
    assert [i.id for i in strings(COMPOSE, "test", 3, 0)] == ["test/ibfcjh", "test/idjdfj", "test/cdfbhg"]


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)])
def test_splits_are_disjoint_for_any_seeds(seeds: tuple[int, int, int]) -> None:
    for make, params, sizes in (
        (strings, COMPOSE, (8000, 500, 1000)),
        (addition, {}, (7500, 900, 900)),
    ):
        prompts = [
            {i.prompt for i in make(params, split, n, seed)}
            for split, n, seed in zip(("train", "validation", "test"), sizes, seeds, strict=True)
        ]
        assert tuple(map(len, prompts)) == sizes, "no item twice"
        assert len(set.union(*prompts)) == sum(sizes)


def test_one_tasks_test_strings_are_in_no_other_tasks_training() -> None:
    trained = {i.prompt[1:] for i in strings({"operations": ["copy"], "symbol": "C"}, "train", 8000, 3)}
    assert not trained & {i.prompt[1:] for i in strings(COMPOSE, "test", 1000, 0)}


def test_addition() -> None:
    for item in addition({}, "train", 500, 0):
        left, right = item.prompt[:-1].split("+")
        assert (len(left), len(right), len(item.answer)) == (2, 2, 3)
        assert int(item.answer[::-1]) == int(left) + int(right)
    shifted = {i.prompt: i.answer for i in addition({"offset": 7}, "train", 7500, 0)}
    assert all(int(a[::-1]) == sum(map(int, p[:-1].split("+"))) + 7 for p, a in shifted.items())


def test_shares_are_as_said() -> None:
    splits = [split_of(n) for n in range(20_000)]
    assert abs(splits.count("train") / 20_000 - 0.8) < 0.01
    assert abs(splits.count("test") / 20_000 - 0.1) < 0.01


def test_more_than_there_are() -> None:
    with pytest.raises(UserError, match=r"3 different test items.*gives at most [012]\. Ask for fewer"):
        draw(4, "test", 3, 0)
    with pytest.raises(UserError, match="at most 10000"):
        draw(200_000, "train", 10_001, 0)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"operations": ["reverse"], "symbl": "X"}, "no parameter 'symbl'.*symbol"),
        ({"operations": ["rotate"], "symbol": "X"}, r"parameter 'operations\.0'.*'copy', 'reverse' or 'shift'"),
        ({"operations": [], "symbol": "X"}, "parameter 'operations'"),
        ({**COMPOSE, "alphabet": "aab"}, "parameter 'alphabet': a character occurs twice"),
    ],
)
def test_bad_parameters(params: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        strings(params, "train", 1, 0)


def test_registered() -> None:
    assert GENERATORS.get("strings") is strings
    assert GENERATORS.get("addition") is addition
