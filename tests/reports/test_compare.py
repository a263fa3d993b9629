"""Comparing two configurations through the command line: paired where it can be, and honest where it cannot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from harness.comparability import differences
from harness.errors import UserError
from harness.store.store import Store
from reports.apps.compare import compare, select
from reports.apps.regressions import analyze
from reports.apps.reproduction.claims import Criterion
from reports.apps.reproduction.judging import judge
from reports.apps.reproduction.run import library
from reports.apps.site.boarddata import pairs_data
from reports.board.board import Board, build, load_board
from reports.data.samples import indexed_samples
from tests.reports.making import ENVIRONMENT, cell, filled_store, key_of, ok_record


def both(store: Store, a: str, b: str, metric: str = "accuracy"):  # type: ignore[no-untyped-def]  # a short alias
    records, _ = store.records()
    named = {r.id: r for r in records}
    sides = [select(records, text) for text in (a, b)]
    source = lambda i: store.samples(named[i]) if named[i].samples is not None else None  # noqa: E731
    return compare(*sides, metric, source, records=records)


def test_a_real_difference_is_reported_with_its_interval(tmp_path: Path) -> None:
    store = filled_store(tmp_path)
    found = both(store, "nano.lora.none", "nano.lora-r1.none")
    assert 0.2 < found.low < found.effect < found.high < 0.5
    assert found.p < 0.001
    assert found.n == "200 shared items, 2 and 2 seeds"
    assert found.method == "items and seeds, seed variance estimated over 22 rows"
    assert found.warnings == ()
    back = both(store, "nano.lora-r1.none", "nano.lora.none")
    assert back.effect == pytest.approx(-found.effect)


def test_the_site_has_the_tests_of_compare(tmp_path: Path) -> None:
    store = filled_store(tmp_path)
    records, _ = store.records()
    own = [(record.id, record) for record in records if record.sweep == "quickstart"]
    table = build(load_board("default", []), [record for _, record in own], store)
    (section,) = table.sections
    (found,) = pairs_data(table, own, indexed_samples(store, records))
    assert set(found) >= {"accuracy", "merged_accuracy"}
    names = {row.config: table.records[row.records[0]].label.rpartition(".s")[0] for row in section.rows}
    for column, of in found.items():
        pairs = list(combinations(of["rows"], 2))
        assert len(pairs) == len(of["tests"]) > 100
        tested = [(pair, test) for pair, test in zip(pairs, of["tests"], strict=True) if test is not None]
        assert tested
        for (a, b), (effect, low, high, p, mde, checkpoint) in tested[:: len(tested) // 6]:
            printed = both(store, names[a], names[b], column)
            assert (effect, low, high) == pytest.approx((printed.effect, printed.low, printed.high), rel=1e-4, abs=1e-9)
            assert p == pytest.approx(printed.p, rel=1e-4)
            assert mde == pytest.approx(printed.mde, rel=1e-4)
            assert bool(checkpoint) == ("checkpoints only" in printed.method)


def of_method(method: str, seed: int = 0, *, model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A cell whose method has these settings."""
    made = cell(method, seed=seed, model=model or {})
    return {**made, "method": {**made["method"], **changes}}


def test_another_budget_is_named_and_namesakes_have_keys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in (0, 1):
        for steps, day in ((12, 26), (13, 27)):
            made = ok_record(of_method("lora", seed, steps=steps), finished=f"2026-11-{day}T10:00:00+00:00")
            store.append(*made)
        store.append(*ok_record(of_method("full", seed, steps=13, params={"a": 1})))
    with pytest.raises(UserError) as error:
        both(store, "nano.lora", "nano.full")
    told = re.search(
        r"are called 'nano.lora.*': (\w+) \(the newest, 2026-11-27\); (\w+) \(steps 12 instead of 13\)\.",
        str(error.value),
    )
    assert told is not None, str(error.value)
    newest, older = told.groups()
    found = both(store, older, "nano.full")
    assert found.n == "200 shared items, 2 and 2 seeds", "a key names its configuration with all seeds"
    assert found.differ == ("steps 12 against 13",)
    assert found.sentence.endswith("Different budgets: steps 12 against 13.")
    same = both(store, older, newest)
    assert same.a.endswith(f"({older})")
    assert (same.differ, same.warnings) == (("steps 12 against 13",), ())
    assert both(store, newest, "nano.full").differ == ()


