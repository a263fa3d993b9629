"""The compatibility table: light, complete, as committed, and true on a sample of its pairs."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

import peft_matrix as pm
from harness import hardware as hw
from harness import provenance
from harness.errors import UserError
from harness.matrix import make_cell
from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
from harness.spec_axes import MethodSpec, ModelSpec, QuantizationSpec, TaskUse
from peft_matrix.cli import app
from runners import environments
from runners.executors.side_environment import OutsideProcess
from runners.planning.refusals import unsupported_reason
from runners.planning.resolver import Resolver
from runners.tools import compat
from runners.worker.job import LOG_FILE
from runners.workspace import Workspace
from tests.methods.tiny import PARAMS
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture

MOMENTS: tuple[Literal["before_training", "after_merge"], ...] = ("before_training", "after_merge")
SAMPLE = 40
"""About how many pairs: every n-th of all that a CPU can run."""


def test_the_table_loads_no_model_library() -> None:
    code = (
        "import sys; from runners.tools import compat; compat.to_markdown(compat.pairs());"
        "sys.exit(any(m in sys.modules for m in ('torch', 'peft', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_pair_is_there_and_answers_hang_together() -> None:
    found = compat.pairs()
    assert len(found) == 2 * len(METHODS.names()) * len(QUANTIZERS.names())
    for p in found:
        assert not p.scores or p.scores == p.trains == p.merges  # what cannot be scored can do nothing else
        assert not p.trains or p.merges


@pytest.mark.parametrize(
    ("method", "quantizer", "trains", "merges", "after"),
    [
        ("lora", "none", True, True, True),
        ("lora", "quanto-int8", True, False, True),
        ("lora", "torchao-int8-dynamic", False, False, True),
        ("full", "bnb-nf4", False, False, True),
        ("prefix", "bnb-nf4", True, False, False),
        ("lora", "prune-dsnot", True, False, True),
        ("full", "fp16", False, False, True),
    ],
)
def test_the_table_has_the_known_facts(method: str, quantizer: str, trains: bool, merges: bool, after: bool) -> None:
    p = compat.pair(method, quantizer, "cpu", "causal-lm")
    assert (not p.trains, not p.merges, not p.after_merge) == (trains, merges, after), p


def test_plan_and_compat_say_the_same(tmp_path: Path) -> None:
    """Every method with every quantizer, both moments and devices: verdict and reason; plan adds what lacks here."""
    sweep = pm.sweep(models=["builtin:nano"], methods=["none"], tasks=["strings-copy"])
    resolver = Resolver(sweep, Workspace.discover(), hw.probe())
    rest = [
        resolver.task_point(TaskUse(name="strings-copy"), ""),
        resolver.hardware_point("any", "", hw.load_profiles(())),
        resolver.common_point(),
    ]
    model = resolver.model_point(ModelSpec(id="builtin:nano"), "")
    bases = {
        (name, moment): resolver.quantization_point(QuantizationSpec(name=name, moment=moment), "")
        for name in QUANTIZERS
        for moment in MOMENTS
    }
    asked, differ = 0, []
    for name in METHODS:
        method = resolver.method_point(MethodSpec(name=name, params=PARAMS.get(name, {})), "")
        for (quantizer, moment), base in bases.items():
            cell = make_cell((model, method, base, *rest), 0)
            for device in compat.DEVICES:
                planned = unsupported_reason(cell, device, tmp_path)
                found = compat.pair(name, quantizer, device, "causal-lm")
                told = found.scores if moment == "before_training" else found.after_merge
                lacks = environments.why_not(QUANTIZERS.get(quantizer), device, moment, tmp_path)
                lacks = lacks or METHODS.get(name).missing(method.identity["params"])
                asked += 1
                if planned != (told or lacks or None):
                    differ.append((name, quantizer, moment, device, planned, told))
    assert asked == 4 * len(METHODS.names()) * len(QUANTIZERS.names())
    assert differ == []


def test_rows_give_true_or_the_reason() -> None:
    (row,) = compat.as_rows(compat.pairs(device="cpu", method="lora", quantizer="torchao-int4"))
    assert row["trains"] == "torchao-int4 needs a cuda device"
    (row,) = compat.as_rows(compat.pairs(device="cuda", method="lora", quantizer="bnb-nf4"))
    assert row["trains"] is row["merges"] is row["after_merge"] is True


def test_the_terminal_says_what_works_without_numbers_to_look_up() -> None:
    found = compat.pairs(device="cpu", method="lora")
    rows = compat.by_answer(found)
    named = [name for row in rows for name in str(row["quantizers"]).split(", ")]
    assert sorted(named) == sorted(p.quantizer for p in found)
    answers = {name: row for row in rows for name in str(row["quantizers"]).split(", ")}
    assert (answers["bnb-nf4"]["quantized before training"], answers["bnb-nf4"]["merge into it"]) == (
        "trains",
        "merges",
    )
    assert "silently wrong" in str(answers["quanto-int8"]["merge into it"])
    assert answers["torchao-int4"]["quantized before training"] == "torchao-int4 needs a cuda device"
    done = CliRunner().invoke(app, ["compat", "--method", "lora", "--device", "cpu"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80


def _sample() -> list[tuple[str, str]]:
    from tests.quantizers.compat_all import runnable

    every = runnable()
    step = max(1, len(every) // SAMPLE) | 1
    return every[::step]


@pytest.mark.parametrize(("method", "quantizer"), _sample(), ids="-".join)
def test_declaration_and_fact_agree(method: str, quantizer: str) -> None:
    from tests.quantizers.compat_all import disagreements

    assert disagreements(method, quantizer) == []


@pytest.mark.parametrize("broken", ["trains", "merges"])
def test_a_wrong_declaration_is_found(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quanto's merge is declared to work, and int8 dynamic activations to train: the facts say otherwise."""
    from dataclasses import replace

    from tests.quantizers.compat_all import disagreements

    name = {"trains": "torchao-int8-dynamic", "merges": "quanto-int8"}[broken]
    pytest.importorskip("torchao" if broken == "trains" else "optimum.quanto")
    cls = QUANTIZERS.get(name)
    base = {"trains": "torchao-int8", "merges": "torchao-int8"}[broken]
    monkeypatch.setattr(cls, "declaration", replace(cls.declaration, base=base, no_gradient="", refuses_merge=""))
    assert disagreements("lora", name)


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
