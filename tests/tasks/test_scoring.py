import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from harness.errors import CheckFailed
from tasks.data import load_split
from tasks.scoring import (
    SAMPLE_COLUMNS,
    confusion,
    macro_f1,
    matthews,
    score_choices,
    score_classification,
    score_generation,
    summarise,
)
from tasks.task import Item, Task, load_task

ITEMS = [Item("t/0", "q0", " x #### 10", -1), Item("t/1", "q1", " x #### 20"), Item("t/2", "q2", " x #### 30")]


@pytest.fixture
def gsm8k() -> Task:
    return load_task("gsm8k", [])


def test_generation(gsm8k: Task) -> None:
    scored = score_generation(
        gsm8k,
        ITEMS,
        ["10", "", "#### $30.00"],
        logp_answers=[-1.0, -2.0, -6.0],
        lengths=[1, 0, 9],
        cut=[False, True, False],
    )
    assert [s.correct for s in scored] == [True, False, True]
    assert [s.prediction for s in scored] == ["10", "", "#### $30.00"]
    assert [s.length for s in scored] == [1, 0, 9]
    assert [s.cut for s in scored] == [False, True, False]
    summary = summarise(scored)
    assert summary["accuracy"] == (pytest.approx(2 / 3), 3, pytest.approx(1 / 3))
    assert summary["answer_nll"].value == 3.0
    assert set(scored[0].as_row()) == set(SAMPLE_COLUMNS)


def test_likelihood_alone_says_nothing_about_right_or_wrong(gsm8k: Task) -> None:
    scored = score_generation(gsm8k, ITEMS, None, logp_answers=[-1.0, -2.0, -6.0])
    assert [s.correct for s in scored] == [None] * 3
    assert summarise(scored)["accuracy"] == (None, 0, None)
    assert summarise(scored)["answer_nll"] == (3.0, 3, pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3)))
    summary = score_generation(load_task("samsum", []), ITEMS, ["a", "b", "c"], logp_answers=[-1.0, -2.0, -6.0])
    assert [s.correct for s in summary] == [None] * 3
    assert summary[0].prediction == "a"


def test_lists_of_another_length_are_refused(gsm8k: Task) -> None:
    with pytest.raises(ValueError, match="3 items and 2 generations"):
        score_generation(gsm8k, ITEMS, ["10", "20"])


def test_classification() -> None:
    task = load_task("trec", [])
    items = [Item(f"t/{i}", "q", task.definition.labels[i % 6], i % 6) for i in range(12)]
    logits = np.zeros((12, 6), dtype=np.float32)
    for i, item in enumerate(items):
        logits[i, item.label if i < 9 else (item.label + 1) % 6] = 2.0
    scored = score_classification(task, items, logits)
    assert sum(bool(s.correct) for s in scored) == 9
    right, wrong = scored[0], scored[9]
    log_sum = math.log(math.exp(2) + 5)
    assert right.logp_answer == pytest.approx(2 - log_sum)
    assert right.margin == pytest.approx(2)
    assert wrong.margin == pytest.approx(-2)
    assert wrong.prediction == "LOC"
    assert right.logp_choices is not None
    assert sum(math.exp(v) for v in right.logp_choices) == pytest.approx(1)
    summary = summarise(scored)
    assert summary["accuracy"].value == 0.75
    assert summary["answer_nll"].value == pytest.approx((9 * (log_sum - 2) + 3 * log_sum) / 12)


def test_large_logits_do_not_overflow() -> None:
    scored = score_classification(load_task("sst2", []), [Item("t/0", "q", "positive", 1)], np.array([[-1e4, 1e4]]))
    assert scored[0].logp_answer == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_no_prediction(value: float, gsm8k: Task) -> None:
    items = [Item("t/0", "q", "positive", 1), Item("t/1", "q", "negative", 0)]
    with pytest.raises(CheckFailed, match="finite-scores: 1 of 2 items, t/1 first"):
        score_classification(load_task("sst2", []), items, np.array([[0.0, 1.0], [value, 0.0]]))
    with pytest.raises(CheckFailed, match="finite-scores"):
        score_generation(gsm8k, ITEMS, None, logp_answers=[-1.0, value, -1.0])
    with pytest.raises(CheckFailed, match="finite-scores"):
        score_choices(load_task("boolq", []), [Item("t/0", "q", " a", 0, (" a", " b"))], [[value, 0.0]])


def test_shape_of_logits() -> None:
    with pytest.raises(ValueError, match=r"1 items and 2 classes expected, not \(1, 3\)"):
        score_classification(load_task("sst2", []), [Item("t/0", "q", "positive", 1)], np.zeros((1, 3)))


