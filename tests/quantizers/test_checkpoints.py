"""Back ends that quantize a checkpoint on disk: what is kept, what is refused before a cell starts, the libraries."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import Unsupported, UserError
from harness.models import sources
from harness.quantizers.catalog import QUANTIZERS
from harness.quantizers.checkpoints import CheckpointQuantizer, decoder_shapes
from harness.quantizers.layers import plain_linears
from harness.quantizers.rtn import RTN
from runners import environments
from runners.workspace import Workspace
from tests.methods.tiny import CAUSAL, batch, gap, llama, logits, tokenizer
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture


class Copying(CheckpointQuantizer):
    """Writes the checkpoint as it was, and counts how often."""

    declaration = replace(RTN.declaration, package="torch", pip="torch")
    written = 0

    def write(self, source: Path, target: Path) -> None:
        type(self).written += 1
        shutil.copytree(source, target, dirs_exist_ok=True)


def quantized(cache: Path | None, *, seed: int = 0, params: dict[str, Any] | None = None) -> tuple[nn.Module, Copying]:
    quantizer = Copying({"group_size": 32, **(params or {})}, CAUSAL)
    quantizer.cache, quantizer.tokenizer = cache, tokenizer()
    model = llama()
    quantizer.calibrate(model, lambda _: [batch(CAUSAL, seed)])
    return quantizer.apply(model), quantizer


def test_what_was_made_once_is_read_again_and_the_record_says_so(tmp_path: Path) -> None:
    Copying.written = 0
    made, first = quantized(tmp_path)
    again, second = quantized(tmp_path)
    assert Copying.written == 1
    assert (first.facts()["from_cache"], second.facts()["from_cache"]) == (False, True)
    assert first.facts()["quantization_s"] == second.facts()["quantization_s"] > 0
    assert gap(logits(made, CAUSAL), logits(again, CAUSAL)) == 0
    assert not any(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize("change", [{"seed": 1}, {"params": {"bits": 3}}])
def test_other_rows_or_parameters_make_another(tmp_path: Path, change: dict[str, Any]) -> None:
    quantized(tmp_path)
    assert not quantized(tmp_path, **change)[1].facts()["from_cache"]


def test_padding_is_no_part_of_the_calibration_rows() -> None:
    _, quantizer = quantized(None)
    inputs = batch(CAUSAL, 0)
    assert quantizer.facts()["calibration_tokens"] == int(inputs["attention_mask"].sum())
    assert all(bool(row["attention_mask"].all()) for row in quantizer.rows)


def test_the_shapes_read_off_a_configuration_are_the_model_s() -> None:
    model: Any = llama()
    found = {(linear.out_features, linear.in_features) for _, linear in plain_linears(model)}
    assert set(decoder_shapes(model.config.to_dict())) == found
    assert decoder_shapes({"model_type": "gpt2", "n_embd": 64}) == []


@pytest.mark.parametrize(
    ("name", "model", "params", "reason"),
    [
        ("gptqmodel-gptq", "builtin:nano", {}, "groups of 128 do not divide rows of 96 weights; set group_size"),
        ("gptqmodel-gptq", "builtin:nano", {"group_size": 32}, None),
        ("gptqmodel-awq", "builtin:nano", {"group_size": 32}, "weights of a multiple of 64 rows, not 96"),
        ("gptqmodel-awq", "builtin:nano-128", {}, None),
        ("gptqmodel-awq", "skeleton:llama-3.2-1b", {}, None),
        ("autoround", "builtin:nano", {}, "groups of 128 do not divide rows of 96"),
        ("gptqmodel-awq", "owner/unknown-until-downloaded", {}, None),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_the_plan(
    name: str, model: str, params: dict[str, Any], reason: str | None
) -> None:
    cls = QUANTIZERS.get(name)
    found = cls.check_model(CAUSAL, sources.config(model), cls.resolve(params))
    assert (found is None) if reason is None else (reason in (found or "")), found
    assert "causal language models only" in (
        cls.check_model("sequence-classification", None, cls.resolve(params)) or ""
    )


def test_a_layer_that_does_not_fit_is_refused_by_the_worker() -> None:
    with pytest.raises(Unsupported, match=r"groups of 48 do not divide rows of 64 weights.*layers\.0"):
        quantized(None, params={"group_size": 48})


@pytest.mark.parametrize(
    ("name", "params", "part"),
    [
        ("gptqmodel-gptq", {"bits": 3}, "bits 3 is not known"),
        ("gptqmodel-gptq", {"kernel": "torch_awq"}, "kernel 'torch_awq' is not known"),
        ("gptqmodel-awq", {"bits": 8}, "bits 8 is not known"),
        ("gptqmodel-awq", {"group_size": 256}, "group_size 256 is not known"),
        ("autoround", {"iterations": 0}, "iterations must be a positive whole number"),
    ],
)
def test_a_wrong_parameter_is_named(name: str, params: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        QUANTIZERS.get(name).resolve(params)


def test_gptqmodel_and_lora_work_in_the_side_environment(bench: Bench) -> None:  # noqa: F811
    python = environments.interpreter("gptq", Workspace.discover().cache)
    if python is None:
        pytest.skip("the environment is not built: peft-matrix env create gptq")
    place = environments.folder("gptq", bench.root / "cache")
    place.parent.mkdir(parents=True)
    place.symlink_to(python.parents[1])
    path = bench.write(methods=["lora"], quantization=[{"name": "gptqmodel-gptq", "params": {"group_size": 32}}])
    done = bench("run", str(path))
    (record,) = bench.records()
    assert record["outcome"]["status"] == "ok", done.stdout + done.stderr
    assert record["environment"]["side_environment"] == {"name": "gptq", "digest": environments.digest("gptq")}
    assert record["environment"]["packages"]["gptqmodel"] == "7.7.0"
    facts = record["environment"]["facts"]
    assert facts["layout"]["quantized"] == {"gptqmodel:TorchLinear": 14}
    assert facts["quantizer"]["library"] == "gptqmodel 7.7.0"
    assert not facts["quantizer"]["from_cache"]
    assert 0.02 < record["metrics"]["layer_error_mean"]["value"] < 0.2
    assert "1 done" in bench("plan", str(path)).stdout  # a record of that environment is not stale in ours


def test_autoround_comes_nearer_to_the_weights_than_chance(tmp_path: Path) -> None:
    pytest.importorskip("auto_round", reason="pip install auto-round==0.16.1")
    from harness.quantizers.measure import layer_errors, linear_kinds

    cls = QUANTIZERS.get("autoround")
    quantizer = cls(cls.resolve({"group_size": 32, "iterations": 5}), CAUSAL)
    quantizer.cache, quantizer.tokenizer = tmp_path, tokenizer()
    model = llama()
    quantizer.calibrate(model, lambda n: [batch(CAUSAL, seed) for seed in range(n)])
    found = quantizer.apply(model)
    assert sum(linear_kinds(found).quantized.values()) == 14
    assert all(0 < error < 0.2 for error in layer_errors(llama(), found).values())
    assert {p.dtype for p in found.parameters()} == {torch.float32}
