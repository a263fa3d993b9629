"""Every quantizer that this machine can run, on real tiny models: declaration against fact."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from harness.errors import Unsupported, UserError
from harness.quantizers.base import Quantizer
from harness.quantizers.catalog import QUANTIZERS
from harness.quantizers.layers import HEADS
from harness.quantizers.measure import dequantize, layer_errors, linear_kinds, logical_parameters, real_bytes
from tests.quantizers.conftest import batch, gradients, with_lora

KINDS = ("causal-lm", "sequence-classification")
RUNNABLE = [
    n
    for n in QUANTIZERS.names()
    if (QUANTIZERS.get(n).check("cpu", "before_training") or QUANTIZERS.get(n).missing("cpu")) is None
    and not QUANTIZERS.get(n).declaration.environment
]
FROM_DISK = ("prequantized-gptq", "prequantized-awq", "prequantized-autoround", "autoround")  # see test_checkpoints.py
QUANTIZED = [n for n in RUNNABLE if QUANTIZERS.get(n).declaration.base not in ("fp", "sparse") and n not in FROM_DISK]
STORED_BITS = {"torchao-intx": 8}  # whole bytes, as its declaration says
MERGEABLE_ERROR = {2: 1.0, 4: 0.5, 8: 0.1}  # merge error allowed, as a share of what the adapter changes, by bits


def declared(name: str) -> Any:
    return QUANTIZERS.get(name).declaration


def test_the_first_back_ends_run_on_a_cpu() -> None:
    assert {"none", "bf16", "fp16", "rtn", "gptq", "awq"} <= set(RUNNABLE)
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    assert {"bnb-int8", "bnb-nf4", "bnb-fp4", "torchao-int8"} <= set(RUNNABLE)


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_declarations_are_complete(name: str) -> None:
    d = declared(name)
    assert d.name == name
    assert d.summary.endswith(".")
    assert d.moments <= {"before_training", "after_merge"}
    assert d.devices <= {"cpu", "cuda"}
    assert bool(d.package) == bool(d.pip)
    assert 0 < QUANTIZERS.get(name).nominal_bits(d.defaults) <= 32


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys, harness.quantizers.catalog; sys.exit('torch' in sys.modules or 'bitsandbytes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUANTIZED)
def test_the_body_is_quantized_and_the_head_is_not(load, name: str, kind: str) -> None:
    plain, quantized = load("none", kind), load(name, kind)
    before, after = linear_kinds(plain), linear_kinds(quantized)
    assert all(set(path.split(".")) & set(HEADS) for path in after.plain), after.plain
    head = {"causal-lm": {"lm_head"}, "sequence-classification": {"classifier", "bert.pooler.dense"}}[kind]
    assert set(after.plain) == head
    assert len(after.quantized) == 1
    assert sum(after.quantized.values()) == len(before.plain) - len(head)
    assert after.logical_parameters == before.logical_parameters
    assert logical_parameters(quantized) == sum(p.numel() for p in plain.parameters())
    assert torch.isfinite(quantized(**batch(kind)).logits).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_real_bytes_are_nominal_plus_scales(load, name: str) -> None:
    """Between nominal and nominal + 0.35 bytes a weight: scales, zero points and tables of layers this small."""
    plain, quantized = load("none"), load(name)
    kinds = linear_kinds(quantized)
    body = kinds.logical_parameters - plain.lm_head.weight.numel()
    cls = QUANTIZERS.get(name)
    bits = STORED_BITS.get(name, cls.nominal_bits(cls.declaration.defaults))
    body_bytes = real_bytes(quantized) - (real_bytes(plain) - 4 * body)
    assert body * bits / 8 < body_bytes < body * (bits / 8 + 0.35)


@pytest.mark.parametrize("name", [n for n in RUNNABLE if n in ("bf16", "fp16")])
def test_sixteen_bits_are_half_the_bytes(load, name: str) -> None:
    plain, cast = load("none"), load(name)
    assert 0.5 <= real_bytes(cast) / real_bytes(plain) < 0.51
    assert torch.isfinite(cast(**batch("causal-lm")).logits).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_more_bits_mean_less_error(load, name: str) -> None:
    """Random normal weights: every layer's relative error matches its bits."""
    errors = layer_errors(load("none"), load(name))
    cls = QUANTIZERS.get(name)
    ceiling = {1: 0.8, 2: 0.65, 3: 0.35, 4: 0.2, 8: 0.05}[int(cls.nominal_bits(cls.declaration.defaults))]
    assert len(errors) == 14
    assert all(0 < error < ceiling for error in errors.values()), errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n in RUNNABLE if n not in FROM_DISK and not declared(n).no_gradient])
