"""One test each for methods whose central idea a library could drop silently."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import Unsupported, UserError
from harness.methods.modules import blocks
from harness.methods.peft.initialisations import alternate, nearest
from tests.methods.tiny import (
    CAUSAL,
    CLASSIFIER,
    attached,
    base,
    batch,
    bert,
    gap,
    llama,
    logits,
    made,
    tokenizer,
    train,
)

TARGET = "model.layers.0.self_attn.q_proj"


def layer(model: Any, name: str = TARGET) -> Any:
    """peft's wrapper of one target."""
    return model.base_model.model.get_submodule(name)


def test_lora_scales_by_alpha_over_r_rslora_by_its_root() -> None:
    assert layer(attached(made("lora", r=4, alpha=12), llama())).scaling["default"] == 3
    assert layer(attached(made("rslora", r=4, alpha=12), llama())).scaling["default"] == 6


def test_dora_trains_the_length_of_each_row() -> None:
    model = attached(made("dora"), llama())
    magnitude = layer(model).lora_magnitude_vector["default"].weight
    assert torch.allclose(magnitude, layer(model).get_base_layer().weight.norm(dim=1))
    assert magnitude.requires_grad


def test_alora_does_not_change_text_before_the_invocation() -> None:
    inputs = batch(CAUSAL)["input_ids"]
    before = llama()(input_ids=inputs).logits
    method = made("alora")
    model = attached(method, llama())
    train(method, model)
    after = model.eval()(input_ids=inputs).logits
    assert gap(after[:, :4], before[:, :4]) < 1e-6
    assert gap(after[:, 4:], before[:, 4:]) > 1e-3


def test_pissa_keeps_the_rest_of_the_weight_in_the_base() -> None:
    weight = llama().get_submodule(TARGET).weight
    u, s, v = torch.linalg.svd(weight)  # type: ignore[arg-type]  # a module's attributes are untyped
    rest = (u[:, 8:] * s[8:]) @ v[8:]
    model = attached(made("pissa", r=8), llama())
    assert gap(layer(model).get_base_layer().weight, rest) < 1e-5


@pytest.mark.parametrize("name", ["pissa", "olora", "lora-ga"])
def test_reparameterised_adapter_saves_as_lora_of_double_rank(name: str, tmp_path: Path) -> None:
    from peft import PeftConfig

    method = made(name, r=4, alpha=8)
    model = attached(method, llama())
    train(method, model)
    method.save(model, tmp_path)
    config: Any = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.init_lora_weights) == (8, 16, True)