def test_settings_that_differ_are_named_with_the_budget_first() -> None:
    weights = {"digest": "a" * 64}
    a = of_method("lora", params={"r": 8, "targets": ["q", "v"]}, model=weights)
    b = of_method("lora", 1, params={"r": 64, "targets": ["q"]}, learning_rate=2e-4, model={"digest": "b" * 64})
    b["training"] = {**b["training"], "batch_size": 8, "adam_betas": [0.9, 0.95]}
    assert [d.words() for d in differences(a, b)] == [
        "batch_size 16 against 8",
        "learning_rate 0.001 against 0.0002",
        "model.digest aaaaaaaaaaaa... against bbbbbbbbbbbb...",
        "method.params.r 8 against 64",
        "method.params.targets q v against q",
        "training.adam_betas none against 0.9 0.95",
    ]
    assert differences(a, of_method("full", params={"x": 1}, model=weights)) == []
    assert differences(cell("none"), of_method("lora", steps=9)) == [], "what does not train has no budget"


def test_what_cannot_be_paired_or_repeated_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(*ok_record(cell("a", seed=0), accuracy=0.8))
    store.append(ok_record(cell("b", seed=0), accuracy=0.6, with_samples=False)[0])
    store.append(*ok_record(cell("c", seed=0), accuracy=0.7, environment={"imported": {"tool": "x"}}))
    found = both(store, "nano.a", "nano.b")
    assert "unpaired: not the same items" in found.warnings
    assert any("one seed" in w for w in found.warnings)
    assert any("imported" in w for w in both(store, "nano.a", "nano.c").warnings)
    time = both(store, "nano.a", "nano.c", "step_ms")
    assert (time.low, time.p) == (None, None)
    assert "no interval" in time.sentence


@pytest.mark.parametrize("blocks", [True, False])
def test_times_are_compared_within_blocks_only(tmp_path: Path, blocks: bool) -> None:
    store = Store(tmp_path)
    for seed in range(4):
        order = {"order": {"run": "r", "block": seed, "position": 0, "size": 2}} if blocks else {}
        load = 1 + seed  # of the machine: it falls on both cells of a block
        for method, ms in (("slow", 40.0), ("fast", 20.0)):
            environment = {**ENVIRONMENT, **order}
            store.append(*ok_record(cell(method, seed=seed), step_ms=ms * load, environment=environment))
    found = both(store, "nano.slow", "nano.fast", "step_ms")
    assert found.effect == pytest.approx(1.0, abs=0.05)
    if blocks:
        assert 0.9 < found.low < found.high < 1.1
        assert "4 shared blocks: significantly different" in found.sentence
    else:
        assert (found.low, found.p) == (None, None)
        assert "not run in randomised blocks" in found.sentence


@pytest.mark.parametrize("twin", [1.02, 1.5])
def test_a_difference_within_the_identical_arms_is_none(tmp_path: Path, twin: float) -> None:
    store = Store(tmp_path)
    for replicate in range(5):
        again = {"role": "timing", "replicate": replicate} if replicate else {}
        order = {"order": {"run": "r", "block": replicate, "position": 0, "size": 3}}
        load = 1 + replicate
        for method, ms, more in (
            ("slow", 22.0, again),
            ("fast", 20.0, again),
            ("fast", 20.0 * twin, {**again, "role": "timing", "arm": "identical"}),
        ):
            environment = {**ENVIRONMENT, **order}
            store.append(*ok_record(cell(method, **more), step_ms=ms * load, environment=environment))
    found = both(store, "nano.slow", "nano.fast", "step_ms")
    assert found.effect == pytest.approx(0.10, abs=0.03)
    assert found.n == "5 shared blocks", "one seed, and the runs that repeat it"
    assert ("not significantly" not in found.sentence) == (twin < 1.1)
    assert (found.low > 0) == (twin < 1.1) == (found.p < 0.05)
    assert found.mde >= twin - 1.03
    assert "Two identical arms differ by up to" in found.sentence


# --- one question, one interval --------------------------------------------------------------------
def on_a_board(store: Store, a: str, b: str, metric: str) -> Any:
    board = Board.model_validate(
        {
            "name": "b",
            "title": "B",
            "columns": [{"field": "method"}, {"difference": metric}],
            "baseline": {"method": b},
            "sort": "accuracy",
        }
    )
    (section,) = build(board, store.records()[0], store).sections
    (row,) = [r for r in section.rows if (r.labels["method"], r.labels["quantization"]) == (a, "none")]
    return row.cells[f"{metric}.vs_baseline"]


def judged(store: Store, a: str, b: str, metric: str, unit: str = "absolute") -> Any:
    evidence = {
        "sweep": "quickstart",
        "arm": {"method": a, "quantization": "none"},
        "baseline": {"method": b, "quantization": "none"},
    }
    test = Criterion.model_validate({"metric": metric, "form": "order", "unit": unit, "evidence": evidence})
    return judge(test, library([store.root])).measured


def ends(found: Any) -> tuple[float, float, float]:
    value = next(getattr(found, name) for name in ("effect", "value") if hasattr(found, name))
    return (value, found.low, found.high)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("items", [True, False], ids=["items", "no items"])
