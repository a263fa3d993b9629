"""The pages of objectives and recipes, and what their declarations promise."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import matrix
from harness.errors import UserError
from harness.methods.catalog import METHODS
from harness.objectives import base as objectives
from harness.objectives import catalog as objective_catalog
from harness.objectives.catalog import OBJECTIVES
from harness.recipes import base as recipes
from harness.recipes import catalog as recipe_catalog
from harness.recipes.catalog import RECIPES
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture

DOCS = Path(__file__).parents[2] / "docs"
LORA, MEZO = METHODS.get("lora"), METHODS.get("mezo")


@pytest.mark.parametrize(
    ("page", "text"),
    [("objectives.md", objective_catalog.to_markdown()), ("recipes.md", recipe_catalog.to_markdown())],
)
def test_the_pages_are_current(page: str, text: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == text, f"write the catalogue's to_markdown() to docs/{page}"


def test_listing_imports_no_model_library() -> None:
    code = (
        "import sys\n"
        "from harness.objectives.catalog import rows as a\n"
        "from harness.recipes.catalog import rows as b\n"
        "assert len(a()) == 8 and len(b()) >= 15\n"
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
    assert {"objective": objectives.DEFAULT, "recipe": recipes.DEFAULT, "stages": "none"} == matrix.DEFAULTS


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
