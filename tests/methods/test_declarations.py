"""The catalogue without any model: complete, light, and checked against the installed peft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.methods import bases
from harness.methods.base import Method
from harness.methods.catalog import METHODS
from harness.methods.peft.table import NOT_OFFERED, table
from harness.quantizers.catalog import QUANTIZERS
from harness.spec import load
from tests.methods.tiny import CAUSAL, CLASSIFIER, PARAMS


@pytest.mark.parametrize("name", METHODS)
def test_a_declaration_is_complete(name: str) -> None:
    cls = METHODS.get(name)
    d = cls.declaration
    assert issubclass(cls, Method)
    assert d.name == name
    assert d.summary.endswith(".")
    assert d.trainable.endswith(".")
    assert d.family
    assert d.defaults_source
    assert d.lr_factor > 0
    assert d.kinds | d.refuses_kind.keys() == {CAUSAL, CLASSIFIER}
    assert not d.bases & d.refuses.keys()
    assert d.bases | d.refuses.keys() >= bases.ALL
    assert all(len(reason) > 20 for reason in (*d.refuses.values(), *d.merge_refuses.values()))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_s_base_is_a_word_the_methods_know(quantizer: str) -> None:
    declaration = QUANTIZERS.get(quantizer).declaration
    assert declaration.base in bases.ALL | bases.DYNAMIC | bases.OTHER | bases.AFTER_TRAINING
    assert (declaration.base in bases.AFTER_TRAINING) == (declaration.moments == {"after_merge"})


def test_listing_the_methods_imports_nothing_heavy() -> None:
    code = (
        "import sys; from harness.methods.catalog import METHODS, to_markdown; to_markdown();"
        "assert not {'torch', 'peft', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_installed_peft_config_is_offered_or_named() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    installed = {config.__name__ for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    offered = {row.config for row in table().values()}
    assert offered | NOT_OFFERED.keys() == installed


@pytest.mark.parametrize("name", table())
def test_a_row_s_parameters_are_options_of_its_configuration(name: str) -> None:
    variants = {"warmup_share", "final_share", "lr_ratio", "damping", "invocation", "text", "context", "examples"}
    cls = METHODS.get(name)
    assert cls.declaration.defaults.keys() - variants <= cls._options()  # type: ignore[attr-defined]  # a row of the table


def test_an_unknown_parameter_is_named_with_what_was_meant() -> None:
    with pytest.raises(UserError, match=r"a\.yaml: method 'lora' has no parameter 'dropuot'.*Did you mean 'dropout'"):
        METHODS.get("lora").resolve({"dropuot": 0.1}, where="a.yaml")
    with pytest.raises(UserError, match=r"method 'llrd' has no parameter 'decai'.*Did you mean 'decay'"):
        METHODS.get("llrd").resolve({"decai": 0.9})


def test_a_parameter_beyond_the_defaults_is_looked_up_in_peft() -> None:
    assert METHODS.get("lora").resolve({"bias": "all"})["bias"] == "all"
    assert METHODS.get("eva").resolve({"tau": 0.9})["tau"] == 0.9
    with pytest.raises(UserError, match="no parameter 'task_type'"):
        METHODS.get("lora").resolve({"task_type": "CAUSAL_LM"})
    with pytest.raises(UserError, match="no parameter 'use_dora'"):  # what makes the row this row is not for setting
        METHODS.get("dora").resolve({"use_dora": False})


def test_peft_s_own_spelling_is_the_same_parameter() -> None:
    lora = METHODS.get("lora")
    assert lora.resolve({"lora_alpha": 32}) == lora.resolve({"alpha": 32})
    with pytest.raises(UserError, match="'alpha' and 'lora_alpha' are the same"):
        lora.resolve({"alpha": 8, "lora_alpha": 8})


def test_a_number_must_be_a_number() -> None:
    with pytest.raises(UserError, match="r of method 'lora' must be a number, not 'eight'"):
        METHODS.get("lora").resolve({"r": "eight"})


@pytest.mark.parametrize("name", [name for name in PARAMS if name != "cpt"])  # which draws examples
def test_a_method_that_acts_on_a_text_asks_for_it(name: str) -> None:
    with pytest.raises(UserError, match=rf"method '{name}' needs '{next(iter(PARAMS[name]))}'"):
        METHODS.get(name).resolve({})


def test_reasons_come_before_any_model_is_there() -> None:
    assert "integers" in str(METHODS.get("full").check(CAUSAL, "bnb-nf4", {}))
    assert "plain LoRA" in str(METHODS.get("kasa").check(CAUSAL, "bnb-int8", {}))
    assert "answers at random" in str(METHODS.get("none").check(CLASSIFIER, "fp", {}))
    assert "quanto" in str(METHODS.get("lora").check_merge("quanto-int8"))
    assert METHODS.get("prompt").check_merge("fp") == "prompt cannot be merged"
    assert METHODS.get("lora").check(CAUSAL, "fp", {}) is None


def test_the_all_methods_sweep_has_every_method() -> None:
    sweep = load(Path(__file__).parents[2] / "runners" / "sweeps" / "all-methods.yaml").spec
    named = {method.name for method in sweep.methods} | {row.method.name for row in sweep.include}
    assert named == set(METHODS)
