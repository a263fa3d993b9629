"""The Python API: sweeps from values, plans, runs, frames and boards; the command line is a skin over it."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import peft_matrix as pm
from harness.yamlfile import load_yaml
from peft_matrix.commands import GROUPS, VERBS
from peft_matrix.targets import open_workspace
from runners.running.run import choice_of

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference" / "cpu-2core"
PAGE = ROOT / "docs" / "howto" / "notebook.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An empty folder and cache, as a notebook would be started in."""
    here = tmp_path_factory.mktemp("api")
    before = Path.cwd(), dict(os.environ)
    os.environ.update({"PEFT_MATRIX_CACHE": str(here / "cache"), "HF_HUB_OFFLINE": "1"})
    os.chdir(here)
    yield here
    os.chdir(before[0])
    os.environ.clear()
    os.environ.update(before[1])


@pytest.fixture(scope="module")
def sweep(folder: Path, tiny_model: Path) -> pm.LoadedSweep:
    return pm.sweep(
        models=(str(tiny_model),),
        methods=("none", {"name": "lora", "params": {"r": 2}}),
        tasks=[{"name": "strings-copy", "train_items": 32, "test_items": 16}],
        training={"steps": 2, "batch_size": 4},
        evaluation={"retention": False, "merged": False},
        probes={"latency_repeats": 0},
    )


@pytest.fixture(scope="module")
def ran(sweep: pm.LoadedSweep) -> pm.Run:
    before = dict(os.environ)
    done = pm.run(sweep, quiet=True)
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert not {name for name in changed if name.startswith(("PYTHON", "OMP_", "TOKENIZERS_"))}, "a run changes nothing"
    return done


# --- sweeps ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [list, tuple])
def test_sweeps_take_lists_and_tuples(kind: type) -> None:
    made = pm.sweep(
        models=kind(["builtin:nano"]), methods=kind(["lora", {"name": "full"}]), tasks=kind(["strings-copy"])
    )
    assert [method.name for method in made.spec.methods] == ["lora", "full"]
    assert made.spec.models[0].id == "builtin:nano"
    assert made.path is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": ["lora"]}, "key 'metods': unknown key 'metods'. Did you mean 'methods'"),
        ({"training": {"steps": 0}}, "greater than 0"),
        ({"methods": []}, "at least 1 entry"),
        ({"name": "My Sweep"}, "key 'name'"),
    ],
)
def test_a_wrong_sweep_names_the_key(change: dict[str, Any], message: str) -> None:
    values = {"models": ["builtin:nano"], "methods": ["lora"], "tasks": ["strings-copy"], **change}
    with pytest.raises(pm.UserError) as error:
        pm.sweep(**values)
    assert message in str(error.value)


def test_an_unknown_method_is_named_with_its_place() -> None:
    made = pm.sweep(models=["builtin:nano"], methods=["lorra"], tasks=["strings-copy"])
    with pytest.raises(pm.UserError, match=r"sweep 'notebook', key 'methods.0': unknown method 'lorra'"):
        pm.plan(made)


def test_a_label_of_a_model_is_no_part_of_its_key(sweep: pm.LoadedSweep, tiny_model: Path) -> None:
    model = sweep.spec.models[0]
    named = sweep.spec.model_copy(update={"models": (model.model_copy(update={"label": "mine"}),)})
    plain, labelled = (pm.plan(one).plan for one in (sweep, pm.LoadedSweep(named)))
    assert [cell.key for cell in plain.cells] == [cell.key for cell in labelled.cells]
    assert {cell.label.split(".")[0] for cell in labelled.cells} == {"mine"}
    assert {cell.as_dict()["model"]["label"] for cell in labelled.cells} == {"mine"}
    assert "label" not in labelled.cells[0].model.identity
    twice = [{"id": "a/b", "label": "x"}, {"id": "c/b", "label": "x"}]
    with pytest.raises(pm.UserError, match="models: the label 'x' is given twice"):
        pm.sweep(models=twice, methods=["lora"], tasks=["strings-copy"])


