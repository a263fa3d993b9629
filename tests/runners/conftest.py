"""A tiny model and a separate workspace for every test that runs real cells in real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
os.environ["HF_HUB_OFFLINE"] = "1"


@dataclass
class Bench:
    """A workspace in a temporary folder and the command line on it."""

    root: Path
    sweep: dict[str, Any]
    environ: dict[str, str] = field(default_factory=dict)

    def write(self, **changes: Any) -> Path:
        """Write the sweep file with some keys changed (None removes a key)."""
        content = {k: v for k, v in {**self.sweep, **changes}.items() if v is not None}
        path = self.root / "sweep.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "peft_matrix.cli", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PEFT_MATRIX_CACHE": str(self.root / "cache"),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            **self.environ,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line in a separate process group."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # a suite that was started in the background ignores Ctrl-C, and so would its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in this process, so that many tests share a template of workers.

        A test that sets variables gets a separate process, because libraries read some of them at import.
        """
        if not self.environ:
            return in_process(self.root, self.environment, *arguments)
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=1500,
            check=False,
        )

    def records(self) -> list[dict[str, Any]]:
        """All stored records, as plain JSON, in the order of their file names."""
        return [json.loads(p.read_text()) for p in sorted((self.root / "results" / "records").glob("*/*.json"))]

    def outcomes(self) -> dict[str, str]:
        """Label to status of the stored records."""
        return {r["label"]: r["outcome"]["status"] for r in self.records()}


def in_process(folder: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, called as its console script calls it, with these variables in that folder."""
    from peft_matrix import cli

    place, variables, argv = os.getcwd(), dict(os.environ), sys.argv
    streams = sys.stdout, sys.stderr
    written = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in streams]
    code: object = 0
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["peft-matrix", *arguments]
        sys.stdout, sys.stderr = written
        cli.main()
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout, sys.stderr = streams
        sys.argv = argv
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(place)
    out, err = (stream.buffer.getvalue().decode() for stream in written)  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(list(arguments), code if isinstance(code, int) else 0, out, err)


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    """A workspace with a sweep of two quick cells."""
    return bench_at(tmp_path, tiny_model)


def bench_at(folder: Path, tiny_model: Path) -> Bench:
    """The same in any folder."""
    (folder / "peft-matrix.yaml").write_text("version: 1\n")
    return Bench(
        folder,
        {
            "name": "quick",
            "models": [str(tiny_model)],
            "methods": ["none", "lora"],
            "tasks": [{"name": "strings-copy", "train_items": 64, "validation_items": 8, "test_items": 8}],
            "seeds": [0],
            "training": {"steps": 10, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32},
            "evaluation": {"batch_size": 8},
            "limits": {"threads": 1, "timeout_s": 900},
        },
    )
