"""The command line: commands answer in tables and in JSON, at once and without heavy imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.record import CellView
from peft_matrix.cli import PANELS, app
from peft_matrix.console import settings
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("verb", ["methods", "quantizers", "tasks", "models", "doctor"])
def test_a_listing_verb_prints_a_table_and_json(bench: Bench, verb: str) -> None:  # noqa: F811
    as_json = bench(verb, "--json")
    assert as_json.returncode == 0, as_json.stderr
    rows = json.loads(as_json.stdout)
    assert rows
    first = str(next(iter(rows[0].values())))
    table = bench(verb)
    assert table.returncode == 0
    assert first in table.stdout


def test_one_method_is_shown_whole(bench: Bench) -> None:  # noqa: F811
    shown = bench("methods", "lora").stdout
    assert {"2106.09685v2", "alpha", "lr_factor", "evidence"} <= set(shown.replace(",", " ").split())
    assert bench("methods", "lorra").returncode == 2
    whole = bench("methods").stdout.splitlines()
    rows = json.loads(bench("methods", "--json").stdout)
    assert len(whole) == len(rows) + len({row["family"] for row in rows}) + 1, "one line each"
    assert max(map(len, whole)) <= 80
    wide = bench("methods", "--family", "side network").stdout
    assert max(len(line) for line in wide.splitlines()) <= 80


def test_doctor_says_what_to_install(bench: Bench) -> None:  # noqa: F811
    rows = {r["what"]: r for r in json.loads(bench("doctor", "--json").stdout)}
    assert rows["disk of the cache"]["found"].endswith("GiB free")
    assert rows["Hub"]["found"] == "offline"
    missing = [r for name, r in rows.items() if name.startswith("quantizer ")]
    assert missing
    assert all(r["note"] for r in missing)
    assert any("pip install" in r["note"] for r in missing)


def test_show_status_and_board_after_a_run(bench: Bench) -> None:  # noqa: F811
    path = str(bench.write(methods=["none", "full"], quantization=["none", "bnb-nf4"], summary="What four bits cost."))
    assert bench("run", path).returncode == 0
    stands = json.loads(bench("status", path, "--json").stdout)
    assert stands["counts"] == {"ok": 3, "unsupported": 1}
    assert stands["failures"][0]["status"] == "unsupported"
    label = next(r["label"] for r in bench.records() if r["outcome"]["status"] == "ok")
    shown = json.loads(bench("show", label, "--json").stdout)
    assert shown["label"] == label
    text = bench("show", label).stdout
    assert "accuracy" in text
    assert "evaluate" in text
    assert "  method         none" in text
    assert "No value (no_device: the cell runs on cpu)" in text
    printed = bench("board", path)
    assert printed.returncode == 0, printed.stderr
    folder = bench.root / "results" / "boards" / "quick"
    for name in ("board.md", "board.csv", "board.json", "board.html"):
        assert (folder / name).stat().st_size > 0
    assert list(folder.glob("*.svg"))
    assert printed.stdout.startswith("quick: What four bits cost\n")
    assert bench("site", path, "--out", "pages").returncode == 0
    page = (bench.root / "pages" / "quick" / "index.html").read_text(encoding="utf-8")
    assert "<title>What four bits cost · quick · peft-matrix</title>" in page
    assert str(folder / "board.html") in printed.stdout
    assert "unsupported" in printed.stdout
    board = json.loads(bench("board", path, "--json").stdout)
    assert board
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert bench("board", path).returncode == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before, "byte for byte the same"
    assert "no smells" in bench("check", path).stdout
    nothing = bench("show", "no-such-cell")
    assert nothing.returncode == 2
    assert len(nothing.stderr.strip().splitlines()) == 1


def test_an_edited_sweep_keeps_its_board_and_says_what_differs(bench: Bench) -> None:  # noqa: F811
    path = str(bench.write(methods=["bitfit"]))
    assert bench("run", path).returncode == 0
    first = bench("board", path).stdout
    assert "other settings" not in first
    boards = bench.root / "results" / "boards"
    before = {p.name: p.read_bytes() for p in (boards / "quick").iterdir()}
    steps = bench.sweep["training"]["steps"]
    bench.write(methods=["bitfit"], training={**bench.sweep["training"], "steps": steps + 1})
    after = bench("board", path).stdout
    assert f"Not on this board: 1 record of quick with other settings: steps {steps}, here {steps + 1}" in after
    assert f"peft-matrix board {path} --from-records" in after
    assert f"results archive --sweep {path} --earlier-settings" in after
    assert {p.name: p.read_bytes() for p in (boards / "quick.earlier-1").iterdir()} == before
    assert "it is kept" not in bench("board", path).stdout, "an empty board has nothing to keep"
    assert "bitfit" in bench("board", path, "--from-records").stdout
    assert f"earlier-1{os.sep}board.html" in bench("board", path).stdout, "kept once"
    assert sorted(p.name for p in boards.iterdir()) == ["quick", "quick.earlier-1"]
    assert bench("run", path).returncode == 0
    (old,) = [r for r in bench.records() if r["cell"]["method"]["steps"] == steps]
    shown = bench("show", old["label"]).stdout
    assert f"Also {old['key']} of" in shown
    assert f"under this label, with other settings: steps {steps}, here {steps + 1}" in shown


def test_a_corrupt_record_is_named_and_the_rest_loads(bench: Bench) -> None:  # noqa: F811
    path = str(bench.write(methods=["none", "bitfit"]))
    assert bench("run", path).returncode == 0
    victim = next((bench.root / "results" / "records").glob("*/*.json"))
    victim.write_text(victim.read_text()[:-40])
    stands = json.loads(bench("status", path, "--json").stdout)
    assert stands["counts"] == {"ok": 1, "planned": 1}
    assert victim.name in stands["damaged"][0]["path"]
    assert (bench.root / "results" / "quarantine" / victim.name).is_file()
    again = bench("run", path)
    assert "1 ok; 1 already done" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["rnu"]),
        (["run"], ["Missing argument", "sweep", "See 'peft-matrix run --help'."]),
        (["results", "gc", "--bogus"], ["--bogus", "See 'peft-matrix results gc --help'."]),
        (["run", "no-such-sweep"], ["unknown sweep", "Allowed", "quickstart"]),
        (["run", "./nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["plan", "quickstart", "--rerun", "eror"], ["unknown status 'eror'", "Did you mean 'error'", "stale"]),
        (["plan", "quickstart", "--only", "*nothing*"], ["no cell matches", "for example"]),
        (["tasks", "--data-root", "/no/such/folder"], ["data root", "not a folder"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(bench: Bench, arguments: list[str], words: list[str]) -> None:  # noqa: F811
    ended = bench(*arguments)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in ended.stderr


def test_the_help_has_every_command_in_one_group() -> None:
    grouped = [name for names in PANELS.values() for name in names]
    commands = [command.name for command in app.registered_commands]
    assert sorted(grouped) == sorted([*commands, *(group.typer_instance.info.name for group in app.registered_groups)])
    text = CliRunner().invoke(app, ["-h"]).stdout
    assert all(panel in text for panel in PANELS)
    assert "Exit codes" in text


def test_settings_of_a_cell_are_short_lines() -> None:
    cell = {
        "model": {"id": "builtin:nano", "dtype": "float32"},
        "method": {
            "name": "lora",
            "learning_rate": 0.003,
            "params": {"r": 8, "dropout": 0.0, "target_modules": ["q", "v"]},
        },
        "quantization": {"name": "none", "params": {}},
        "task": {"name": "strings-copy", "train_items": 40, "test_items": 8},
        "training": {"steps": 100, "batch_size": 32},
        "seed": 1,
    }
    assert settings(CellView(cell)) == {
        "model": "builtin:nano, float32",
        "method": "lora: learning rate 0.003, 100 steps, r=8, target_modules=q v",
        "quantization": "none",
        "task": "strings-copy, 40 train, 8 test",
        "batch": "32 x 1",
        "seed": "1",
    }


def test_a_plan_prints_learning_rates_and_steps() -> None:
    done = CliRunner().invoke(app, ["plan", "quickstart", "--only", "*.dora.*"])
    assert done.exit_code == 0
    assert "dora: learning rate 0.003, 100 steps, r=8" in " ".join(done.stdout.split())


def test_quantizers_refused_for_one_reason_share_it() -> None:
    done = CliRunner().invoke(app, ["methods", "mezo"])
    assert done.exit_code == 0
    assert " ".join(done.stdout.split()).count("its quantized weights are integers") == 1


def test_version_and_a_call_without_arguments() -> None:
    program = [sys.executable, "-m", "peft_matrix.cli"]
    version = subprocess.run([*program, "--version"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert version.stdout == f"peft-matrix {metadata.version('peft-matrix')}\n"
    bare = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False)
    assert bare.returncode == 2
    assert "Usage" in bare.stdout + bare.stderr
    assert "peft-matrix: " not in bare.stderr


def test_a_finished_sweep_needs_no_heavy_library(bench: Bench) -> None:  # noqa: F811
    path = str(bench.write(methods=["none"]))
    assert bench("run", path).returncode == 0
    script = (
        "import sys; sys.argv = ['peft-matrix', 'run', sys.argv[1]]\n"
        "from peft_matrix.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print(sorted({'torch', 'transformers', 'peft', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        cwd=bench.root,
        env=bench.environment,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_built_in_sweeps_plan(bench: Bench) -> None:  # noqa: F811
    data = Path(__file__).parents[2] / "shared" / "data"
    for sweep in json.loads(bench("plan", "--list", "--json").stdout):
        arguments = ["--data-root", str(data)] if data.is_dir() else []
        planned = bench("plan", sweep["sweep"], "--json", *arguments)
        assert planned.returncode == 0, planned.stderr
        made = json.loads(planned.stdout)
        parts = ("run", "done", "stale", "elsewhere", "unsupported", "later")
        assert made["cells"] == sum(len(made[p]) for p in parts) > 0
        assert all(row["why"] for row in made["unsupported"] + made["elsewhere"])
