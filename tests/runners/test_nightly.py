"""Nights from end to end: real cells in real processes, and the examples that start them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.record import Record
from harness.store.store import Store
from peft_matrix.cli import app
from tests.runners.conftest import Bench

DOCS = Path(__file__).parents[2] / "docs" / "nightly"
BOARDS = Path(__file__).parents[2] / "reports" / "boards"


def edited(record: Record, **changes: object) -> Record:
    return record.model_copy(update={"samples": None, **changes})


def test_three_nights(bench: Bench) -> None:
    """The first runs all, the second nothing, the third what is stale; a drop that was planted before it is found."""
    path, store = str(bench.write()), Store(bench.root / "results")
    summary = bench.root / "results" / "nightly" / "summary.md"

    first = bench("nightly", path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert set(bench.outcomes().values()) == {"ok"}
    assert "# Night of quick\n\nRan: 2 ok.\n" in summary.read_text()
    site = bench.root / "results" / "nightly" / "site" / "index.html"
    assert "quick" in site.read_text()
    assert (bench.root / "results" / "nightly" / "board" / "board.md").exists()

    site.unlink()
    boards = bench.root / "reports" / "boards"
    boards.mkdir(parents=True)
    board = (
        (BOARDS / "default.yaml").read_text().replace("[cuda_allocated_peak_bytes, rss_growth_bytes]", "peak_rss_bytes")
    )
    (boards / "rss.yaml").write_text(board.replace("name: default", "name: rss"))
    second = bench("nightly", str(bench.write(board="rss")))
    assert second.returncode == 1, "the board does not pass its checks"
    assert "Ran: nothing was stale." in summary.read_text()
    assert "- unsound: section 1: peak RSS is a Pareto axis" in summary.read_text()
    bench.write()
    assert len(bench.records()) == 2
    assert site.exists()

    # six earlier nights on which lora trained a thousand times faster, and a base measured in another environment only
    by_method = {record.cell["method"]["name"]: record for record in store.records()[0]}
    lora, base = by_method["lora"], by_method["none"]
    step = lora.metrics["step_ms"]
    assert step.value is not None
    for night in range(6):
        faster = step.model_copy(update={"value": step.value / (1000 + night)})
        metrics = {**lora.metrics, "step_ms": faster}
        store.append(edited(lora, metrics=metrics, finished=f"2020-01-0{night + 1}T00:00:00+00:00"))
    for entry in store.entries_of(base.key):
        (bench.root / "results" / entry.path).unlink()
    packages = {**base.environment["packages"], "torch": "2.0.0"}
    before = "2020-01-06T00:00:00+00:00"
    store.append(
        edited(base, environment={**base.environment, "packages": packages}, fingerprint="f" * 64, finished=before)
    )
    held = len(bench.records())

    third = bench("nightly", path, "--no-confirm")
    assert third.returncode == 1, third.stdout + third.stderr
    assert len(bench.records()) == held + 1  # only the stale cell ran
    assert "Ran: 1 ok." in summary.read_text()
    worse = re.findall(r"^- `([^`]+)` `step_ms`: .* → ", summary.read_text(), flags=re.M)
    assert worse == [lora.label]
    assert re.search(r"\*\*Environment changed\*\* on 1 cells .*torch 2\.0\.0 → ", summary.read_text())
    found = json.loads((bench.root / "results" / "nightly" / "regressions.json").read_text())
    assert [change["cells"] for change in found["environment_changes"]] == [1]


def test_wrong_input_is_exit_code_2(bench: Bench) -> None:
    done = bench("nightly", str(bench.write(tasks=["nosuch"])))
    assert done.returncode == 2
    assert "nosuch" in done.stderr


# --- the examples --------------------------------------------------------------------------------
def commands(text: str) -> list[list[str]]:
    """Every call of the program in a text, as words."""
    found = re.findall(r"(?:^|[\s/])peft-matrix (nightly .*?)(?:$| > | \|\| |; )", text, flags=re.M)
    return [shlex.split(line.replace("$SWEEP", "quickstart")) for line in found]


@pytest.mark.parametrize("name", ["github-actions.yml", "crontab", "peft-matrix-nightly.service"])
def test_nightly_examples_use_existing_command_and_options(name: str) -> None:
    calls = commands((DOCS / name).read_text(encoding="utf-8"))
    assert len(calls) == 1
    (verb, sweep, *options) = calls[0]
    assert sweep == "quickstart"
    told = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for option in options:
        assert not option.startswith("--") or option in told


def test_the_workflow_is_one_that_github_reads() -> None:
    """As far as it can be checked without GitHub: its keys, required parts of each step, and scripts that parse."""
    flow = yaml.safe_load((DOCS / "github-actions.yml").read_text(encoding="utf-8"))
    assert set(flow) == {"name", True, "permissions", "concurrency", "env", "jobs"}  # YAML reads `on` as True
    assert [set(entry) for entry in flow[True]["schedule"]] == [{"cron"}]
    assert re.fullmatch(r"(\S+ ){4}\S+", flow[True]["schedule"][0]["cron"])
    (job,) = flow["jobs"].values()
    assert set(job) == {"runs-on", "timeout-minutes", "steps"}
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert set(step) <= {"name", "id", "if", "uses", "with", "run", "working-directory"}
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        else:
            subprocess.run(["bash", "-n", "-c", step["run"]], check=True)
    assert "summary.md" in json.dumps(job)


def test_the_units_are_in_order(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here")
    for name in ("peft-matrix-nightly.service", "peft-matrix-nightly.timer"):
        text = (DOCS / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M))
    units = [str(tmp_path / name) for name in ("peft-matrix-nightly.service", "peft-matrix-nightly.timer")]
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "peft-matrix" in line and "Unknown" in line]
    assert not ours, done.stderr


def test_the_crontab_is_one_night_a_line() -> None:
    lines = [line for line in (DOCS / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    jobs = [line for line in lines if not re.match(r"^[A-Z_]+=", line)]
    assert len(jobs) == 1
    assert re.match(r"^\d+ \d+ \* \* \* ", jobs[0])
    subprocess.run(["bash", "-n", "-c", jobs[0].split(maxsplit=5)[5]], check=True)