def test_lora_trains(load, name: str, kind: str) -> None:
    model = with_lora(load(name, kind), kind).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        found = gradients(model, kind)
        assert all(g is not None and bool(g.abs().max() > 0) for g in found.values()), found.keys()
        optimizer.step()
        losses.append(float(model(**batch(kind)).loss))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", QUANTIZED)
def test_gradient_passes_through_a_layer_exactly_where_declared(load, name: str) -> None:
    layer = load(name).get_submodule("model.layers.0.mlp.up_proj")
    x, upstream = torch.randn(3, 64, requires_grad=True), torch.randn(3, 128)
    output = layer(x)
    if declared(name).no_gradient:
        assert not output.requires_grad
        return
    output.backward(upstream)
    expected = upstream @ dequantize(layer)
    assert (x.grad - expected).norm() < 2e-3 * expected.norm()  # bitsandbytes int8 multiplies in float16


@pytest.mark.parametrize("name", [n for n in QUANTIZED if not declared(n).no_gradient])
def test_scoring_the_base_first_leaves_training_unchanged(load, name: str) -> None:
    """Some libraries change the layout of weights at the first forward pass without gradient, and lose the gradient."""
    fresh, scored = (with_lora(load(name), "causal-lm").eval() for _ in range(2))
    with torch.no_grad():
        scored(**batch("causal-lm", seed=7))
    for (name_, a), b in zip(
        gradients(fresh.train(), "causal-lm").items(), gradients(scored.train(), "causal-lm").values(), strict=True
    ):
        assert a is not None, name_
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", [n for n in QUANTIZED if not declared(n).no_gradient])
def test_merging_keeps_the_adapter_exactly_where_declared(load, name: str) -> None:
    model = with_lora(load(name), "causal-lm").eval()
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            parameter.data.normal_(0, 0.05)
    inputs = batch("causal-lm")
    with torch.no_grad():
        adapted = model(**inputs).logits
        with model.disable_adapter():
            base = model(**inputs).logits
        merged = model.merge_and_unload()(**inputs).logits
    effect, error = (adapted - base).norm(), (adapted - merged).norm()
    if declared(name).refuses_merge:
        torch.testing.assert_close(merged, base)  # the adapter is lost, without an error
    else:
        assert error < MERGEABLE_ERROR[int(declared(name).bits)] * effect


@pytest.mark.parametrize("name", [n for n in QUANTIZED if "after_merge" in declared(n).moments])
def test_quantizing_in_memory_equals_quantizing_while_loading(load, name: str) -> None:
    loaded, converted = load(name), load(name, in_memory=True)
    assert linear_kinds(loaded) == linear_kinds(converted)
    assert real_bytes(loaded) == real_bytes(converted)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch("causal-lm")).logits, converted(**batch("causal-lm")).logits)


@pytest.mark.parametrize(("name", "package"), [("torchao-int4", "mslk")])
def test_a_back_end_for_gpus_says_so(name: str, package: str) -> None:
    cls = QUANTIZERS.get(name)
    assert "needs a cuda device" in (cls.check("cpu", "before_training") or "")
    if missing := cls.missing("cuda"):
        assert f"needs the package {package!r}: pip install" in missing


