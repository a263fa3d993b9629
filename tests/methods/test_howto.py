"""The worked examples of the documentation run: docs/howto/method-author.md and the plug-ins of CONTRIBUTING.md."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.methods.catalog import METHODS
from tests.methods.tiny import CAUSAL, CLASSIFIER, base, live

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "howto" / "method-author.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(text: str, title: str) -> str:
    """The code block with that title."""
    (code,) = re.findall(rf'```python title="{re.escape(title)}"\n(.*?)```', text, flags=re.S)
    return str(code)


@pytest.fixture
def norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's class, written to a module and registered as another package would."""
    (tmp_path / "norms_example.py").write_text(block(GUIDE, "harness/methods/norms.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(METHODS._targets, "norms", "norms_example:NormsOnly")
    yield METHODS.get("norms")
    METHODS._loaded.pop("norms", None)
    sys.modules.pop("norms_example", None)


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_method_of_the_guide_lives_a_whole_life(norms: Any, kind: str) -> None:
    life = live("norms", kind)
    assert life.expected == life.trainable > 0
    assert not life.silent
    assert life.changed == life.names
    assert life.moved > 0
    assert life.reload_gap == 0
    assert life.merge_gap == 0


def test_test_of_the_guide_passes(norms: Any) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(block(GUIDE, "tests/methods/test_norms.py"), "test_norms.py", "exec"), namespace)
    namespace["test_only_norms_train"]()


def test_quantizer_and_meter_of_the_contributors_guide() -> None:
    quantizer, meter = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.S)
    names: dict[str, Any] = {"os": os, "reading": lambda *values, **_: SimpleNamespace(value=values[1])}
    exec(
        "from harness.quantizers.base import Quantizer, QuantizerDeclaration\n"
        "from harness.quantizers.layers import plain_linears\n" + quantizer + meter,
        names,
    )
    model = names["FP16Body"]({}, CAUSAL).apply(base(CAUSAL))
    assert {str(m.weight.dtype) for m in model.modules() if type(m) is torch.nn.Linear} >= {"torch.float16"}
    load = names["LoadAverage"](None)
    assert load.available() is None
    load.begin("train")
    (seen,) = load.end("train")
    assert seen.value >= 0
