"""Every method on a tiny decoder and a tiny classifier: counted, trained, saved, loaded, merged."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
from tests.methods.test_declarations import test_a_declaration_is_complete
from tests.methods.tiny import CAUSAL, CLASSIFIER, PARAMS, Life, live

ALONE = [name for name in METHODS if not METHODS.get(name).declaration.combines]  # the others: test_after.py
EVERYWHERE = [(name, kind, "none") for kind in (CAUSAL, CLASSIFIER) for name in ALONE]
QUANTIZED = [
    (name, CAUSAL, quantizer)
    for quantizer in ("bnb-nf4", "bnb-int8")
    for name in (
        "embed-head",
        "bitfit",
        "s2ft",
        "lofit",
        "lora",
        "dora",
        "alora",
        "lora-plus",
        "ia3",
        "vera",
        "oft",
        "miss",
        "prefix",
        "gradnormlorp",
        "lora-refactor",
        "compeft",
        "series-adapter",
        "mam",
        "dsee",
        "longlora",
        "slora",
        "inttune",
        "loldu",
        "nola",
        "lora-ggpo",
    )
]


@pytest.fixture(params=EVERYWHERE + QUANTIZED, ids="-".join, scope="module")
def life(request: pytest.FixtureRequest) -> Life:
    name, kind, quantizer = request.param
    cls = METHODS.get(name)
    params = PARAMS.get(name, {})
    refusal = cls.check(kind, QUANTIZERS.get(quantizer).declaration.base, params) or cls.missing(params)
    if refusal is None and "cpu" not in cls.declaration.devices:
        refusal = "needs a CUDA device"
    if refusal is not None:
        pytest.skip(refusal)
    return live(name, kind, quantizer)


def test_the_trainable_count_is_the_formula_s(life: Life) -> None:
    if life.expected is None:
        assert life.trainable > 0
    else:
        assert life.trainable == life.expected


def test_it_starts_as_the_base_where_it_says_so(life: Life) -> None:
    if life.method.declaration.identity_at_start:
        quantized_activations = life.method.setting.base == "bnb-int8"  # some methods multiply with the decoded weight
        assert life.start_gap < (3e-2 if quantized_activations else 1e-5)
    else:
        assert life.start_gap > 1e-5


def test_exactly_the_trainable_parameters_change(life: Life) -> None:
    expected = {name for name in life.names if life.method.expects_gradient(name)}
    assert life.changed <= life.names
    assert expected <= life.changed
    assert (life.moved > 1e-5) == life.method.declaration.trains


def test_every_parameter_gets_a_gradient_but_the_declared_ones(life: Life) -> None:
    assert not {name for name in life.silent if life.method.expects_gradient(name)}


def test_what_is_loaded_answers_as_what_was_saved(life: Life) -> None:
    assert life.reload_gap < 1e-5


def test_merging_keeps_the_function_as_declared(life: Life) -> None:
    if life.merge_gap is None:
        return
    if life.method.setting.base == "fp":
        assert life.merge_gap < 1e-4
    else:  # the merged weight is rounded again: another model, but still the adapted one
        assert life.merge_gap < max(0.5 * life.moved, 2e-2)


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "howto" / "method-author.md").read_text(encoding="utf-8")


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


def test_declaration_of_the_guide_is_complete(norms: Any) -> None:
    test_a_declaration_is_complete("norms")
