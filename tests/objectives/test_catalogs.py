"""The pages of objectives and recipes, what their declarations promise, and cells of several stages.

Of stages: what one hands over, what cells share, and the records behind a stage that failed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harness import matrix
from harness.errors import CheckFailed, Unsupported, UserError
from harness.methods.catalog import METHODS
from harness.objectives import base as objectives
from harness.objectives.catalog import OBJECTIVES
from harness.recipes import base as recipes
from harness.recipes.catalog import RECIPES
from harness.store.store import Store
from reports.data.derived import continual
from reports.data.timing import value_of
from runners.worker import earlier
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture

LORA, MEZO = METHODS.get("lora"), METHODS.get("mezo")


def test_listing_imports_no_model_library() -> None:
    code = (
        "import sys\n"
        "from harness.objectives.catalog import rows as a\n"
        "from harness.recipes.catalog import rows as b\n"
        "assert len(a()) >= 8 and len(b()) >= 15\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("registry", [OBJECTIVES, RECIPES])
def test_declarations_are_whole(registry: Any) -> None:
    for name in registry:
        d = registry.get(name).declaration
        assert d.name == name
        assert d.summary.endswith(".")
        assert registry.get(name).resolve({"tasks": {"a": 1}} if name == "mixture" else {}) is not None
        with pytest.raises(UserError, match="no parameter 'nonsense'"):
            registry.get(name).resolve({"nonsense": 1})


def test_the_defaults_are_those_no_key_knows_of() -> None:
    later = {"objective": objectives.DEFAULT, "recipe": recipes.DEFAULT, "stages": "none"}
    later |= {"variant": "plain", "parallel": "none"}
    assert later == matrix.DEFAULTS


@pytest.mark.parametrize(
    ("name", "kind", "task_kind", "method", "other", "says"),
    [
        ("dpo", "causal-lm", "generation", LORA, {}, "needs chosen and rejected"),
        ("dpo", "sequence-classification", "sequence-classification", LORA, {}, "does not train"),
        ("dpo", "causal-lm", "preference", MEZO, {}, "whole steps by itself"),
        ("dpo", "causal-lm", "judged", LORA, {}, "needs chosen and rejected"),
        ("kto", "causal-lm", "generation", LORA, {}, "judged good or bad"),
        ("sft", "causal-lm", "judged", LORA, {}, "answers that the task calls bad"),
        ("distill-logits", "causal-lm", "generation", LORA, {}, "needs a teacher"),
        ("sft", "causal-lm", "generation", LORA, {"teacher": {}}, "has no use for a teacher"),
        ("dpo", "causal-lm", "preference", LORA, {}, None),
        ("dpo", "causal-lm", "preference", LORA, {"reference": {}}, None),
        ("kto", "causal-lm", "judged", LORA, {}, None),
        ("kto", "causal-lm", "preference", LORA, {}, None),
        ("sft", "causal-lm", "preference", MEZO, {}, None),
    ],
)
def test_what_an_objective_refuses(
    name: str, kind: str, task_kind: str, method: Any, other: dict[str, Any], says: str | None
) -> None:
    found = OBJECTIVES.get(name).check(kind, task_kind, method, other)
    assert (found is None) if says is None else (found is not None and says in found)


@pytest.mark.parametrize(
    ("name", "task_kind", "objective", "method", "teacher", "says"),
    [
        ("poft", "generation", "sft", LORA, False, "needs a teacher"),
        ("masked-thought", "generation", "dpo", LORA, False, "is defined for sft"),
        ("masked-thought", "generation", "sft", MEZO, False, "whole steps by itself"),
        ("curriculum", "generation", "sft", MEZO, False, None),
        ("s3ft", "preference", "sft", LORA, False, "does not treat the rows of a preference task"),
        ("subset", "generation", "sft", LORA, True, "no use for a teacher"),
        ("self-play", "generation", "dpo", LORA, False, None),
        ("self-play", "generation", "sft", LORA, False, "is defined for"),
    ],
)
def test_what_a_recipe_refuses(
    name: str, task_kind: str, objective: str, method: Any, teacher: bool, says: str | None
) -> None:
    found = RECIPES.get(name).check("causal-lm", task_kind, objective, method, teacher=teacher)
    assert (found is None) if says is None else (found is not None and says in found)


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


@pytest.mark.slow
def test_a_teacher_with_another_tokenizer_writes_only(bench: Bench, tiny_model: Path) -> None:  # noqa: F811
    teacher = bench.root / "teacher"
    shutil.copytree(tiny_model, teacher)
    file = teacher / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    bench.write(
        objectives=[{"name": name, "teacher": str(teacher)} for name in ("distill-logits", "distill-sequence")],
        methods=["full"],
    )
    bench("run", "sweep.yaml")
    found = by_label(bench)
    logits, sequence = found["full+distill-logits"], found["full+distill-sequence"]
    assert logits["outcome"]["status"] == "unsupported"
    assert "another tokenizer" in str(logits["outcome"])
    assert sequence["outcome"]["status"] == "ok", sequence["outcome"]
    assert sequence["environment"]["facts"]["objective"]["calls"]["teacher"]["written_tokens"] > 0


@pytest.mark.slow
def test_a_recipe_that_leaves_too_few_rows(bench: Bench) -> None:  # noqa: F811
    bench.write(recipes=["plain", {"name": "subset", "params": {"fraction": 0.001}}], methods=["full"])
    assert bench("run", "sweep.yaml").returncode != 0
    found = by_label(bench)
    assert found["full"]["outcome"]["status"] == "ok"
    assert found["full+subset"]["outcome"]["status"] == "error"
    assert "1 rows are left to train on" in found["full+subset"]["outcome"]["reason"]


SMALL_LORA = {"name": "lora", "params": {"r": 4}}
SFT_FIRST = {"name": "after sft", "earlier": [{"method": "full", "steps": 20}]}
ON = {"name": "on", "earlier": [{"method": SMALL_LORA, "steps": 10, "handover": "unmerged"}]}


def stages(record: dict[str, Any]) -> list[str]:
    return [span["stage"] for span in record["spans"]]


@pytest.mark.slow
def test_dpo_starts_from_what_sft_trained(pairs: Bench) -> None:
    """Two objectives after one shared first stage, which is trained once and is the reference of DPO."""
    pairs.write(
        stages=["none", SFT_FIRST],
        objectives=[{"name": "dpo", "lr_factor": 1.0}, "orpo"],
        methods=["none", SMALL_LORA],
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
    pairs.write(stages=[SFT_FIRST], objectives=["simpo"], methods=[SMALL_LORA])
    again = json.loads(pairs("plan", "sweep.yaml", "--json").stdout)
    assert [c["key"] for c in again["run"]] == [first["key"]]
    assert len(again["later"]) == 1


@pytest.mark.slow
def test_an_adapter_is_trained_on(bench: Bench) -> None:  # noqa: F811
    """Unmerged: the second stage begins at the first one's adapter, and a third at the second's."""
    twice = {"name": "twice", "earlier": [ON["earlier"][0], {"method": SMALL_LORA, "steps": 2, "handover": "unmerged"}]}
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


@pytest.mark.slow
def test_a_teacher_is_trained_before_it_is_asked(bench: Bench) -> None:  # noqa: F811
    """The teacher is a cell that is trained once for both students."""
    plain = bench.sweep["models"][0]
    taught = {"model": plain, "trained": {"method": "full", "steps": 12}}
    teachers = {"as is": plain, "taught": taught}
    named = [{"name": "distill-logits", "label": label, "teacher": one} for label, one in teachers.items()]
    bench.write(objectives=named, methods=["full", "lora"])
    plan = json.loads(bench("plan", "sweep.yaml", "--json").stdout)
    assert (plan["cells"], len(plan["run"]), len(plan["later"])) == (5, 3, 2)
    done = bench("run", "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    found = by_label(bench)
    teacher = found["full 12 steps"]
    losses = {}
    for method in ("full", "lora"):
        told = found[f"{method}+taught"]["environment"]["facts"]["objective"]
        if told["models"]:  # else its answers were in the cache
            assert told["models"]["teacher"]["trained_by"]["key"] == teacher["key"]
        losses[method] = [found[f"{method}+{label}"]["series"]["loss"][0] for label in ("as is", "taught")]
        assert losses[method][0] != losses[method][1]
    said = [found[f"{m}+taught"]["environment"]["facts"]["objective"] for m in ("full", "lora")]
    assert any(one["models"] for one in said)
    assert any(one["from_cache_s"] for one in said)  # the second student reads what the teacher said to the first


@pytest.mark.slow
def test_a_recipe_that_leaves_no_rows(bench: Bench) -> None:  # noqa: F811
    """Self-play leaves out rows that the base answers as given: here it answers all of them so."""
    (bench.root / "tasks").mkdir()
    rows = [{"q": f"C{a}{b}=", "a": "x"} for a in "abcd" for b in "efgh"]
    task = {
        "name": "own",
        "version": 1,
        "summary": "Made by a test.",
        "kind": "generation",
        "licence": "none",
        "source": {"files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        "prompt": "{q}",
        "answer": "{a}",
        "max_new_tokens": 4,
    }
    (bench.root / "tasks" / "own.yaml").write_text(json.dumps(task))
    own = {"tasks": [{"name": "own"}], "evaluation": {"batch_size": 16, "retention": False}}

    def write() -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        for name in ("train.jsonl", "test.jsonl"):
            (bench.root / "tasks" / name).write_text(text)

    write()
    bench.write(methods=["none"], **own)
    assert bench("run", "sweep.yaml").returncode == 0
    (file,) = (bench.root / "results" / "samples").rglob("*.parquet")
    said = {row["item"]: row["prediction"] for row in pq.read_table(file).to_pylist() if row["arm"] == "adapted"}
    for row, answer in zip(rows, said.values(), strict=True):
        row["a"] = answer
    write()
    bench.write(recipes=["self-play"], objectives=["simpo"], methods=["lora"], **own)
    assert bench("run", "sweep.yaml").returncode != 0
    found = by_label(bench)["lora+simpo+self-play"]["outcome"]
    assert (found["status"], found["stage"]) == ("error", "recipe")
    assert "self-play leaves no rows" in found["reason"]


@pytest.mark.slow
def test_a_sequence_of_tasks_has_its_matrix(bench: Bench) -> None:  # noqa: F811
    """Two tasks one after the other: each is scored after each, and the transfer is that of the records."""
    one, two = "strings-copy", "strings-shift"
    use = {"train_items": 64, "validation_items": 8, "test_items": 16}
    bench.write(
        methods=["full"],
        stages=["none", {"name": "second", "earlier": [{"method": "full", "task": {"name": one, **use}}]}],
        tasks=[{"name": one, "score": [two], **use}, {"name": two, "score": [one], **use}],
        exclude=[{"task": one, "stages": "second", "why": "not in the sequence"}],
    )
    done = bench("run", "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    records, _ = Store(bench.root / "results").records()
    found = continual(records)
    assert found is not None
    assert found.tasks == (one, two)
    by_label_ = {(r.cell["method"]["label"], r.cell["task"]["name"]): value_of(r, "accuracy") for r in records}
    assert found.accuracy == (
        (by_label_["full", one], by_label_[f"full+trained on {one}", two]),
        (by_label_[f"full+second+trained on {two}", one], by_label_["full+second", two]),
    )
    assert found.backward_transfer == found.accuracy[1][0] - found.accuracy[0][0]
    assert continual([r for r in records if r.cell["task"]["name"] == one]) is None
