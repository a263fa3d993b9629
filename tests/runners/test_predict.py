"""Predictions for a cell before it runs: sizes, corrections from records, refusals; and which errors may pass."""

from __future__ import annotations

import errno
import json
import urllib.error
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from harness import hardware
from harness.errors import UserError
from harness.methods.modules import linears
from harness.metrics import metric
from harness.models.shape import from_config, module_names, shape_of
from harness.models.skeleton import presets
from harness.models.sources import recipe
from harness.spec import SweepSpec
from harness.store.store import Store
from runners.planning import plan
from runners.planning.cost_model import fits
from runners.running.run import make_plan
from runners.worker.main import COST_FAMILIES
from runners.workspace import Workspace
from tests.quality import predictions
from tests.runners import cheap
from tests.runners.conftest import Bench

GIB = 2**30


def made(folder: Path, *, memory_gib: int = 16, **changes: Any) -> plan.Plan:
    sweep = cheap.sweep_of(folder / "sweep.yaml", ["a", "b"], **changes)
    workspace = Workspace((), str(folder / "results"), None, folder / "cache")
    machine = hardware.Machine(2, memory_gib * GIB, "any")
    return plan.make(sweep, workspace, store=Store(workspace.results), machine=machine, fingerprint=cheap.FINGERPRINT)


@pytest.mark.parametrize("name", sorted(n for n, p in presets().items() if "kv_lora_rank" not in p["config"]))
def test_architecture_size_follows_from_its_configuration(name: str) -> None:
    shape = from_config(presets()[name]["config"])
    if shape is not None:
        assert shape.parameters == pytest.approx(presets()[name]["parameters"], rel=0.02)
        assert shape.parameters <= presets()[name]["parameters"] * 1.02, "a bound must not exceed the truth"


def test_a_local_model_is_counted_in_its_files(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = shape_of(str(tiny_model))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_a_model_that_is_not_here_has_no_size_and_no_prediction(tmp_path: Path) -> None:
    assert shape_of("nobody/has-this-model") is None
    prediction = made(tmp_path, models=["nobody/has-this-model"]).predict
    (cell, _) = made(tmp_path, models=["nobody/has-this-model"]).cells
    assert prediction(cell).seconds is None
    assert prediction(cell).as_json()["predicted_peak_bytes"] is None


def test_rows_count_as_long_as_they_are(tmp_path: Path) -> None:
    def first(**changes: Any) -> Any:
        planned = made(tmp_path, **changes)
        cell = planned.cells[0][0] if isinstance(planned.cells[0], tuple) else planned.cells[0]
        return planned.predict(cell)

    tasks = [{"name": "strings-copy", "train_items": 64, "validation_items": 8, "test_items": 8}]
    short, long = (
        first(
            models=["builtin:nano"],
            methods=["full"],
            tasks=tasks,
            training={"steps": 100, "batch_size": 8, "max_length": n},
        )
        for n in (64, 512)
    )
    assert short.seconds == pytest.approx(long.seconds), "no row is longer than 64 tokens"
    assert short.peak_bytes == pytest.approx(long.peak_bytes)
    assert short.basis == "estimate from sizes"
    away = first(models=["builtin:nano"], methods=["full"], tasks=[{"name": "xsum"}], training={"steps": 100})
    assert away.basis == "estimate from sizes and the longest rows allowed"


@pytest.mark.parametrize(("store", "sweep"), [("cpu-2core", "quickstart"), ("cpu-2core-quantizers", "all-quantizers")])
def test_predictions_from_sizes_alone_meet_the_records(store: str, sweep: str) -> None:
    found = predictions.summary(list(predictions.ratios(store, sweep, predictions.REPOSITORY / "no-data")))
    assert found["time"]["n"] > 50
    assert found["time"]["within_2"] > 0.9
    assert found["memory"]["error"] < 0.15


def test_names_of_modules_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**recipe("nano").data["config"], vocab_size=8)
    with torch.device("meta"):
        nano = LlamaForCausalLM(config)
    assert module_names("builtin:nano") == {layer.name for layer in linears(nano)}
    tiny = AutoModelForCausalLM.from_pretrained(tiny_model)
    found = module_names(str(tiny_model))
    assert found is not None
    assert {layer.name for layer in linears(tiny)} < found
    assert found <= {name for name, _ in tiny.named_modules()}
    assert module_names("nobody/has-this-model") is None


