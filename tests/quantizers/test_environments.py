"""Side environments: described by files, named by the plan where missing, run through the worker contract."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harness import provenance
from harness.errors import UserError
from harness.quantizers.catalog import QUANTIZERS
from runners import environments
from tests.runners.conftest import Bench, bench, tiny_model  # noqa: F401 - fixtures


def test_every_environment_that_a_quantizer_names_is_described() -> None:
    asked = {QUANTIZERS.get(q).declaration.environment for q in QUANTIZERS} - {""}
    assert asked <= set(environments.names())


def test_a_missing_environment_is_named_with_its_command(tmp_path: Path) -> None:
    reason = environments.why_not(QUANTIZERS.get("prequantized-gptq"), "cpu", "before_training", tmp_path)
    assert reason == "prequantized-gptq runs in the environment 'gptq': peft-matrix env create gptq"
    assert environments.why_not(QUANTIZERS.get("rtn"), "cpu", "before_training", tmp_path) is None


def test_one_that_was_built_to_its_end_is_found(tmp_path: Path) -> None:
    built = environments.folder("gptq", tmp_path)
    (built / "bin").mkdir(parents=True)
    assert environments.interpreter("gptq", tmp_path) is None
    (built / environments.READY).touch()
    assert environments.interpreter("gptq", tmp_path) == built / "bin" / "python"


def test_an_unknown_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown environment 'gtpq'"):
        environments.create("gtpq", tmp_path, print)


def test_a_cell_runs_in_its_environment_and_its_record_says_so(bench: Bench) -> None:  # noqa: F811
    """The interpreter of the tests stands in for the environment's: what is tested is the way there and back."""
    python = environments.folder("gptq", bench.root / "cache") / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (python.parents[1] / environments.READY).write_text(json.dumps(provenance.packages(provenance.SIDE_PACKAGES)))
    path = bench.write(methods=["none"], quantization=["prequantized-gptq", "none"])
    done = bench("run", str(path))
    records = {r["cell"]["quantization"]["name"]: r for r in bench.records()}
    assert records["none"]["outcome"]["status"] == "ok", done.stdout + done.stderr
    assert "side_environment" not in records["none"]["environment"]
    outside = records["prequantized-gptq"]
    assert outside["environment"]["side_environment"] == {
        "name": "gptq",
        "digest": environments.digest("gptq"),
    }
    assert outside["outcome"]["stage"] == "quantize"  # it came as far as the model, which is not quantized
    assert "this one is not quantized" in outside["outcome"]["reason"], json.dumps(outside["outcome"])