def test_board_compare_and_reproduce_give_one_interval(seeds: int, items: bool, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in range(seeds):
        for method, rate in (("a", 0.8), ("b", 0.6), ("c", 0.7)):
            record, data = ok_record(cell(method, seed=seed), accuracy=rate + 0.01 * seed, with_samples=items)
            store.append(record, data)
    for metric in ("accuracy", "retained_accuracy"):
        found = both(store, "nano.a.", "nano.b.", metric)
        assert found.low < found.effect < found.high
        assert ends(found) == ends(on_a_board(store, "a", "b", metric)) == ends(judged(store, "a", "b", metric))
    time = both(store, "nano.a.", "nano.b.", "step_ms")
    assert (time.low, on_a_board(store, "a", "b", "step_ms").low, judged(store, "a", "b", "step_ms").low) == (None,) * 3


def moved(store: Store, items: bool) -> None:
    """A cell whose second night scores as ``after`` does, and its first as ``before``."""
    for method, rate, finished in (("before", 0.8, "2026-01-01"), ("after", 0.6, "2026-01-02")):
        record, data = ok_record(cell(method), accuracy=rate, with_samples=items)
        store.append(record, data)
        of = cell("m")
        again = {"key": key_of(of), "label": "nano.m.none.reverse.s0", "cell": of}
        store.append(record.model_copy(update={**again, "finished": f"{finished}T00:00:00+00:00"}), data)


@pytest.mark.parametrize("items", [True, False], ids=["items", "no items"])
def test_all_four_answer_one_question_with_one_interval(items: bool, tmp_path: Path) -> None:
    store = Store(tmp_path)
    moved(store, items)
    found = both(store, "nano.after.", "nano.before.")
    assert found.high < 0
    (night,) = [f for f in analyze.look(str(tmp_path)).cells if f.metric == "accuracy"]
    board, claim = on_a_board(store, "after", "before", "accuracy"), judged(store, "after", "before", "accuracy")
    assert ends(found) == ends(board) == ends(claim) == ends(night)
    assert night.as_json()["interval"] == [found.low, found.high]


def test_a_ratio_of_accuracies_has_the_errors_of_the_difference(tmp_path: Path) -> None:
    store = filled_store(tmp_path)
    ratio, difference = (judged(store, "lora", "full", "accuracy", unit) for unit in ("ratio", "absolute"))
    assert ratio.n == difference.n == "200 shared items, 2 and 2 seeds"
    # the two are nearly equal and near one, where log(a / b) is a - b over their size
    assert ratio.se == pytest.approx(difference.se / 0.96, rel=0.1)
    assert ratio.low < 1 < ratio.high
    assert (difference.low < 0 < difference.high) == (ratio.low < 1 < ratio.high)


def test_seeds_without_items_are_not_added_up_as_items(tmp_path: Path) -> None:
    """Three seeds that differ by thirty points: 600 items are no 600 independent answers."""
    store = Store(tmp_path)
    for seed, rates in enumerate(((0.9, 0.6), (0.6, 0.7), (0.75, 0.4))):
        for method, rate in zip("ab", rates, strict=True):
            store.append(ok_record(cell(method, seed=seed), accuracy=rate, with_samples=False)[0])
    found = both(store, "nano.a.", "nano.b.")
    assert (found.n, found.method) == ("3 paired seeds", "paired t over seeds")
    assert found.low < 0 < found.high


def test_one_arm_has_the_interval_of_its_row(tmp_path: Path) -> None:
    store = filled_store(tmp_path)
    value = {"form": "absolute", "value": 0.9, "tolerance": {"value": 0.1, "why": "why"}, "unit": "absolute"}
    arm = {"sweep": "quickstart", "arm": {"method": "lora", "quantization": "none"}}
    test = Criterion.model_validate({"metric": "accuracy", "evidence": arm, **value})
    board = Board.model_validate({"name": "b", "title": "B", "columns": [{"metric": "accuracy"}], "sort": "accuracy"})
    (section,) = build(board, store.records()[0], store).sections
    (row,) = [r for r in section.rows if (r.labels["method"], r.labels["quantization"]) == ("lora", "none")]
    assert ends(judge(test, library([store.root])).measured) == ends(row.cells["accuracy"])


def test_names_that_fit_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    records, _ = filled_store(tmp_path).records()
    with pytest.raises(UserError, match="no finished cell matches"):
        select(records, "nano.qlora")
    with pytest.raises(UserError, match=r"configurations match 'nano\.lora'"):
        select(records, "nano.lora")


def test_the_verb(tmp_path: Path) -> None:
    filled_store(tmp_path)
    command = [sys.executable, "-m", "peft_matrix.cli", "compare", "nano.lora.none", "nano.ia3.none"]
    done = subprocess.run([*command, "--results", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Smallest effect") == 1
    done = subprocess.run([*command, "--results", str(tmp_path), "--json"], capture_output=True, text=True)
    assert {"effect", "low", "high", "p", "mde", "sentence"} <= set(json.loads(done.stdout))