# --- plan, run, frame, board -----------------------------------------------------------------------
def test_a_plan_has_a_row_per_cell(sweep: pm.LoadedSweep, ran: pm.Run) -> None:
    planned = pm.plan(sweep)
    assert planned.counts == {"done": 2}
    assert list(planned.frame()["state"]) == ["done", "done"]
    assert "<table>" in planned._repr_html_()


def test_a_run_gives_a_small_frame(ran: pm.Run) -> None:
    assert ran.outcomes == {"ok": 2}
    assert not ran.failed
    frame = ran.frame()
    assert list(frame.columns) == list(pm.columns())
    assert sorted(frame["method"]) == ["lora", "none"]
    lora = frame[frame["method"] == "lora"].iloc[0]
    assert lora["train_s"] > 0
    assert lora["trainable_parameters"] > 0
    assert lora["train_peak_rss_bytes"] > 1e6
    assert 0 <= lora["accuracy"] <= 1


def test_one_row_per_configuration(ran: pm.Run) -> None:
    frame = ran.frame(per="configuration")
    assert list(frame.columns) == list(pm.columns("configuration"))
    assert list(frame["seeds"]) == [1, 1]
    assert (frame["accuracy_low"] <= frame["accuracy"]).all()
    assert (frame["accuracy"] <= frame["accuracy_high"]).all()


def test_the_raw_frame_has_every_reading(ran: pm.Run) -> None:
    raw = ran.frame(raw=True)
    assert {"train.peak_rss_bytes", "train.peak_rss_bytes:source", "accuracy:n"} <= set(raw.columns)
    assert len(raw) == 2


