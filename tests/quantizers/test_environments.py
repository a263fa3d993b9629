"""Side environments: described by files, named by the plan where missing, run through the worker contract."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import pytest

from harness import provenance
from harness.errors import UserError
from harness.quantizers.catalog import QUANTIZERS
from runners import environments
from runners.executors.side_environment import OutsideProcess
from runners.worker.job import LOG_FILE
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture


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


def test_its_records_have_its_own_fingerprint(tmp_path: Path) -> None:
    """With our packages in its list, a record made there would be stale at once."""
    ours = provenance.environment()
    assert environments.fingerprints(ours, tmp_path) == {}
    built = environments.folder("gptq", tmp_path)
    built.mkdir(parents=True)
    theirs = {**ours["packages"], "gptqmodel": "7.7.0"}
    (built / environments.READY).write_text(json.dumps(theirs))
    found = environments.fingerprints(ours, tmp_path)
    assert found == {"gptq": provenance.fingerprint({**ours, "packages": theirs})}
    assert found["gptq"] != provenance.fingerprint(ours)


def test_every_requirement_of_one_is_pinned() -> None:
    for name in environments.names():
        wanted = (environments.FILES / f"{name}.txt").read_text().splitlines()
        pins = (environments.FILES / f"{name}{environments.CONSTRAINTS}.txt").read_text().splitlines()
        pinned = {line.partition("==")[0] for line in pins if not line.startswith("#")}
        assert {line for line in wanted if line and not line.startswith("#")} <= pinned


def test_an_interpreter_that_fails_says_why_in_the_job_s_log(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named torch' >&2\nexit 3\n")
    python.chmod(0o755)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = OutsideProcess(str(python), str(tmp_path / "job.json"), theirs)
    process.join(60)
    ours.close()
    assert process.exitcode == 3
    assert (tmp_path / LOG_FILE).read_text() == "No module named torch\n"


def test_an_unknown_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown environment 'gtpq'"):
        environments.create("gtpq", tmp_path, print)


def test_a_cell_runs_in_its_environment_and_its_record_says_so(bench: Bench) -> None:  # noqa: F811
    """The interpreter of the tests replaces the environment's: the test covers the way there and back."""
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
