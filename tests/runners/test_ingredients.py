"""Cells that combine what others trained: they wait, they are given it, and they say why where they cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runners.conftest import Bench


@pytest.fixture
def updated_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A second version of the tiny model: the same shapes, other weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "tiny-v2"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def small_bytes(record: dict[str, Any]) -> float:
    return float(record["metrics"]["adapter_bytes"]["value"])


@pytest.mark.slow
def test_a_sweep_combines_its_own_rows(bench: Bench, tiny_model: Path, updated_model: Path) -> None:
    old, new = tiny_model.name, updated_model.name
    elsewhere = [
        {"model": new, "method": "lora", "why": "the adapter is to come from the old base"},
        {"model": old, "method": "portllm", "why": "there is nothing to move"},
        {"model": new, "method": "compeft", "why": "one base is enough"},
        {"seed": 1, "method": "compeft", "why": "one seed is enough"},
        {"seed": 0, "method": "portllm", "why": "one seed is enough"},
    ]
    path = bench.write(
        models=[str(tiny_model), str(updated_model)],
        methods=[
            {"name": "soup", "params": {"of": "lora"}},  # before its row: the order of the file does not matter
            "lora",
            {"name": "compeft", "params": {"r": 4}},
            {"name": "portllm", "params": {"of": "lora", "from": old}},
        ],
        seeds=[0, 1],
        exclude=elsewhere,
        training={"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "max_length": 32},
    )
    first = json.loads(bench("plan", str(path), "--json").stdout)
    assert first["waiting_for_tuning"] == 2  # a soup, and an adapter to move
    run = bench("run", str(path))
    assert run.returncode == 0, run.stdout + run.stderr
    records = {r["label"]: r for r in bench.records()}
    status = {label: r["outcome"]["status"] for label, r in records.items()}
    task = "strings-copy"
    assert status.pop(f"{new}.soup.none.{task}.s0") == "unsupported"
    reason = records[f"{new}.soup.none.{task}.s0"]["outcome"]["reason"]
    assert "its source cell" in reason
    assert "the adapter is to come from the old base" in reason
    excluded = [label for label, r in records.items() if "excluded by the sweep" in (r["outcome"]["reason"] or "")]
    assert {s for label, s in status.items() if label not in excluded} == {"ok"}

    soup = records[f"{old}.soup.none.{task}.s0"]
    lora = [records[f"{old}.lora.none.{task}.s{seed}"] for seed in (0, 1)]
    assert f"{old}.soup.none.{task}.s1" not in records  # one soup, however many seeds
    assert soup["cell"]["method"]["ingredients"] == [r["key"] for r in lora]
    assert soup["environment"]["facts"]["finalize"]["ingredients"] == [r["label"] for r in lora]
    assert soup["metrics"]["accuracy"]["value"] is not None
    assert soup["metrics"]["trainable_parameters"]["value"] == 0
    assert soup["metrics"]["adapter_bytes"]["value"] > 2 * small_bytes(lora[0])  # a whole model
    stages = [s["stage"] for s in soup["spans"]]
    assert stages[stages.index("train") : stages.index("evaluate")] == ["train", "finalize", "save", "reload"]

    moved = records[f"{new}.portllm.none.{task}.s1"]
    assert moved["environment"]["facts"]["finalize"]["ingredients"] == [lora[1]["label"]]
    assert moved["metrics"]["adapter_bytes"]["value"] == small_bytes(lora[1])

    small = records[f"{old}.compeft.none.{task}.s0"]
    assert small["metrics"]["adapter_bytes"]["value"] < 0.2 * small_bytes(lora[0])
    assert set(small["environment"]["facts"]["finalize"]) >= {"density", "scale"}
    assert small["metrics"]["merged_accuracy"]["value"] is not None

    again = json.loads(bench("plan", str(path), "--json").stdout)
    assert (again["run"], again["waiting_for_tuning"]) == ([], 0)
    # an ingredient whose result is no longer kept is trained again when a new cell asks for it
    shutil.rmtree(bench.root / "cache" / "ingredients" / lora[0]["key"])
    more = bench.write(
        methods=["lora", {"name": "ties", "params": {"of": "lora"}}, {"name": "dare", "params": {"of": "lora"}}],
        seeds=[0, 1],
        training={"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "max_length": 32},
    )
    third = json.loads(bench("plan", str(more), "--json").stdout)
    assert [c["key"] for c in third["run"]] == [lora[0]["key"]]
    assert third["waiting_for_tuning"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["lora", "soup"]}, "soup: of: is missing"),
        ({"methods": ["lora", {"name": "soup", "params": {"of": "lorra"}}]}, "'lorra' is not in this sweep"),
    ],
)
def test_a_row_that_is_not_there_is_one_sentence(bench: Bench, changes: dict[str, object], message: str) -> None:
    told = bench("plan", str(bench.write(**changes)))
    assert told.returncode == 2
    assert message in " ".join((told.stdout + told.stderr).split())


def test_one_seed_is_nothing_to_combine(bench: Bench) -> None:
    path = bench.write(methods=["lora", {"name": "soup", "params": {"of": "lora"}}])
    plan = json.loads(bench("plan", str(path), "--json").stdout)
    assert [u["why"] for u in plan["unsupported"]] == [
        "the sweep has one of its seeds only: there is nothing to combine"
    ]


@pytest.mark.slow
def test_a_tuned_sweep_combines_its_final_cells(bench: Bench) -> None:
    path = str(
        bench.write(
            methods=["lora", {"name": "soup", "params": {"of": "lora"}}],
            seeds=[0, 1],
            training={"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "max_length": 32},
            tune={"learning_rates": 3, "factor": 3},
        )
    )
    first = json.loads(bench("plan", path, "--json").stdout)
    assert first["waiting_for_tuning"] == 2  # the row's finals, and the soup of them
    run = bench("run", path)
    assert run.returncode == 0, run.stdout + run.stderr
    records = [r for r in bench.records() if "role" not in r["cell"]]
    (soup,) = [r for r in records if r["cell"]["method"]["name"] == "soup"]
    finals = [r for r in records if r["cell"]["method"]["name"] == "lora"]
    assert soup["outcome"]["status"] == "ok"
    assert len(finals) == 2
    assert sorted(soup["cell"]["method"]["ingredients"]) == sorted(r["key"] for r in finals)
    assert len({r["cell"]["method"]["learning_rate"] for r in finals}) == 1  # the chosen rate
    again = json.loads(bench("plan", path, "--json").stdout)
    assert (again["run"], again["waiting_for_tuning"]) == ([], 0)
