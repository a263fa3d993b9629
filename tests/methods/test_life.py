"""Every method on a tiny decoder and a tiny classifier: counted, trained, saved, loaded, merged."""

from __future__ import annotations

import pytest

from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
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
    refusal = cls.check(kind, QUANTIZERS.get(quantizer).declaration.base, PARAMS.get(name, {}))
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
