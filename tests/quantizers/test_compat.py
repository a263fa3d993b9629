"""The compatibility table: light, complete, as committed, and true on a sample of its pairs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
from runners.tools import compat

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
    ],
)
def test_the_table_has_the_known_facts(method: str, quantizer: str, trains: bool, merges: bool, after: bool) -> None:
    p = compat.pair(method, quantizer, "cpu", "causal-lm")
    assert (not p.trains, not p.merges, not p.after_merge) == (trains, merges, after), p


def test_rows_give_true_or_the_reason() -> None:
    (row,) = compat.as_rows(compat.pairs(device="cpu", method="lora", quantizer="torchao-int4"))
    assert row["trains"] == "torchao-int4 needs a cuda device"
    (row,) = compat.as_rows(compat.pairs(device="cuda", method="lora", quantizer="bnb-nf4"))
    assert row["trains"] is row["merges"] is row["after_merge"] is True


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
