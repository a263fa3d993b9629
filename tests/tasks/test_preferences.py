"""Preference data in the layouts of LLaMA-Factory, TRL and HH; pairs derived from labels; what is wrong in a row."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest

from harness.errors import CheckFailed, UserError
from harness.item import Conversation
from tasks import preferences
from tasks.data import load_split, task_digest
from tasks.preference_scoring import choice_nll, score_judged, score_pairs, summaries
from tasks.scoring import summarise
from tasks.task import Item, Task, TaskDefinition, load_task
from tasks.template import FieldError

ASKED = [{"role": "user", "content": "Why?"}]
LAYOUTS: list[tuple[Any, dict[str, Any]]] = [
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "So."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ),
    ("alpaca", {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."}),
    ("trl", {"prompt": "Why?", "chosen": "So.", "rejected": "No."}),
    (
        "trl",
        {
            "prompt": ASKED,
            "chosen": [{"role": "assistant", "content": "So."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
    ),
    (
        "trl",
        {
            "chosen": [*ASKED, {"role": "assistant", "content": "So."}],
            "rejected": [*ASKED, {"role": "assistant", "content": "No."}],
        },
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
    ),
]


@pytest.mark.parametrize(("layout", "row"), LAYOUTS)
def test_every_layout_gives_the_same_pair(layout: Any, row: dict[str, Any]) -> None:
    found = preferences.read(layout, row)
    assert (found.prompt, found.chosen, found.rejected, found.good) == ("Why?", "So.", "No.", None)


@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_a_judged_answer_of_llama_factory(column: str) -> None:
    row = {"messages": [*ASKED, {"role": "assistant", "content": "So."}], column: False}
    found = preferences.read("sharegpt", row)
    assert (found.prompt, found.chosen, found.rejected, found.good) == ("Why?", "So.", None, False)


def test_a_judged_answer_of_trl() -> None:
    found = preferences.read("trl", {"prompt": "Why?", "completion": "So.", "label": True})
    assert (found.chosen, found.good) == ("So.", True)


def test_a_longer_conversation_keeps_its_roles() -> None:
    text = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And\n\nthen?\n\nAssistant:"
    found = preferences.read("hh", {"chosen": text + " Good.", "rejected": text + " Bad."})
    assert found.turns[-1] == ("Human", "And\n\nthen?")
    assert found.prompt == text


@pytest.mark.parametrize(
    ("layout", "row", "says"),
    [
        ("trl", {"prompt": "a", "chosen": "b", "rejected": "b"}, "the same text"),
        ("trl", {"prompt": "a", "chosen": "b", "rejected": " \n"}, "rejected answer is empty"),
        ("trl", {"prompt": "a", "chosen": "b"}, "no column 'rejected'"),
        ("trl", {"chosen": "b", "rejected": "c"}, "without a column 'prompt'"),
        ("hh", {"chosen": "b", "rejected": "c"}, "a dialogue reads"),
        (
            "hh",
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"},
            "differ before their last answer",
        ),
        ("sharegpt", {"conversations": [{"from": "robot", "value": "a"}], "chosen": {}, "rejected": {}}, "a turn has"),
        ("sharegpt", {"messages": ASKED, "label": True}, "the last turn must be"),
        ("trl", {"prompt": "a", "completion": "b", "label": 1}, "true (good) or false"),
    ],
)
def test_what_is_wrong_in_a_row(layout: Any, row: dict[str, Any], says: str) -> None:
    with pytest.raises(FieldError, match=says.replace("(", r"\(").replace(")", r"\)")):
        preferences.read(layout, row)


def task_of(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Task:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    definition = {
        "name": "mine",
        "version": 1,
        "summary": "Made by a test.",
        "kind": "preference",
        "licence": "none",
        "source": {"files": {"all": "rows.jsonl"}},
        "splits": {"train": {"from": "all"}, "test": {"from": "all", "hold_out": 1}},
        "prompt": "{prompt}\n",
        "layout": "trl",
        **more,
    }
    return Task(TaskDefinition.model_validate(definition), folder / "mine.yaml")


def test_a_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    task = task_of(tmp_path, [good, good, {**good, "rejected": "b"}], splits=TRAIN_ALL)
    with pytest.raises(UserError, match=r"rows.jsonl, line 3.*the same text.*layout 'trl'"):
        load_split(task, "train", data_root=None, max_items=None, seed=0)


TRAIN_ALL = {
    "train": {"from": "all"},
    "test": {"from": "all", "source": {"files": {"all": "rows.jsonl"}, "data_root": "x"}},
}


def test_judged_rows_need_a_task_that_says_so(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": True}
    with pytest.raises(UserError, match="does not say 'judged'"):
        load_split(task_of(tmp_path, [row, row]), "train", data_root=None, max_items=None, seed=0)
    items = load_split(task_of(tmp_path, [row, row], judged=True), "train", data_root=None, max_items=None, seed=0)
    assert items[0].good is True


def test_options_give_right_against_wrong(tmp_path: Path) -> None:
    rows = [{"q": f"q{i}", "o": ["x", "y", "z"], "a": i % 3} for i in range(30)]
    task = task_of(tmp_path, rows, layout="options", prompt="{q}", choices="o", label="a", delimiter=" ")
    items = load_split(task, "train", data_root=None, max_items=None, seed=0)
    assert all(item.answer != item.rejected and item.rejected in (" x", " y", " z") for item in items)
    assert len({(i.answer, i.rejected) for i in items}) == 6, "every wrong option is drawn now and then"
    assert items == load_split(task, "train", data_root=None, max_items=None, seed=0)


def test_the_library_s_data_are_read_as_they_are(data_root: Path) -> None:
    for name, judged in (("preference-dpo-en", False), ("preference-kto-en", True)):
        task = load_task(name, [])
        items = load_split(task, "train", data_root=data_root, max_items=None, seed=0)
        assert len(items) == 200
        assert all((item.good is not None) is judged for item in items)
        assert all(bool(item.rejected) is not judged for item in items)


def test_generated_pairs_differ_and_change_the_digest() -> None:
    task = load_task("strings-prefer-shift", [])
    items = load_split(task, "test", data_root=None, max_items=50, seed=0)
    assert all(item.answer != item.rejected for item in items)
    other = task.definition.source.model_copy(
        update={"params": {**task.definition.source.params, "rejected": ["reverse"]}}
    )
    changed = Task(task.definition.model_copy(update={"source": other}), task.path)
    assert task_digest(task, data_root=None) != task_digest(changed, data_root=None)


ITEMS = [Item(f"i{n}", "p", "good", rejected="bad") for n in range(4)]


def test_pairs_are_scored_by_hand() -> None:
    logps = [(-1.0, -2.0), (-3.0, -2.0), (-4.0, -8.0), (-2.0, -2.0)]
    lengths = [(1, 2), (6, 2), (2, 8), (2, 2)]
    reference = [(-2.0, -2.0), (-3.0, -3.0), (-4.0, -8.0), (-3.0, -2.0)]
    scored = score_pairs(ITEMS, logps, lengths, [False] * 4, reference)
    found = summarise(scored, ("accuracy", "accuracy_norm", "answer_nll"))
    assert [s.correct for s in scored] == [True, False, True, False], "equal ones are not right"
    assert found["accuracy"].value == 0.5
    assert found["accuracy_norm"].value == pytest.approx(1 / 4), "-1/1 < -2/2? equal; -3/6 > -2/2; -2 < -1; equal"
    assert found["answer_nll"].value == pytest.approx(2.5)
    # margins 1, -1, 4, 0 less the reference's 0, 0, 4, -1
    assert found["reward_margin"].value == pytest.approx((1 - 1 + 0 + 1) / 4)
    assert found["reward_accuracy"].value == pytest.approx(2 / 4)
    # the chosen one is shorter, longer, shorter; preferred are shorter, shorter, shorter
    assert found["length_bias"].value == pytest.approx(0 / 3 - 1 / 3)
    assert found["length_bias"].n == 3


def test_without_a_reference_there_is_no_reward() -> None:
    scored = score_pairs(ITEMS[:1], [(-1.0, -2.0)], [(1, 1)], [False])
    assert set(summaries(scored)) == {"length_bias"}
    assert choice_nll(scored) == pytest.approx(0.3132617, abs=1e-6)


def test_judged_answers_are_right_where_likelihood_moved_right() -> None:
    items = [Item("a", "p", "x", good=True), Item("b", "p", "x", good=False), Item("c", "p", "x", good=False)]
    scored = score_judged(items, [-1.0, -5.0, -1.0], [1, 1, 1], [False] * 3, [-2.0, -2.0, -2.0])
    assert [s.correct for s in scored] == [True, True, False]
    assert summaries(scored)["reward_margin"].value == pytest.approx((1 + 3 - 1) / 3)
    base = score_judged(items, [-1.0, -5.0, -1.0], [1, 1, 1], [False] * 3, None)
    assert [s.correct for s in base] == [None] * 3


def test_a_log_probability_that_is_not_finite_fails() -> None:
    with pytest.raises(CheckFailed, match="finite-scores"):
        score_pairs(ITEMS[:1], [(float("nan"), -2.0)], [(1, 1)], [False])


# --- conversations -------------------------------------------------------------------------------
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]} for m in MESSAGES
]


def conversation(tmp_path: Path, *rows: object) -> list[Item]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"talk": row}) + "\n" for row in rows))
    content = {
        "name": "talks",
        "version": 1,
        "summary": "s",
        "kind": "generation",
        "licence": "own",
        "source": {"files": {"train": "rows.jsonl", "test": "rows.jsonl"}},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        "conversation": "talk",
    }
    return load_split(
        Task(TaskDefinition.model_validate(content), tmp_path / "talks.yaml"),
        "train",
        data_root=None,
        max_items=None,
        seed=0,
    )


def test_messages_and_sharegpt_are_the_same_conversation(tmp_path: Path) -> None:
    one, other = conversation(tmp_path, MESSAGES, SHAREGPT)
    assert isinstance(one.prompt, Conversation)
    assert isinstance(other.prompt, Conversation)
    assert one.prompt.turns == other.prompt.turns
    assert one.prompt.turns == tuple((m["role"], m["content"]) for m in MESSAGES[:-1])
    assert (one.answer, other.answer) == ("See you", "See you")
    assert one.prompt == "\n\nSystem: Be short.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    assert pickle.loads(pickle.dumps(one.prompt)).turns == one.prompt.turns
    (single,) = conversation(tmp_path, MESSAGES[1:3])
    assert single.prompt == "Hi"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (MESSAGES[:4], "last turn"),
        (MESSAGES[4:], "no question"),
        ([], "last turn"),
        ("Hi", "list of turns"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "empty"),
        ([{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}], "'role' of human"),
        ([{"from": "human", "value": "a"}, {"role": "assistant", "content": "b"}], "'from' of human"),
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "b"}], "text in 'content'"),
        ([{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "b"}], "half of a character"),
    ],
)
def test_a_bad_conversation_is_named_with_its_line(tmp_path: Path, row: object, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        conversation(tmp_path, MESSAGES, row)
    assert "line 2" in str(error.value)


# --- questions and answers in the forms people have them in ------------------------------------------
def asked(
    tmp_path: Path, text: str, name: str = "rows.jsonl", split: Literal["train", "test"] = "train", **more: object
) -> list[Item]:
    """Items of a generation task whose rows are ``text``; ``more`` overrides the definition."""
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    content = {
        "name": "own",
        "version": 1,
        "summary": "s",
        "kind": "generation",
        "licence": "own",
        "source": {"files": {"train": name, "test": name}},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        **more,
    }
    made = Task(TaskDefinition.model_validate(content), tmp_path / "own.yaml")
    return load_split(made, split, data_root=None, max_items=None, seed=0)


QUESTION = {"prompt": "{q}=", "answer": "{a}"}
FORMS: dict[str, tuple[str, object]] = {
    "messages": ("sharegpt", {"messages": MESSAGES[1:3]}),
    "sharegpt": ("sharegpt", {"conversations": SHAREGPT[1:3]}),
    "alpaca": ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}),
    "alpaca_system": ("alpaca", {"system": "Be short.", "instruction": "Hi", "input": "You", "output": "Hello"}),
    "prompt_completion": ("trl", {"prompt": "Hi", "completion": "Hello"}),
    "prompt_completion_turns": ("trl", {"prompt": MESSAGES[1:2], "completion": MESSAGES[2:3]}),
    "trl_messages": ("trl", {"messages": MESSAGES[1:3]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_layout_gives_the_question_and_the_answer(form: str, tmp_path: Path) -> None:
    layout, row = FORMS[form]
    (item,) = asked(tmp_path, json.dumps(row) + "\n", layout=layout)
    assert item.answer == "Hello"
    assert isinstance(item.prompt, Conversation)
    assert item.prompt.turns[-1] == ("user", "Hi\nYou" if form == "alpaca_system" else "Hi")
    assert item.prompt == ("\n\nSystem: Be short.\n\nHuman: Hi\nYou\n\nAssistant:" if "system" in form else "Hi")
    (framed,) = asked(tmp_path, json.dumps(row) + "\n", layout=layout, prompt="Q: {prompt}\n", delimiter="A: ")
    assert framed.prompt.startswith("Q: ")
    assert framed.answer == "A: Hello"


def test_the_history_of_an_alpaca_row_is_part_of_the_prompt(tmp_path: Path) -> None:
    row = {"instruction": "Bye", "output": "See you", "history": [["Hi", "Hello"]]}
    (item,) = asked(tmp_path, json.dumps([row]), "rows.json", layout="alpaca")
    assert isinstance(item.prompt, Conversation)
    assert item.prompt.turns == (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    with pytest.raises(UserError, match="item 0: column 'history' holds pairs"):
        asked(tmp_path, json.dumps([{**row, "history": ["Hi"]}]), "rows.json", layout="alpaca")


def test_every_kind_of_file_gives_the_same_items(tmp_path: Path) -> None:
    import pandas as pd

    rows = [{"q": 'a,"b"', "a": "x\ny"}, {"q": "é", "a": "12"}]
    frame = pd.DataFrame(rows)
    texts = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "rows.json": json.dumps(rows, indent=1),
        "rows.csv": "\ufeff" + frame.to_csv(index=False, lineterminator="\r\n"),
        "rows.tsv": frame.to_csv(index=False, sep="\t"),
    }
    found = {name: asked(tmp_path, text, name, **QUESTION) for name, text in texts.items()}
    frame.assign(when=pd.Timestamp("2026-01-01"), no=[1.0, float("nan")]).to_parquet(tmp_path / "made.parquet")
    parquet = {"source": {"files": {"train": "made.parquet", "test": "made.parquet"}}}
    found["made.parquet"] = asked(tmp_path, "", **QUESTION, **parquet)
    for name, items in found.items():
        assert [(i.prompt, i.answer) for i in items] == [('a,"b"=', "x\ny"), ("é=", "12")], name
    for field, says in (("when", "holds a date"), ("no", "row 1: 'no' is null")):
        with pytest.raises(UserError, match=says):
            asked(tmp_path, "", prompt="{q}", answer=f"{{{field}}}", **parquet)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.csv", "q,a\n1,2,3\n", "line 2: a row of 3 fields under 2 column names"),
        ("rows.csv", "q,a\n1\n", "line 2: a row of 1 fields"),
        ("rows.csv", "q,q\n1,2\n", "line 1: the first line must name every column once"),
        ("rows.csv", "", "must name every column once"),
        ("rows.csv", 'q,a\n1,"2\n', "not valid CSV"),
        ("rows.csv", "q,a\n", "the train split of task 'own' is empty"),
        ("rows.json", "[1]", "item 0: a row must be a JSON object"),
        ("rows.json", "[{]", "not readable JSON"),
        ("rows.parquet", "PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_faulty_file_of_rows_is_one_sentence(name: str, text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        asked(tmp_path, text, name, **QUESTION)
    assert says in str(error.value)
    assert name in str(error.value) or "own" in str(error.value)


def test_columns_of_a_file_are_mapped(tmp_path: Path) -> None:
    text = "Frage,Klasse\nwarum,1\nwie,0\n"
    source = {
        "files": {"train": "rows.csv", "test": "rows.csv"},
        "columns": {"q": "{Frage}", "kind": {"from": "{Klasse}", "values": {"0": "no", "1": "yes"}}},
    }
    classes = {"kind": "sequence-classification", "prompt": "{q}?", "label": "kind", "labels": ["no", "yes"]}
    items = asked(tmp_path, text, "rows.csv", source=source, **classes)
    assert [(i.prompt, i.label) for i in items] == [("warum?", 1), ("wie?", 0)]
    plain = {**source, "columns": {"q": "{Frage}"}}
    with pytest.raises(UserError, match=r"label '1' is outside the set\. Text is a name.*'source.columns'"):
        asked(tmp_path, text, "rows.csv", source=plain, **{**classes, "label": "Klasse"})
    digests = set()
    for made in (source, plain):
        definition = {"name": "own", "version": 1, "summary": "s", "licence": "own", "source": made, **classes}
        definition["splits"] = {"train": {"from": "train"}, "test": {"from": "test"}}
        digests.add(task_digest(Task(TaskDefinition.model_validate(definition), tmp_path / "o.yaml"), data_root=None))
    assert len(digests) == 2, "another mapping is other data"


def test_one_field_is_trained_on_and_another_scored(tmp_path: Path) -> None:
    text = json.dumps({"q": "2+3", "work": "2 and 3 make 5. #### 5", "result": "5"}) + "\n"
    fields = {"prompt": "{q}=", "answer": "{result}", "train_answer": "{work}"}
    (train,) = asked(tmp_path, text, **fields)
    (test,) = asked(tmp_path, text, split="test", **fields)
    assert (train.answer, test.answer) == ("2 and 3 make 5. #### 5", "5")
    with pytest.raises(ValueError, match="'train_answer' is written beside the 'answer'"):
        asked(tmp_path, text, layout="alpaca", train_answer="{work}")
    with pytest.raises(ValueError, match="a generation task has the layout sharegpt, alpaca, trl"):
        asked(tmp_path, text, layout="hh")
