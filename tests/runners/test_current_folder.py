"""Nothing in the current folder is imported, and a fresh workspace runs from any folder inside it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.hardware import Gpu
from runners.worker.import_path import ROOT, leave_current_folder, safe_environment
from runners.worker.preload import compiler_at_first_call, device_interface, gpus_from_nvml
from tests.runners.conftest import Bench

TRAPS = ("pandas", "torch", "numpy", "multiprocessing", "runpy", "sitecustomize", "yaml", "psutil", "tasks", "harness")
PACKAGES = ("harness", "tasks", "runners", "reports", "peft_matrix")


def script(folder: Path) -> Path:
    """The command as pip installs it: a file in a separate folder, so that the driver has no current folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "peft-matrix"
    path.write_text("import sys\nfrom peft_matrix.cli import main\nsys.exit(main())\n")
    return path


def test_modules_beside_a_sweep_are_not_imported(bench: Bench, tmp_path: Path) -> None:
    """Both ways to import them: at the start of the template and of the worker."""
    mark = tmp_path / "imported"
    for name in TRAPS:
        (bench.root / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\n")
    for package in ("transformers", "peft", "datasets"):
        (bench.root / package).mkdir()
        (bench.root / package / "__init__.py").write_text(f"open({str(mark)!r}, 'a').write('{package} ')\n")
    sweep = bench.write(methods=["none"])
    done = subprocess.run(
        [sys.executable, str(script(tmp_path / "bin")), "run", str(sweep)],
        cwd=bench.root, env=bench.environment, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not mark.exists(), mark.read_text()
    assert set(bench.outcomes().values()) == {"ok"}


def test_an_empty_entry_of_pythonpath_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty = safe_environment({"PYTHONPATH": os.pathsep.join(["", "/somewhere", ""])})
    assert empty["PYTHONPATH"] == "/somewhere"
    assert empty["PYTHONSAFEPATH"] == "1"
    assert "PYTHONPATH" not in safe_environment({"PYTHONPATH": ""})
    assert safe_environment({"PYTHONPATH": "/a"}, root=ROOT)["PYTHONPATH"] == f"{ROOT}{os.pathsep}/a"


def test_a_worker_leaves_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere", str(ROOT)])
    (tmp_path / "job").mkdir()
    leave_current_folder(tmp_path / "job")
    assert sys.path == ["/elsewhere", str(ROOT)]
    assert Path.cwd() == tmp_path / "job"


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment in which a copy of this project is installed by pip, editable or as a wheel."""
    for needed in ("pip", "setuptools"):  # looked for, not imported: setuptools replaces distutils where it is imported
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: it builds or installs the copy")
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "reference", "node_modules")
    for name in PACKAGES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py", "setup.cfg", "MANIFEST.in"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    others = [p for p in sys.path if p.endswith("site-packages") and Path(p).is_dir()]
    (site / "others.pth").write_text("".join(f"{p}\n" for p in others))
    command = [sys.executable, "-m", "pip", "--python", str(folder / "env" / "bin" / "python"), "install", "-q"]
    how = ["-e", str(source)] if request.param == "editable" else [str(source)]
    done = subprocess.run(
        [*command, "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", *how],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "env" / "bin" / "peft-matrix"


def test_the_first_sweep_of_a_fresh_workspace_runs(installed: Path, tmp_path: Path, tiny_model: Path) -> None:
    """From two folders of the workspace; on a tiny model instead of the built-in one."""
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environ |= {"PEFT_MATRIX_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def command(*arguments: str, cwd: Path) -> str:
        done = subprocess.run(
            [str(installed), *arguments], cwd=cwd, env=environ, text=True, capture_output=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command("init", "ws", cwd=tmp_path)
    (sweep,) = (tmp_path / "ws").rglob("first.yaml")
    sweep.write_text(sweep.read_text().replace("builtin:nano", str(tiny_model)).replace("steps: 120", "steps: 2"))
    command("run", "first", cwd=tmp_path / "ws")
    records = [json.loads(p.read_text()) for p in (tmp_path / "ws" / "results" / "records").glob("*/*.json")]
    assert [r["outcome"]["status"] for r in records] == ["ok"] * 8
    for record in records:
        assert str(installed.parents[2]) not in json.dumps(record["outcome"])
    assert "8 already done" in command("run", "first", cwd=tmp_path / "ws" / "results")
    assert "8 done" in command("plan", "first", cwd=tmp_path / "ws")
    assert "Page:" in command("board", "first", cwd=tmp_path / "ws")
    assert "gptq" in command("env", "list", cwd=tmp_path)


NOTEBOOK = """
import {first}
import peft_matrix as pm
task = {{"name": "strings-copy", "train_items": 16, "test_items": 8}}
little = {{"evaluation": {{"retention": False, "merged": False}}, "probes": {{"latency_repeats": 0}}}}
sweep = pm.sweep(models=[{model!r}], methods=["none"], tasks=[task], **little)
print(dict(pm.run(sweep, quiet=True).outcomes), pm.plan(sweep).counts)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_script_beside_a_module_named_tasks_runs(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    """The warning names the file; imported before, it is named in the error."""
    theirs = tmp_path / "tasks.py" if kind == "file" else tmp_path / "tasks" / "__init__.py"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("MINE = 1\n")
    script = tmp_path / "notebook.py"
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environ |= {"PEFT_MATRIX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def run(first: str) -> subprocess.CompletedProcess[str]:
        script.write_text(NOTEBOOK.format(first=first, model=str(tiny_model)))
        return subprocess.run(
            [sys.executable, str(script)], cwd=tmp_path, env=environ, text=True, capture_output=True, check=False
        )

    done = run("os")
    assert "{'ok': 1} {'done': 1}" in done.stdout, done.stdout + done.stderr
    assert f"{theirs} has the name of a package of peft-matrix" in done.stderr
    done = run("tasks")
    assert done.returncode == 1
    assert f"ImportError: {theirs} was imported as 'tasks'" in done.stderr


def test_a_sweep_file_brings_its_workspace(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft_matrix as pm

    pm.init(tmp_path / "ws")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PEFT_MATRIX_CACHE", str(tmp_path / "cache"))
    (sweep,) = (tmp_path / "ws").rglob("first.yaml")
    sweep.write_text(sweep.read_text().replace("builtin:nano", str(tiny_model)))
    planned = pm.plan(sweep)
    assert planned.counts == {"run": 8}
    assert pm.load(sweep=sweep).location == str(tmp_path / "ws" / "results")
    assert pm.load().location == str(tmp_path / "elsewhere" / "results")


@pytest.mark.slow
def test_the_sweeps_of_a_fresh_workspace_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As laid out, on the built-in model; one seed and fewer methods."""
    import peft_matrix as pm

    pm.init(tmp_path / "ws")
    monkeypatch.chdir(tmp_path / "ws")
    monkeypatch.setenv("PEFT_MATRIX_CACHE", str(tmp_path / "cache"))
    for name, methods in (("first", "[none, full, {name: lora, learning_rate: 3e-3}]"), ("second", "[full]")):
        little = [f"methods={methods}", "seeds=[0]", "evaluation.retention=false", "probes.latency_repeats=0"]
        done = pm.run(pm.load_sweep(name, changes=little), quiet=True)
        assert set(done.outcomes) == {"ok"}
        rows = [row for section in done.board().table.sections for row in section.rows]
        found = {row.labels["method"]: row.learned.verdict for row in rows if row.learned}
        assert found == ({"full": "learned", "lora": "learned"} if name == "first" else {"full": "learned"})


H100 = Gpu("GPU-a", "NVIDIA H100", 80 * 2**30, 9.0, driver="580", cuda="13.0")
A10 = Gpu("GPU-b", "NVIDIA A10", 24 * 2**30, 8.6, driver="580", cuda="13.0")


def test_gpu_questions_are_answered_by_nvml_while_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def creates_a_context(device: object = None) -> str:
        return "real"

    for name in ("current_device", "get_device_capability", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, creates_a_context)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with gpus_from_nvml([H100, A10]):
        kept = torch.cuda.get_device_capability
        assert torch.cuda.current_device() == 0
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_capability(1) == (8, 6)
        assert torch.cuda.get_device_capability(torch.device("cuda", 1)) == (8, 6)
        assert torch.cuda.get_device_properties("cuda:1").total_memory == 24 * 2**30
        assert device_interface.CudaInterface.Worker.get_device_properties(0).major == 9
    assert torch.cuda.get_device_capability is creates_a_context
    assert kept() == "real"
    assert "cuda" not in device_interface.caching_worker_device_properties


def test_a_function_of_a_library_is_compiled_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []

    def real(function: Callable[[int], int], **options: object) -> Callable[[int], int]:
        given.append(options)
        return lambda x: 10 * function(x)

    monkeypatch.setattr(torch, "compile", real)
    with compiler_at_first_call():

        @torch.compile(dynamic=True)
        def double(x: int) -> int:
            return 2 * x

        plain = torch.compile(abs)
    assert torch.compile is real
    assert given == []
    assert (double(1), double(2), plain(-1)) == (20, 40, 10)
    assert (given, double.__name__) == ([{"dynamic": True}, {}], "double")


def test_without_gpus_nothing_changes() -> None:
    real = torch.cuda.get_device_capability
    with gpus_from_nvml([]):
        assert torch.cuda.get_device_capability is real


@pytest.mark.slow
def test_the_imports_leave_cuda_alone_and_are_frozen() -> None:
    code = (
        "import os, sys, runners.worker.preload, torch; assert not torch.cuda.is_initialized(); "
        "assert os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] == '1'; "
        "assert torch.cuda.is_available() or 'torch._inductor.lowering' not in sys.modules; "
        "assert torch.compile.__module__ == 'torch'; assert 'scipy.stats' not in sys.modules; "
        "import gc; assert gc.get_freeze_count() > 10 * len(gc.get_objects())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