def test_a_typo_in_the_names_of_modules_is_found_by_the_plan(tmp_path: Path, tiny_model: Path) -> None:
    def planned(*names: object, models: tuple[str, ...] = ("builtin:nano",)) -> plan.Plan:
        methods = [{"name": "none"}, *({"name": "lora", "params": {"target_modules": one}} for one in names)]
        labelled = [{**m, "label": str(i)} for i, m in enumerate(methods)]
        sweep = cheap.sweep_of(tmp_path / "sweep.yaml", [], models=list(models), methods=labelled)
        workspace = Workspace((), str(tmp_path / "results"), None, tmp_path / "cache")
        return make_plan(sweep, workspace, machine=hardware.Machine(2, 16 * GIB, "any"))

    with pytest.raises(UserError) as error:
        planned(["q_proj"], ["v_proj", "q_prj"], models=("builtin:nano", str(tiny_model)))
    assert "2 names the module 'q_prj', which is not in nano, tiny-model0" in str(error.value)
    assert "line" in error.value.where
    assert "methods.2" in error.value.where
    assert error.value.fix.startswith("Did you mean 'q_proj' or ")
    for right in (
        "all-linear",
        ["q_proj"],
        ["self_attn.q_proj"],
        ["model.layers.1.mlp.up_proj"],
        ["lm_head", "q_proj"],
    ):
        assert not planned(right).unsupported
    assert not planned("no_such.*").unsupported, "a regular expression is tried by the worker"
    both = planned(["query"], models=("nobody/has-this-model", "builtin:nano"))
    (refused,) = both.unsupported
    assert refused[0].model.label == "nano"
    assert refused[1].startswith("lora: nano has no module named 'query'; it has down_proj, ")


def test_what_cannot_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    big = {"models": ["skeleton:llama-3.1-8b"], "methods": ["none", "full"]}
    both = made(tmp_path, memory_gib=16, **big)
    assert [c.method.name for c, _ in both.unsupported] == ["none", "full"]
    assert "weights and training state alone take 29.9 GiB, this machine has 16.0 GiB" in both.unsupported[0][1]
    enough = made(tmp_path, memory_gib=40, **big)
    assert [c.method.name for c, _ in enough.unsupported] == ["full"], "gradients and Adam's states come on top"
    assert "119.7 GiB" in enough.unsupported[0][1]
    half = [{"id": "skeleton:llama-3.1-8b", "dtype": "bfloat16"}]
    assert not made(tmp_path, memory_gib=16, models=half, methods=["none"]).unsupported


def test_records_correct_the_estimate_and_say_whose_they_are(tmp_path: Path) -> None:
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["a", "b"], training={"steps": 400})
    before = cheap.scheduler(sweep, tmp_path)
    first, _ = before.plan.run
    estimate = before.plan.predict(first)
    assert estimate.basis == "estimate from sizes"
    before.plan = replace(before.plan, run=(first,))
    before._queue.pop()
    assert before.run() == {"ok": 1}
    after = cheap.scheduler(
        cheap.sweep_of(tmp_path / "sweep.yaml", ["a", "b"], seeds=2, training={"steps": 400}), tmp_path
    ).plan
    by_name = {(c.method.label, c.seed): after.predict(c) for c in after.cells}
    ran = first.method.label  # blocks are in random order
    (other,) = {"a", "b"} - {ran}
    assert by_name[ran, first.seed].seconds == pytest.approx(0.4)
    assert by_name[ran, first.seed].basis.endswith("1 records of this cell")
    assert by_name[ran, 1 - first.seed].seconds == pytest.approx(0.4)
    assert by_name[ran, 1 - first.seed].basis.endswith("1 records of its other seeds")
    assert by_name[other, 0].basis.endswith("1 records of its method on this model")
    assert estimate.seconds != pytest.approx(0.4)
    listed = after.as_json()
    assert listed["predicted"]["cells_without"] == 0
    assert listed["predicted"]["seconds"] == pytest.approx(sum(row["predicted_s"] for row in listed["run"]), abs=0.1)


def test_plan_prints_what_is_expected(bench: Bench) -> None:
    shown = bench("plan", str(bench.write()), "--hours", "1").stdout
    assert "predicted: 0:0" in shown
    listed = json.loads(bench("plan", str(bench.write()), "--hours", "0", "--json").stdout)
    assert [row["kind"] for row in listed["not_run"]] == ["budget", "budget"]
    assert listed["run"] == []


# --- errors that may pass ------------------------------------------------------------------------


