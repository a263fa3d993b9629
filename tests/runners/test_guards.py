"""Each guard of a trained cell, shown a method that breaks just the promise it guards."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.runners.conftest import REPOSITORY, Bench


def run(bench: Bench, name: str) -> dict[str, Any]:
    names = ["wrong-count", "no-gradient", "unmoved", "lost-on-disk", "steady"]
    sweep = bench.write(methods=names)
    done = subprocess.run(
        [sys.executable, "-m", "tests.runners.broken", name, str(sweep), str(bench.root)],
        cwd=REPOSITORY,
        env=bench.environment,
        text=True,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "check", "stage", "words"),
    [
        ("wrong-count", "trainable-count", "attach", "were declared"),
        ("no-gradient", "gradient-probe", "train", "layers.0.mlp"),
        ("unmoved", "unmoved", "train", "never changed, for example model.layers.0"),
        ("lost-on-disk", "reload", "reload", "read back from disk differs"),
    ],
)
def test_failed_guard_is_a_named_outcome_without_number(
    bench: Bench, name: str, check: str, stage: str, words: str
) -> None:
    outcome = run(bench, name)
    assert (outcome["status"], outcome["check"], outcome["stage"]) == ("error", check, stage)
    assert words in outcome["reason"]
    assert "accuracy" not in outcome["metrics"]


def test_the_same_cell_without_a_fault_passes_every_guard(bench: Bench) -> None:
    outcome = run(bench, "steady")
    assert (outcome["status"], outcome["check"]) == ("ok", "")
    assert "accuracy" in outcome["metrics"]