def test_bone_adds_weight_times_block_plus_block() -> None:
    model = attached(made("bone", r=8), llama())
    wrapped = layer(model)
    block = torch.nn.init.normal_(wrapped.miss_block["default"].data)
    weight = wrapped.get_base_layer().weight.detach()
    rows, columns = weight.shape
    parts = weight.reshape(rows // 8, 8, columns // 8, 8).permute(2, 0, 1, 3)  # [columns/8, rows/8, 8, 8]
    change = (parts @ block + block).permute(1, 2, 0, 3).reshape(rows, columns)
    x = torch.randn(3, columns)
    assert gap(wrapped(x), x @ (weight + change).T) < 1e-3


def test_lora_plus_trains_b_faster_by_the_ratio() -> None:
    method = made("lora-plus", lr_ratio=4.0)
    model = attached(method, llama())
    optimizer = method.optimizer(model)
    assert optimizer is not None
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    a, b = layer(model).lora_A["default"].weight, layer(model).lora_B["default"].weight
    assert rates[id(b)] == pytest.approx(4 * rates[id(a)])


def test_lora_fa_leaves_a_where_it_is() -> None:
    method = made("lora-fa-corrected")
    model = attached(method, llama())
    a = layer(model).lora_A["default"].weight.clone()
    train(method, model)
    assert torch.equal(layer(model).lora_A["default"].weight, a)
    assert layer(model).lora_B["default"].weight.abs().max() > 0


def test_adalora_ends_with_fewer_ranks_than_it_began_with() -> None:
    method = made("adalora", steps=8, init_r=4, target_r=2, warmup_share=0.125, final_share=0.5)
    model = attached(method, llama())
    train(method, model, steps=8)
    values = [p for n, p in model.named_parameters() if "lora_E" in n]
    assert sum(int((v != 0).sum()) for v in values) == 2 * len(values)


def test_lily_shares_b_between_layers_of_one_name() -> None:
    model: Any = attached(made("lily"), llama())
    first, second = layer(model), layer(model, "model.layers.1.self_attn.q_proj")
    assert first.lily_B["default"].weight is second.lily_B["default"].weight
    assert first.lily_A["default"].weight is not second.lily_A["default"].weight


def test_eva_starts_from_the_directions_of_the_inputs() -> None:
    a = layer(attached(made("eva"), llama())).lora_A["default"].weight
    assert gap(a @ a.T, torch.eye(len(a))) < 1e-3  # principal directions are orthonormal


def test_kasa_adds_its_penalty_to_the_loss() -> None:
    method = made("kasa", beta=1.0, gamma=0.0)
    model = attached(method, llama())
    squares = sum(float((p**2).sum()) for n, p in model.named_parameters() if "lora_diag" in n)
    added = method.loss(None, {}, torch.tensor(1.0)) - 1.0
    assert float(added.detach()) == pytest.approx(squares, rel=1e-4)


def test_virtual_tokens_do_not_shift_the_logits() -> None:
    inputs = batch(CAUSAL)["input_ids"]
    for name in ("prompt", "p-tuning", "multitask-prompt", "cpt"):
        assert attached(made(name), llama())(input_ids=inputs).logits.shape[:2] == inputs.shape


def test_cpt_learns_from_the_labels_alone() -> None:
    model = attached(made("cpt"), llama())
    inputs = batch(CAUSAL)
    loss = model(**inputs).loss
    inputs["labels"][:, :6] = -100
    assert float(model(**inputs).loss.detach()) != pytest.approx(float(loss.detach()))
    found = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(
        found[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=-100
    )
    assert float(model(**inputs).loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_trainable_tokens_changes_the_rows_of_its_text_only() -> None:
    method = made("trainable-tokens")
    model: Any = attached(method, llama())
    train(method, model)
    rows = method.merge(model).get_input_embeddings().weight - llama().get_input_embeddings().weight  # type: ignore[operator]
    changed = rows.abs().sum(dim=1).nonzero().flatten().tolist()
    assert changed == tokenizer()("#")["input_ids"]


def test_llrd_learns_slower_the_nearer_to_the_input() -> None:
    method = made("llrd", decay=0.5)
    model: Any = attached(method, llama())
    optimizer = method.optimizer(model)
    assert optimizer is not None
    rates = {id(p): group["lr"] / 5e-3 for group in optimizer.param_groups for p in group["params"]}
    layers = model.model.layers
    order = [model.lm_head.weight, layers[1].mlp.up_proj.weight, layers[0].mlp.up_proj.weight]
    assert [rates[id(p)] for p in [*order, model.model.embed_tokens.weight]] == [1, 0.5, 0.25, 0.125]


def test_bitfit_gives_a_llama_biases_that_start_at_zero() -> None:
    model: Any = attached(made("bitfit"), llama())
    bias = model.model.layers[0].mlp.up_proj.bias
    assert bias.shape == (128,)
    assert not bias.any()
    assert model.lm_head.bias is None


def test_last_k_and_freeze_low_train_the_upper_part() -> None:
    def trained(name: str, **params: Any) -> set[str]:
        model = attached(made(name, **params), llama())
        return {n for n, p in model.named_parameters() if p.requires_grad}

    assert all(n.startswith("model.layers.1.") for n in trained("last-k", k=1))
    upper = trained("freeze-low", share=0.5)
    assert {"lm_head.weight", "model.norm.weight"} <= upper
    assert not any(n.startswith(("model.layers.0.", "model.embed")) for n in upper)


def test_a_full_checkpoint_is_one_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    method = made("full", CLASSIFIER)
    model = attached(method, base(CLASSIFIER))
    train(method, model)
    method.save(model, tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert gap(logits(again, CLASSIFIER), logits(model, CLASSIFIER)) < 1e-6
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["kasa", "bd-lora", "monteclora"])
def test_a_refused_option_is_indeed_lost_on_a_quantized_base(name: str) -> None:
    method = made(name)
    model = base(CAUSAL, "bnb-nf4")
    expected = method.expected_trainable(model)
    counted = sum(p.numel() for p in attached(method, model).parameters() if p.requires_grad)
    assert counted == made("lora").expected_trainable(llama())  # plain LoRA
    assert counted != expected


def test_an_architecture_without_the_targets_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="beft: LlamaForCausalLM has no module named"):
        attached(made("beft", target_modules=["nowhere"]), llama())
    with pytest.raises(Unsupported, match="gpt2, llama, mistral"):
        attached(made("llama-adapter"), base(CLASSIFIER))


@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_is_nearer_to_the_model_than_rounding_alone(bits: int) -> None:
    original: Any = llama()
    method = made("loftq", loftq_bits=bits)
    model: Any = attached(method, llama())
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    weight = original.model.layers[0].mlp.up_proj.weight.detach()
    rounded = layer.base_layer.weight.detach()
    assert torch.allclose(rounded, nearest(rounded, bits), atol=1e-6)  # it lies on the grid
    corrected = rounded + layer.get_delta_weight("default").detach()  # with LoRA's scale
    assert float((corrected - weight).norm()) < 0.9 * float((nearest(weight, bits) - weight).norm())


def test_more_rounds_of_loftq_do_not_lose() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 48)

    def error(rounds: int) -> float:
        rounded, left, right = alternate(weight, 8, 4, rounds)
        return float((rounded + left @ right - weight).norm())

    assert error(5) < error(1)
    with pytest.raises(UserError, match="loftq_bits must be 4"):
        made("loftq", loftq_bits=2).attach(llama())


def test_corda_kpm_calibrates_on_general_text() -> None:
    assert made("corda", corda_method="kpm").wants_text
    assert not made("corda").wants_text
    assert not made("lora").wants_text


def test_cpt_counts_example_answers_and_keeps_embeddings() -> None:
    method: Any = made("cpt", context=None, examples=2)
    inputs = batch(CAUSAL)
    inputs["labels"][:, :8] = -100  # a prompt of eight tokens
    method.calibrate(llama(), lambda count: [inputs] * count)
    first = int(inputs["attention_mask"][0].sum())
    assert method._types[:first] == [2] * 8 + [4] * (first - 8)
    assert method._types[first : first + 8] == [6] * 8  # the second example, with types of its own
    model = method.attach(llama())
    found = model(**inputs)
    alone = method.task_loss(found, inputs)
    assert float(found.loss) != pytest.approx(float(alone), rel=1e-3)  # the context's answers are in the loss
    train(method, model)
    delta = next(p for n, p in model.named_parameters() if "delta_embedding" in n)
    labels = torch.tensor(method._types) % 4 == 0
    assert float(delta[labels].abs().max()) == 0.0
    assert float(delta[~labels].abs().max()) > 0.0
    with pytest.raises(UserError, match="examples of cpt"):
        made("cpt", context=None, examples=0)


@pytest.mark.parametrize("name", ["neftune", "lora-neftune"])
def test_neftune_noise_is_bounded_and_only_in_training(name: str) -> None:
    method = made(name)
    model: Any = attached(method, llama())
    embed = model.get_input_embeddings()
    ids = batch(CAUSAL)["input_ids"]
    model.eval()
    quiet = embed(ids)
    assert torch.equal(embed(ids), quiet)
    model.train()
    noise = (embed(ids) - quiet).detach()
    bound = 5 / (12 * 64) ** 0.5  # alpha / sqrt(L d)
    assert 0.9 * bound < float(noise.abs().max()) <= bound
    assert float(noise.mean().abs()) < 0.05 * bound
    method.finish(model)
    assert torch.equal(embed(ids), quiet)


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_reinit_top_draws_the_last_blocks_again(kind: str) -> None:
    before, after = base(kind), attached(made("reinit-top", kind), base(kind))
    prefix, layers = blocks(after)
    top = f"{prefix}.{len(layers) - 1}."
    changed = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed
    assert all(n.startswith(top) or "pooler" in n for n in changed)
    assert any("pooler" in n for n in changed) == (kind == CLASSIFIER)
    weight = next(p for n, p in after.named_parameters() if n.startswith(top) and p.ndim == 2)
    assert float(weight.std()) == pytest.approx(after.config.initializer_range, rel=0.1)
    again = attached(made("reinit-top", kind), base(kind))
    assert all(torch.equal(p, after.get_parameter(n)) for n, p in again.named_parameters())  # by the seed


def test_sizes_that_must_divide_are_found() -> None:
    config = made("c3a").config(llama())  # type: ignore[attr-defined]  # a row of the table
    assert math.gcd(64, 32, 128) % config.block_size == 0
    assert config.block_size == 32


def test_a_method_without_its_tokenizer_says_so() -> None:
    from dataclasses import replace

    method = made("alora")
    method.setting = replace(method.setting, tokenizer=None)
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        method.attach(llama())


def test_glora_factor_of_a_zero_bias_expects_no_gradient() -> None:
    """A pre-trained encoder without a pooler gets a fresh one, whose bias is zero: found by running it."""
    model = bert()
    torch.nn.init.zeros_(model.get_parameter("bert.pooler.dense.bias"))
    method = made("glora", CLASSIFIER)
    adapted = attached(method, model)
    seen = train(method, adapted)
    idle = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad and name in seen}
    unexpected = {name for name in idle if method.expects_gradient(name)}
    assert not unexpected
    assert [name for name in idle if "glora_D" in name] == ["base_model.model.bert.pooler.dense.glora_D.default.X"]
