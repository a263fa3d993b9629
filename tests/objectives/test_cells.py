"""Real cells of every objective, in real processes: what they train, what the record says, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture

PAIRS = {"name": "strings-prefer-shift", "train_items": 64, "validation_items": 16, "test_items": 32}


@pytest.fixture
def pairs(bench: Bench) -> Bench:  # noqa: F811 - the fixture of that name
    bench.sweep = {
        **bench.sweep,
        "tasks": [PAIRS],
        "evaluation": {"batch_size": 16, "retention": False, "merged": False},
        "training": {"steps": 30, "batch_size": 8, "learning_rate": 3e-3, "max_length": 32},
        "probes": {"latency_repeats": 0},
    }
    return bench


def by_label(bench: Bench) -> dict[str, dict[str, Any]]:  # noqa: F811
    return {r["cell"]["method"]["label"]: r for r in bench.records()}


def value(record: dict[str, Any], name: str) -> float:
    found = record["metrics"][name]["value"]
    assert found is not None, record["metrics"][name]
    return float(found)


@pytest.mark.slow
def test_every_preference_objective_learns_the_pairs(pairs: Bench) -> None:
    names = ["sft", "dpo", "ipo", "orpo", "kto", "simpo"]
    ours: list[dict[str, Any]] = [{"name": n, **({} if n == "sft" else {"lr_factor": 1.0})} for n in names]
    ours[names.index("orpo")]["params"] = {"beta": 4.0}  # at 0.1 it is mostly supervised
    pairs.write(objectives=ours, methods=["none", "full"])
    done = pairs("run", "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    records = by_label(pairs)
    assert sorted(records) == sorted(["none", "full", *(f"full+{n}" for n in names[1:])])
    base = value(records["none"], "accuracy")
    assert value(records["none"], "reference_kl") == pytest.approx(0, abs=1e-5)
    assert value(records["none"], "reward_margin") == pytest.approx(0, abs=1e-4)
    for name in names[1:]:
        record = records[f"full+{name}"]
        assert record["outcome"]["status"] == "ok", record["outcome"]
        assert value(record, "reward_margin") > 0.05, name
        assert value(record, "reward_accuracy") > 0.5, name
        assert value(record, "accuracy") > base, name
        assert value(record, "reference_kl") > 1e-3, name
        stages = [span["stage"] for span in record["spans"]]
        assert ("targets" in stages) is (name in ("dpo", "ipo", "kto"))
        assert record["environment"]["facts"]["rows"]["n"] == (128 if name == "kto" else 64)
    asked = records["full+dpo"]["environment"]["facts"]["objective"]
    assert asked["calls"]["reference"]["rows"] == 64 or "reference" in asked["from_cache_s"]
