"""Overhead of the scheduler: cells that do nothing through real processes, and two workers against one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.runners import cheap

REPOSITORY = Path(__file__).parents[2]
FEW, MANY = 10, 110
SLEEPING_MS = 300


def wall_s(cells: int, workers: int, steps: int) -> float:
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


def figures() -> Iterator[tuple[str, float, str, str]]:
    """Name, value, unit, note."""
    empty = (wall_s(MANY, 1, 1) - wall_s(FEW, 1, 1)) / (MANY - FEW)
    note = f"claim, lease, fork, a cell of 1 ms, record with samples synced to disk; slope over {MANY - FEW} cells"
    yield "dispatch overhead per cell", empty * 1e3, "ms", note
    one, two = wall_s(20, 1, SLEEPING_MS), wall_s(20, 2, SLEEPING_MS)
    yield "20 cells of 0.3 s, 1 worker / 2 workers", one / two, "×", "cells that sleep: what the scheduler leaves of 2"