def test_a_board_is_shown_and_saved(ran: pm.Run, tmp_path: Path) -> None:
    board = ran.board()
    html = board._repr_html_()
    assert html.count("<tr>") == 3
    assert "<script" not in html
    assert "lora" in str(board)
    told = pm.LoadedSweep(ran.sweep.spec.model_copy(update={"summary": "Two rows."}))
    assert ran.results.board(told, planned=True).table.board.title == "notebook: Two rows"
    board.save(tmp_path / "out")
    assert {"board.md", "board.csv", "board.json", "board.html"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_the_same_cells_run_once(sweep: pm.LoadedSweep, ran: pm.Run) -> None:
    again = pm.run(sweep, quiet=True)
    assert not again.outcomes
    assert len(again.frame()) == 2
    other = pm.run(pm.LoadedSweep(sweep.spec.model_copy(update={"name": "other"})), quiet=True)
    assert not other.outcomes
    assert len(other.frame()) == 2  # the cells are the same, whatever the sweep is called


def test_a_run_works_in_another_thread(sweep: pm.LoadedSweep, ran: pm.Run) -> None:
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(pm.run(sweep, only="*lora*", rerun=("all",), quiet=True).outcomes)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(300)
    assert found == [{"ok": 1}]


def test_a_script_without_a_main_guard_runs_once(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import peft_matrix as pm\n"
        "print('started')\n"
        f"sweep = pm.sweep(models=[{str(tiny_model)!r}], methods=['none'], name='script', training={{'steps': 1}},\n"
        "    tasks=[{'name': 'strings-copy', 'train_items': 8, 'test_items': 4}], evaluation={'retention': False})\n"
        "print(dict(pm.run(sweep, results='script-results', quiet=True).outcomes))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environ, text=True, capture_output=True)
    assert done.stdout == "started\n{'ok': 1}\n", done.stderr


# --- results ---------------------------------------------------------------------------------------
def test_results_of_a_store_by_sweep() -> None:
    results = pm.load(REFERENCE)
    assert "quickstart" in results.sweeps()
    frame = results.frame(sweep="quickstart")
    assert set(frame["sweep"]) == {"quickstart"}
    assert frame["accuracy"].between(0, 1).any()
    assert len(results.frame()) > len(frame)


def test_an_empty_store_gives_an_empty_frame(tmp_path: Path) -> None:
    frame = pm.load(tmp_path).frame()
    assert frame.empty
    assert list(frame.columns) == list(pm.columns())


def test_trials_are_left_out_of_a_frame() -> None:
    results = pm.load(ROOT / "results" / "reference" / "cpu-2core-tuning")
    assert 0 < len(results.frame()) < len(results.frame(trials=True))


def test_listings_are_rows_and_frames() -> None:
    methods = pm.methods()
    assert {"lora", "full"} <= {row["method"] for row in methods}
    assert isinstance(methods.frame(), pd.DataFrame)
    assert "<td>lora</td>" in methods._repr_html_()
    optimizers = {row["method"] for row in pm.methods(family="optimizer", trains_on="nf4")}
    assert "galore" not in optimizers  # it trains the weights themselves, which must be floating point
    assert "lora-refactor" in optimizers
    (lora,) = pm.methods("lora")
    assert (lora["defaults"]["r"], lora["family"]) == (8, "adapter")
    with pytest.raises(pm.UserError, match="no method has the family 'optimiser'"):
        pm.methods(family="optimiser")
    pair = pm.compat(device="cpu", method="lora", quantizer="none")
    assert [row["trains"] for row in pair] == [True]
    with pytest.raises(pm.UserError, match="unknown model kind"):
        pm.compat(kind="diffusion")


# --- the package -----------------------------------------------------------------------------------
def test_every_exported_name_exists_and_is_documented() -> None:
    for name in pm.__all__:
        thing = getattr(pm, name)
        assert name == "__version__" or inspect.getdoc(thing), name
    assert sorted(pm.__all__) == dir(pm)
    for_types = next(n for n in ast.parse(Path(pm.__file__).read_text()).body if isinstance(n, ast.If))
    typed = {a.name for node in for_types.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert typed == set(pm.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        _ = pm.swep


def test_the_import_is_light() -> None:
    code = (
        "import sys, peft_matrix as pm; pm.sweep(models=['builtin:nano'], methods=['lora'], tasks=['strings-copy']);"
        "print(sorted({'torch', 'transformers', 'pandas', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_command_line_is_a_skin_over_the_api() -> None:
    """No verb reaches past the API: what it does can be done from Python."""
    allowed = {"harness.errors", "harness.spec"}  # the error, and the type of a sweep
    for path in sorted((ROOT / "peft_matrix" / "commands").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                top = str(module).split(".")[0]
                assert top not in ("harness", "tasks", "runners", "reports") or module in allowed, (path.name, module)


API_OF = {
    "board": "load",
    "check": "check_board",
    "import_": "import_results",
    "show": "record",
    "export_": "export_cell",
    "env": "environments",
    "index_": "update_index",
    "gc": "garbage",
    "rm": "load",
    "archive": "load",
}


def test_every_verb_has_a_function() -> None:
    commands = [*VERBS, *(c.callback for group in GROUPS for c in group.registered_commands if c.callback)]
    for command in commands:
        name = API_OF.get(command.__name__, command.__name__)
        assert name in pm.__all__, f"{command.__name__} has no function in peft_matrix"


# --- keys of the files -----------------------------------------------------------------------------
FILES = {"sweep": "runners/sweeps", "task": "tasks/definitions", "board": "reports/boards"}


@pytest.mark.parametrize("kind", FILES)
def test_the_schema_accepts_every_file_and_no_typo(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(pm.schema(kind))
    for path in sorted((ROOT / FILES[kind]).glob("*.yaml")):
        content = json.loads(json.dumps(load_yaml(path)[0]))
        assert [(path.name, e.message) for e in check.iter_errors(content)] == []
        assert not check.is_valid({**content, "sumary": "a typo"})


@pytest.mark.parametrize("kind", FILES)
def test_every_key_has_a_meaning(kind: str) -> None:
    made = pm.schema(kind)
    parts = {kind: made, **made.get("$defs", {})}
    keys = [(name, key, value) for name, part in parts.items() for key, value in part.get("properties", {}).items()]
    assert [f"{name}.{key}" for name, key, value in keys if not value.get("description")] == []


DEFAULTS = {"results": "records", "data_root": "rows", "cache": "made", "hardware": ["cpu"], "workers": 2}


def test_a_workspace_sets_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESULTS", "DATA", "CACHE"):
        monkeypatch.delenv(f"PEFT_MATRIX_{name}", raising=False)
    root = (tmp_path / "ws").resolve()
    pm.init(root)
    (root / "rows").mkdir()
    monkeypatch.chdir(root / "tasks")
    assert open_workspace().results == str(root / "results"), "what init writes changes nothing"
    (root / "peft-matrix.yaml").write_text(json.dumps({"version": 1, **DEFAULTS}))
    found = open_workspace()
    assert (found.results, found.data_root, found.cache) == (str(root / "records"), root / "rows", root / "made")
    assert pm.load_sweep("first").spec.hardware == ("cpu",)
    own = root / "own.yaml"
    own.write_text((root / "runners/sweeps/first.yaml").read_text() + "hardware: [any]\n")
    assert pm.load_sweep(own).spec.hardware == ("any",)
    choice = choice_of(pm.load_sweep("quickstart"), found)
    assert (choice.name, choice.workers) == ("local", 2)
    assert choice_of(pm.load_sweep(own), found, workers=3).workers == 3
    monkeypatch.setenv("PEFT_MATRIX_RESULTS", "elsewhere")
    assert open_workspace().results == str(root / "tasks" / "elsewhere")
    assert open_workspace("named").results == str(root / "tasks" / "named")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("result: r", "peft-matrix.yaml, line 1, key 'result': unknown key 'result'. Did you mean 'results'?"),
        ("workers: many", "key 'workers': must be a whole number. Found: 'many'."),
        ("executor: locl", "key 'executor': unknown executor 'locl'. Did you mean 'local'?"),
        ("hardware: [cpuu]", "key 'hardware': unknown hardware profile 'cpuu'. Did you mean 'cpu'"),
        ("data_root: nowhere", "key 'data_root': the data root"),
    ],
)
def test_a_wrong_default_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.delenv("PEFT_MATRIX_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "peft-matrix.yaml").write_text(text + "\n")
    with pytest.raises(pm.UserError) as error:
        pm.run("quickstart")
    assert message in str(error.value)


def test_values_set_for_a_sweep_are_part_of_its_cells(folder: Path) -> None:
    usual = {row["key"] for _, row in pm.plan("quickstart").frame().iterrows()}
    more = pm.load_sweep("quickstart", changes=["training.steps=7", "seeds=[3]", "methods=[lora]"])
    assert (more.spec.training.steps, more.spec.seeds, len(more.spec.methods)) == (7, (3,), 1)
    assert not usual & {row["key"] for _, row in pm.plan(more).frame().iterrows()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.steeps=7", "unknown key 'steeps'"),
        ("training.steps", "is not KEY=VALUE"),
        ("training.steps.more=7", "-o training.steps.more: there is nothing to set at 'more'"),
        ("methods.99.name=lora", "there is no '99' here"),
        ("training.steps=[", "is not YAML"),
    ],
)
def test_a_wrong_change_is_one_sentence(change: str, message: str) -> None:
    with pytest.raises(pm.UserError) as error:
        pm.load_sweep("quickstart", changes=[change])
    assert message in str(error.value)


# --- the page --------------------------------------------------------------------------------------
def test_the_notebook_page_runs(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every code block of the page, in order, in one namespace, on a smaller model."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        tree = ast.parse(block.replace('"builtin:nano"', repr(str(tiny_model))).replace('"steps": 200', '"steps": 2'))
        exec(compile(tree, str(PAGE), "exec"), names)
    assert names["run"].outcomes == {"ok": 2}
    assert (tmp_path / "out" / "board.html").is_file()


def test_modules_of_the_package_import_alone() -> None:
    for path in (ROOT / "peft_matrix").rglob("*.py"):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