def test_choices_with_and_without_length() -> None:
    task = load_task("boolq", [])
    assert task.definition.delimiter == " "
    items = [Item("t/0", "q", " é", 1, (" aaaa", " é")), Item("t/1", "q", " b", 0, (" b", " c", " d"))]
    scored = score_choices(
        task, items, [[-5.5, -3.0], [-2.0, -1.0, -9.0]], [[4, 1], [1, 1, 1]], [[False, True], [False] * 3]
    )
    assert [s.correct for s in scored] == [True, False]
    assert scored[0].correct_norm is False, "-5.5 over 4 bytes is more than -3 over the 2 bytes of é"
    assert [s.margin for s in scored] == [2.5, -1.0]
    assert [s.length for s in scored] == [1, 1]
    assert [s.cut for s in scored] == [True, False]
    assert scored[1].prediction == " c"
    assert summarise(scored)["accuracy"].value == 0.5
    assert summarise(scored)["accuracy_norm"].value == 0.0
    with pytest.raises(ValueError, match="item t/1 has 3 options and 2 scores"):
        score_choices(task, items, [[-4.0, -3.0], [-2.0, -1.0]])


def test_macro_f1_and_matthews() -> None:
    # binary: tp 6, fn 2, fp 1, tn 3; MCC = (6*3 - 1*2) / sqrt(7*8*4*5)
    table = np.array([[3, 1], [2, 6]])
    assert matthews(table) == pytest.approx(16 / math.sqrt(7 * 8 * 4 * 5))
    assert macro_f1(table) == pytest.approx((2 * 6 / (12 + 1 + 2) + 2 * 3 / (6 + 2 + 1)) / 2)
    # three classes, against the correlation of the indicator matrices
    table = np.array([[5, 1, 0], [2, 3, 1], [0, 2, 6]])
    right = np.repeat(np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 2]], table.ravel(), axis=0)
    given = np.repeat(np.eye(3)[[0, 1, 2] * 3], table.ravel(), axis=0)
    right, given = right - right.mean(axis=0), given - given.mean(axis=0)
    expected = (right * given).sum() / math.sqrt((right**2).sum() * (given**2).sum())
    assert matthews(table) == pytest.approx(expected)
    assert matthews(np.array([[4, 0], [3, 0]])) is None


def test_a_class_that_is_never_right_counts_in_macro_f1() -> None:
    task = load_task("sst2", [])
    items = [Item("t/0", "q", "negative", 0), Item("t/1", "q", "negative", 0)]
    scored = score_classification(task, items, np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert confusion(scored).tolist() == [[1, 1], [0, 0]]
    assert summarise(scored)["macro_f1"].value == pytest.approx((2 / 3 + 0) / 2)
    assert summarise(scored)["matthews"].value is None


def test_nothing_scored() -> None:
    assert summarise([])["accuracy"] == (None, 0, None)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_an_oracle_that_knows_a_share_of_gsm8k_scores_that_share(share: float, data_root: Path, gsm8k: Task) -> None:
    items = load_split(gsm8k, "test", data_root=data_root, max_items=None, seed=0)
    rows = [json.loads(line) for line in (data_root / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()]
    assert len(items) == len(rows) == 1319
    rng = random.Random(0)
    known = set(rng.sample(range(len(items)), round(share * len(items))))
    styles = ("#### {:,}", "so the answer is ${:,.2f}.", "1 and 2, then {}\n", "x\n#### {}\n\nQuestion: 3+3?\n#### 6")
    texts = []
    for i, row in enumerate(rows):
        right = int(row["answer"].rsplit("#### ", 1)[1].replace(",", ""))
        texts.append(
            rng.choice(styles).format(right) if i in known else rng.choice(["", "no idea", f"#### {right + 1}"])
        )
    scored = score_generation(gsm8k, items, texts)
    assert [i for i, s in enumerate(scored) if s.correct] == sorted(known)
    accuracy = summarise(scored)["accuracy"]
    assert accuracy.value == len(known) / 1319
    assert accuracy.n == 1319
    p = len(known) / 1319
    assert accuracy.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 1318))


@pytest.mark.parametrize("name", ["boolq", "piqa", "siqa", "winogrande", "arc-easy", "arc-challenge", "openbookqa"])
def test_oracle_knowing_a_share_of_choices_scores_it(name: str, data_root: Path) -> None:
    task = load_task(name, [])
    items = load_split(task, "test", data_root=data_root, max_items=None, seed=0)
    rng = random.Random(0)
    known = set(rng.sample(range(len(items)), len(items) // 3))
    logps = []
    for i, item in enumerate(items):
        values = [-5.0 - rng.random() for _ in item.choices]
        at = item.label if i in known else (item.label + 1) % len(values)
        values[at] = -1.0
        logps.append(values)
    scored = score_choices(task, items, logps)
    assert {i for i, s in enumerate(scored) if s.correct} == known
    assert summarise(scored)["accuracy"].value == len(known) / len(items)
