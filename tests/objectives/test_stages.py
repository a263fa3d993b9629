"""Cells of several stages: what a stage hands over, what is shared, and what follows a stage that failed."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harness.errors import CheckFailed, Unsupported
from runners.worker import earlier
from tests.objectives.test_catalogs import PAIRS, by_label, pairs, value  # noqa: F401 - a fixture
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture

LORA = {"name": "lora", "params": {"r": 4}}
SFT_FIRST = {"name": "after sft", "earlier": [{"method": "full", "steps": 20}]}
ON = {"name": "on", "earlier": [{"method": LORA, "steps": 10, "handover": "unmerged"}]}


def stages(record: dict[str, Any]) -> list[str]:
    return [span["stage"] for span in record["spans"]]


@pytest.mark.slow
def test_dpo_starts_from_what_sft_trained(pairs: Bench) -> None:  # noqa: F811
    """Two objectives after one shared first stage, which is trained once and is the reference of DPO."""
    pairs.write(
        stages=["none", SFT_FIRST],
        objectives=[{"name": "dpo", "lr_factor": 1.0}, "orpo"],
        methods=["none", LORA],
    )
    plan = json.loads(pairs("plan", "sweep.yaml", "--json").stdout)
    assert plan["cells"] == 6  # none, two objectives from the model, two after the stage, and the stage
    assert (len(plan["run"]), len(plan["later"])) == (4, 2)
    done = pairs("run", "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    found = by_label(pairs)
    first, dpo = found["full 20 steps"], found["lora+dpo+after sft"]
    assert sorted(found) == [
        "full 20 steps",
        "lora+dpo",
        "lora+dpo+after sft",
        "lora+orpo",
        "lora+orpo+after sft",
        "none",
    ]
    facts = [found[f"lora+{name}+after sft"]["environment"]["facts"]["earlier_stages"] for name in ("dpo", "orpo")]
    assert facts[0] == facts[1]
    assert (facts[0][0]["key"], facts[0][0]["steps"]) == (first["key"], 20)
    # its spans are those of the stage's record, beside its own; what they were scored for is not repeated
    theirs = {s["stage"]: s["seconds"] for s in first["spans"]}
    ours = {s["stage"]: s["seconds"] for s in dpo["spans"]}
    assert ours["earlier 1: train"] == theirs["train"] != ours["train"]
    assert "earlier 1: evaluate" not in ours
    # the base of the second stage is the first one's result: before a step, they score alike
    assert value(dpo, "reference_kl") < value(first, "reference_kl")
    assert value(found["none"], "answer_nll") > value(first, "answer_nll")

    # nothing is trained twice, and a stage whose files are gone is trained again for a new cell alone
    assert json.loads(pairs("plan", "sweep.yaml", "--json").stdout)["run"] == []
    shutil.rmtree(pairs.root / "cache" / "ingredients" / first["key"])
    pairs.write(stages=[SFT_FIRST], objectives=["simpo"], methods=[LORA])
    again = json.loads(pairs("plan", "sweep.yaml", "--json").stdout)
    assert [c["key"] for c in again["run"]] == [first["key"]]
    assert len(again["later"]) == 1


@pytest.mark.slow
def test_an_adapter_is_trained_on(bench: Bench) -> None:  # noqa: F811
    """Unmerged: the second stage begins at the first one's adapter, and a third at the second's."""
    twice = {"name": "twice", "earlier": [ON["earlier"][0], {"method": LORA, "steps": 2, "handover": "unmerged"}]}
    still = {"name": "lora", "params": {"r": 4}, "learning_rate": 1e-30, "label": "still"}
    bench.write(stages=[ON, twice], methods=[still])
    assert bench("run", "sweep.yaml").returncode == 0
    found = by_label(bench)
    first, second, on, third = (
        found[n] for n in ("lora 10 steps", "lora 2 steps+twice, 1 before", "still+on", "still+twice")
    )
    assert second["environment"]["facts"]["earlier_stages"][0]["key"] == first["key"]
    assert "stages" in second["cell"]
    # a stage that moves nothing saves what it was given, so that it scores as the stage before
    assert value(on, "answer_nll") == pytest.approx(value(first, "answer_nll"), rel=1e-5)
    assert value(third, "answer_nll") == pytest.approx(value(second, "answer_nll"), rel=1e-5)
    assert value(second, "answer_nll") != pytest.approx(value(first, "answer_nll"), rel=1e-5)
    assert on["environment"]["facts"]["handover_error_relative"] < 1e-5
    assert [s for s in stages(third) if s.endswith("train")] == ["earlier 1: train", "earlier 2: train", "train"]
    saved = bench.root / "cache" / "ingredients" / first["key"]
    assert load_file(saved / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_failed_stage_is_the_reason_of_the_rest(bench: Bench) -> None:  # noqa: F811
    """The first stage diverges: its record says so, and every cell behind it is recorded with that reason."""
    wild = {"name": "full", "learning_rate": 1e30}
    chain = {"name": "chain", "earlier": [{"method": wild, "steps": 5}, {"method": "lora", "steps": 2}]}
    bench.write(stages=["none", chain], methods=["lora"])
    bench("run", "sweep.yaml")
    found = by_label(bench)
    assert found["lora"]["outcome"]["status"] == "ok"
    failed = found["full 5 steps"]["outcome"]
    assert failed["status"] in ("diverged", "error")
    for label in ("lora 2 steps+chain, 1 before", "lora+chain"):
        assert found[label]["outcome"]["status"] == "unsupported", label
        assert f"ended as {failed['status']}" in found[label]["outcome"]["reason"], label


@pytest.mark.parametrize(
    ("first", "cell", "says"),
    [
        ({"method": "none"}, "lora", "earlier stage 1 (none) does not train"),
        ({"method": "lora", "handover": "unmerged"}, "full", "does not train the same adapter"),
        ({"method": "eva", "handover": "unmerged"}, "eva", "initialised from data"),
        ({"method": "prompt"}, "lora", "cannot be handed over merged"),
        ({"method": "full", "task": "sst2"}, "lora", "trains a sequence-classification model"),
        ({"method": "lora"}, {"name": "soup", "params": {"of": "lora"}}, "have no earlier stages"),
    ],
)
def test_stages_that_do_not_fit(bench: Bench, first: Any, cell: Any, says: str) -> None:  # noqa: F811
    path = bench.write(
        stages=[{"name": "first", "earlier": [first]}],
        methods=["lora", cell] if cell != "lora" else [cell],
        seeds=[0, 1],
    )
    done = bench("plan", str(path), "--json")
    assert done.returncode == 0, done.stderr
    reasons = [one["why"] for one in json.loads(done.stdout)["unsupported"]]
    assert any(says in why for why in reasons), reasons


@pytest.mark.slow
def test_a_model_is_trained_once_and_scored_often(bench: Bench) -> None:  # noqa: F811
    """Two further test sets: each a record with its own items, of the very adapter that was saved."""
    others = ["strings-reverse", "strings-shift"]
    task = {"name": "strings-copy", "train_items": 64, "validation_items": 8, "test_items": 8, "score": others}
    bench.write(tasks=[task], methods=["none", "full"])
    plan = json.loads(bench("plan", "sweep.yaml", "--json").stdout)
    assert (plan["cells"], len(plan["run"]), len(plan["later"])) == (6, 4, 2)
    done = bench("run", "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    records = bench.records()
    assert [r["outcome"]["status"] for r in records] == ["ok"] * 6
    trained = [r for r in records if "train_s" in r["metrics"]]
    scored = [r for r in records if r["cell"].get("stages")]
    assert (len(trained), len(scored)) == (1, 2)
    assert {r["cell"]["task"]["name"] for r in scored} == set(others)
    assert {r["cell"]["method"]["label"] for r in scored} == {"full+trained on strings-copy"}
    for record in scored:
        (stage,) = record["environment"]["facts"]["earlier_stages"]
        assert stage["key"] == trained[0]["key"]
        assert "earlier 1: train" in stages(record)
        base = next(
            r
            for r in records
            if r["cell"]["method"]["name"] == "none" and r["cell"]["task"]["name"] == record["cell"]["task"]["name"]
        )
        assert value(record, "answer_nll") != value(base, "answer_nll")
    # a further test set does not train again, and the key of the trained cell does not know of it
    bench.write(tasks=[{**task, "score": [*others, "strings-compose"]}], methods=["full"])
    again = json.loads(bench("plan", "sweep.yaml", "--json").stdout)
    assert [c["label"].split(".")[-2] for c in again["run"]] == ["strings-compose"]


def test_a_parameter_that_is_not_handed_over_is_seen() -> None:
    torch.manual_seed(0)
    ours, theirs, fewer = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    with pytest.raises(Unsupported, match="saved no bias"):
        earlier.take_over(ours, fewer)
    x = torch.randn(8, 4)
    before = theirs(x)
    with pytest.raises(CheckFailed, match="does not start where"):
        earlier.check_taken_over(before, ours(x))
    earlier.take_over(ours, theirs)
    assert earlier.check_taken_over(before, ours(x)) == 0