def test_only_a_closed_list_of_errors_counts_as_passing() -> None:
    import torch

    from runners.worker.transient import transient_kind

    caused = ValueError("could not load")
    caused.__cause__ = ConnectionResetError()
    kinds = {
        "network": [ConnectionResetError(), TimeoutError(), caused, OSError(errno.ENETUNREACH, "")],
        "file-system": [OSError(errno.ESTALE, ""), OSError(errno.ENOSPC, "")],
        "device-lost": [RuntimeError("CUDA error: uncorrectable ECC error encountered")],
        "device-busy": [RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")],
        None: [
            ValueError("a bug"),
            FileNotFoundError(errno.ENOENT, "no such file"),
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            PermissionError(errno.EACCES, ""),
        ],
    }
    for kind, errors in kinds.items():
        assert [transient_kind(error) for error in errors] == [kind] * len(errors)
    assert transient_kind(urllib.error.URLError(ConnectionRefusedError())) is None, "an error hidden in an argument"


def test_cells_share_a_device_and_record_no_cost(bench: Bench) -> None:
    path = bench.write(measure_cost=False, limits={"threads": 1, "workers": 1, "cells_per_device": 2})
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    records = bench.records()
    first, second = sorted(records, key=lambda r: r["started"])
    assert second["started"] <= first["finished"], "the second cell waited for the device"
    for record in records:
        assert record["cell"]["measure_cost"] is False
        assert record["environment"]["neighbours"] == 1
        steps = record["cell"]["method"]["steps"]
        assert {name: len(values) for name, values in record["series"].items()} == (
            {"loss": steps, "grad_norm": steps} if steps else {}
        )
        assert record["metrics"]["accuracy"]["value"] is not None
        costs = {n: m for n, m in record["metrics"].items() if metric(n).family in COST_FAMILIES}
        assert costs
        assert {m["why_missing"] for m in costs.values()} == {"not_measured"}
        assert {r["quantity"] for span in record["spans"] for r in span["readings"]} <= {"seconds"}


def test_the_default_is_not_in_the_key(bench: Bench) -> None:
    assert bench("run", str(bench.write(methods=["none"]))).returncode == 0
    assert "measure_cost" not in bench.records()[0]["cell"]


def test_measured_cells_may_not_share(bench: Bench) -> None:
    with pytest.raises(ValueError, match="cells_per_device above 1 needs 'measure_cost: false'"):
        SweepSpec.model_validate({**bench.sweep, "limits": {"cells_per_device": 2}})


def test_a_plan_is_values_that_a_run_does_not_change(tmp_path: Path) -> None:
    scheduler = cheap.scheduler(cheap.sweep_of(tmp_path / "sweep.yaml", ["a"]), tmp_path)
    plan = scheduler.plan
    before = (plan.run, dict(plan.known), plan.unsupported)
    assert scheduler.run() == {"ok": 1}
    assert scheduler.plan is plan
    assert (plan.run, plan.known, plan.unsupported) == before
    with pytest.raises(FrozenInstanceError):
        plan.run = ()  # type: ignore[misc]


def _fits(folder: Path, capacity_gib: float, **changes: Any) -> dict[str, dict[str, Any]]:
    planned = made(folder, hardware=["gpu-24gb"], **changes)
    return {row["cell"]: row for row in fits(planned.predict, planned.cells, capacity_gib * GIB)}


def test_fits_counts_the_devices_of_sharded_cells(tmp_path: Path) -> None:
    models = [
        {"id": "skeleton:llama-3.1-70b", "dtype": "bfloat16"},
        {"id": "skeleton:llama-3.2-1b", "dtype": "bfloat16"},
    ]
    changes: dict[str, Any] = {
        "models": models,
        "methods": ["none", "full"],
        "training": {"steps": 10, "batch_size": 8},
    }
    rows = _fits(tmp_path, 80, **changes)
    assert len(rows) == 4, "seeds are one row"

    def row(model: str, method: str) -> dict[str, Any]:
        return next(row for label, row in rows.items() if f"-{model}-random.{method}." in label)

    small = row("1b", "none")
    assert (small["fits"], small["devices"]) == (True, 1)
    assert small["peak_bytes"] == pytest.approx(2 * 1235814400, rel=1e-6)
    released = row("70b", "none")
    assert (released["fits"], released["devices"]) == (False, 2)
    full = row("70b", "full")
    assert full["state_bytes"] == pytest.approx(3 * full["weights_bytes"])
    # a device of 8 holds an eighth of 564 GB, two of 80 blocks of 141 GB, and the activations of one of 8 rows
    assert full["devices"] == 8
    parts = 564.4296e9 / 8 + 141.1074e9 / 40 + full["activation_bytes"] / 8
    assert full["peak_bytes_sharded"] == pytest.approx(parts, rel=1e-4)
    assert full["peak_bytes_sharded"] <= 80 * GIB < full["peak_bytes"]
    tiny = _fits(tmp_path, 1, **changes)
    assert {row["devices"] for label, row in tiny.items() if "70b-random.full" in label} == {None}


def test_recomputed_activations_take_less(tmp_path: Path) -> None:
    def activations(checkpointing: bool) -> float:
        training = {"steps": 10, "batch_size": 4, "gradient_checkpointing": checkpointing}
        (row,) = _fits(tmp_path, 24, models=["skeleton:llama-3.2-1b"], methods=["lora"], training=training).values()
        return float(row["activation_bytes"])

    assert activations(True) < activations(False) / 2


def test_plan_says_what_fits(bench: Bench) -> None:
    sweep = str(bench.write())
    out = bench("plan", sweep, "--fits", "24GiB").stdout
    assert "yes" in out
    assert "Estimated from sizes, for devices of 24GiB" in out
    (row,) = json.loads(bench("plan", sweep, "--fits", "1 MiB", "--json").stdout)[:1]
    assert row["fits"] is False
    refused = bench("plan", sweep, "--fits", "24")
    assert refused.returncode == 2
    assert "'24' is not an amount of memory" in refused.stderr