@pytest.mark.parametrize("name", [n for n in QUANTIZERS.names() if declared(n).package])
def test_a_missing_package_is_named_with_its_install_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.quantizers.base.util.find_spec", lambda _: None)
    d = declared(name)
    reason = QUANTIZERS.get(name).missing(next(iter(d.devices)))
    if d.environment:  # its packages are in a side environment; see tests/quantizers/test_environments.py
        assert reason is None
        return
    assert reason == f"{name} needs the package {d.package!r}: pip install {d.pip}"


@pytest.mark.parametrize(
    ("name", "params", "part"),
    [
        ("rtn", {"bits": 5}, "bits 5 is not known. One of: 2, 3, 4, 8."),
        ("rtn", {"group_size": 0}, "group_size must be a positive whole number"),
        ("rtn", {"symmetric": "yes"}, "symmetric 'yes' is not known"),
        ("rtn", {"bit": 4}, "no parameter 'bit'"),
        ("bnb-nf4", {"block_size": 48}, "block_size 48 is not known"),
        ("bnb-nf4", {"compute_dtype": "int8"}, "compute_dtype 'int8' is not known"),
        ("torchao-intx", {"bits": 9}, "bits 9 is not known"),
        ("hqq", {"group_size": 12}, "positive multiple of 8"),
    ],
)
def test_a_wrong_parameter_is_named(name: str, params: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        QUANTIZERS.get(name).resolve(params, where="sweep.yaml:3")
    assert part in str(caught.value)
    assert "sweep.yaml:3" in str(caught.value)


def test_a_model_without_linear_layers_is_not_called_quantized() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    cls: type[Quantizer] = QUANTIZERS.get("rtn")
    with pytest.raises(Unsupported, match="no plain linear layers"):
        cls(cls.resolve({}), "causal-lm").apply(model)


def test_double_quantization_and_block_size_change_the_bytes(load) -> None:
    pytest.importorskip("bitsandbytes")
    plain, doubled = load("bnb-nf4"), load("bnb-nf4", params={"double_quant": True})
    small, large = (load("bnb-nf4", params={"block_size": size}) for size in (32, 128))
    assert real_bytes(large) < real_bytes(plain) < real_bytes(small)
    reference = load("none")
    mean = [sum(layer_errors(reference, m).values()) for m in (small, plain, large)]
    assert mean[0] < mean[1] < mean[2]
    assert real_bytes(doubled) != real_bytes(plain)
    assert torch.isfinite(large(**batch("causal-lm")).logits).all()


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-fp4"])
def test_four_bits_survive_rows_that_a_block_does_not_divide(name: str) -> None:
    """The library's CPU decoder reads wrong scales for them; see the quantizer's docstring."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    body = torch.nn.ModuleDict({"rows": torch.nn.Linear(96, 32), "fitting": torch.nn.Linear(128, 32)})
    weights = {key: layer.weight.detach().clone() for key, layer in body.items()}
    cls = QUANTIZERS.get(name)
    quantizer = cls(cls.resolve({}), "causal-lm")
    quantizer.apply(body)
    for key, weight in weights.items():
        assert (dequantize(body[key]) - weight).norm() < 0.15 * weight.norm(), key
    assert quantizer.facts() == {"layers_by_block_size": {"32": 1, "64": 1}}
    with pytest.raises(Unsupported, match="odd has 40"):
        cls(cls.resolve({}), "causal-lm").apply(torch.nn.ModuleDict({"odd": torch.nn.Linear(40, 8)}))


@pytest.mark.parametrize("name", QUANTIZED)
def test_scoring_in_inference_mode_gives_the_same_logits(load, name: str) -> None:
    """The worker scores in it, and some back ends make views that it forbids."""
    model, inputs = load(name), batch("causal-lm")
    with torch.no_grad():
        expected = model(**inputs).logits
    with torch.inference_mode():
        found = model(**inputs).logits
    torch.testing.assert_close(found.clone(), expected)
