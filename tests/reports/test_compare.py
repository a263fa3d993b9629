"""Comparing two configurations through the command line: paired where it can be, and honest where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.store.store import Store
from reports.apps.compare import compare, select
from reports.board.board import Board, build
from tests.reports.making import ENVIRONMENT, cell, filled_store, ok_record


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


def test_a_board_and_compare_print_the_same_interval(tmp_path: Path) -> None:
    store = filled_store(tmp_path)
    board = Board.model_validate(
        {
            "name": "b",
            "title": "B",
            "columns": [{"field": "method"}, {"difference": "accuracy"}],
            "baseline": {"method": "full"},
            "sort": "accuracy",
        }
    )
    (section,) = build(board, store.records()[0], store).sections
    rows = {(r.labels["method"], r.labels["quantization"]): r for r in section.rows}
    shown = rows["ia3", "none"].cells["accuracy.vs_baseline"]
    found = both(store, "nano.ia3.none", "nano.full.none")
    assert (shown.value, shown.low, shown.high) == pytest.approx((found.effect, found.low, found.high), abs=1e-12)


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
    assert "Smallest effect this comparison finds" in done.stdout
    done = subprocess.run([*command, "--results", str(tmp_path), "--json"], capture_output=True, text=True)
    assert {"effect", "low", "high", "p", "mde", "sentence"} <= set(json.loads(done.stdout))
