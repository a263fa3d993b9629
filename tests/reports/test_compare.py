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
from tests.reports.making import cell, filled_store, ok_record


def both(store: Store, a: str, b: str, metric: str = "accuracy"):  # type: ignore[no-untyped-def]  # a short alias
    records, _ = store.records()
    named = {r.id: r for r in records}
    sides = [select(records, text) for text in (a, b)]
    return compare(*sides, metric, lambda i: store.samples(named[i]) if named[i].samples is not None else None)


def test_a_real_difference_is_reported_with_its_interval(tmp_path: Path) -> None:
    store = filled_store(tmp_path)
    found = both(store, "nano.lora.none", "nano.lora-r1.none")
    assert 0.2 < found.low < found.effect < found.high < 0.5
    assert found.p < 0.001
    assert found.n == "200 shared items, 2 and 2 seeds"
    assert "bootstrap" in found.method
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


def test_times_are_compared_as_ratios_over_seeds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in range(4):
        store.append(*ok_record(cell("slow", seed=seed), step_ms=40.0))
        store.append(*ok_record(cell("fast", seed=seed), step_ms=20.0))
    found = both(store, "nano.slow", "nano.fast", "step_ms")
    assert found.effect == pytest.approx(1.0, abs=0.05)
    assert "4 paired seeds: significantly different" in found.sentence


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
