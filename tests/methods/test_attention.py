"""Attention patterns: shifted sparse attention, and decoders without a causal mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import Unsupported, UserError
from harness.methods.attention.shifted import attention, visible
from tests.methods.tiny import (
    CAUSAL,
    CLASSIFIER,
    attached,
    base,
    batch,
    decoder_classifier,
    gap,
    llama,
    logits,
    made,
    train,
)

TOKENS, GROUPS, HEADS = 16, 4, 4  # groups of four tokens, shifted by two


def influence(mask: torch.Tensor | None, *, training: bool = True, causal: bool = True, tokens: int = TOKENS) -> Any:
    """True if the value of token j reaches the output of token i: [heads, i, j]."""
    torch.manual_seed(0)
    module = torch.nn.Module().train(training)
    module.is_causal = causal
    q, k, v = (torch.randn(1, HEADS, tokens, 8, requires_grad=True) for _ in range(3))
    out, _ = attention(module, q, k, v, mask, groups=GROUPS)  # [1, tokens, heads, width]
    assert out.shape == (1, tokens, HEADS, 8)
    reached = torch.zeros(HEADS, tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        (gradient,) = torch.autograd.grad(out[0, i].sum(), v, retain_graph=True)
        reached[:, i] = gradient[0].abs().sum(-1) > 0
    return reached


def expected(shift: int, tokens: int = TOKENS, *, causal: bool = True) -> torch.Tensor:
    size = -(-tokens // GROUPS)
    group = torch.tensor([(p - shift) % (GROUPS * size) // size for p in range(tokens)])
    same = group[:, None] == group[None, :]
    return same & torch.ones(tokens, tokens).tril().bool() if causal else same


# --- LongLoRA ------------------------------------------------------------------------------------
def test_half_of_the_heads_use_shifted_groups() -> None:
    found = influence(None)
    assert all(torch.equal(head, expected(0)) for head in found[:2])
    assert all(torch.equal(head, expected(2)) for head in found[2:])
    assert not found[0, 4, 3]  # neighbours on two sides of a border do not meet in the first half of the heads,
    assert found[2, 4, 3]  # and meet in the other
    assert not found.triu(1).any()  # the group that joins the two ends leaks nothing from the future


def test_indivisible_sequences_and_encoders_are_grouped() -> None:
    found = influence(None, tokens=14, causal=False)
    assert torch.equal(found[0], expected(0, 14, causal=False))
    assert torch.equal(found[3], expected(2, 14, causal=False))


def test_the_model_s_mask_is_kept_inside_the_groups() -> None:
    seen = torch.ones(TOKENS, TOKENS).tril().bool()
    seen[:, 5] = False  # padding, say
    found = influence(seen[None, None])
    itself = torch.eye(TOKENS, dtype=torch.bool)
    assert torch.equal(found[0], expected(0) & (seen | itself))
    order = torch.arange(TOKENS).view(GROUPS, -1)
    assert visible(None, order, TOKENS, causal=True).shape == (1, GROUPS, 1, 4, 4)


def test_in_evaluation_attention_is_full() -> None:
    assert torch.equal(influence(None, training=False)[3], torch.ones(TOKENS, TOKENS).tril().bool())


@pytest.mark.parametrize("key_value_heads", [1, 2])
def test_longlora_trains_grouped_and_scores_full_attention(key_value_heads: int) -> None:
    method = made("longlora")
    inputs = batch(CAUSAL)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        plain = llama(key_value_heads)(input_ids=ids, attention_mask=mask).logits
        model: Any = attached(method, llama(key_value_heads))
        scored = model.eval()(input_ids=ids, attention_mask=mask).logits
        trained = model.train()(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    assert gap(scored[real], plain[real]) < 1e-5
    first = real & (torch.arange(12) < 1)  # sees itself alone either way
    assert gap(trained[first], plain[first]) < 1e-5
    assert gap(trained[real], plain[real]) > 1e-3
    train(method, model)
    assert method.finish(model).get_base_model().config._attn_implementation == "sdpa"  # type: ignore[operator]


def test_longlora_trains_embeddings_norms_and_attention_only() -> None:
    model = attached(made("longlora"), llama())
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    dense = {n for n in names if "lora_" not in n}
    assert {n.split(".", 2)[2] for n in dense} == {
        n for n, _ in llama().named_parameters() if "norm" in n or "emb" in n
    }
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in names - dense} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(UserError, match="groups of longlora must be a whole number"):
        made("longlora", groups=0)


# --- without a causal mask -----------------------------------------------------------------------
def looks_right(model: Any, mask: torch.Tensor | None = None) -> list[bool]:
    """For every block: whether its attention's output at the first token depends on its input at the last one."""
    seen: list[bool] = []

    def watch(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        (gradient,) = torch.autograd.grad(output[0][:, 0].sum(), kwargs["hidden_states"], retain_graph=True)
        seen.append(bool(gradient[:, -1].abs().max() > 0))

    hooks = [
        module.register_forward_hook(watch, with_kwargs=True)
        for name, module in model.named_modules()
        if name.endswith("self_attn")
    ]
    ids = batch(CLASSIFIER)["input_ids"]
    model(inputs_embeds=model.get_input_embeddings()(ids).detach().requires_grad_(), attention_mask=mask)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "params", "open_blocks"),
    [
        ("ls-unllama", {}, [True, True, True, True]),
        ("layerwise-unmask", {}, [False, False, True, True]),
        ("layerwise-unmask", {"groups": "0100"}, [False, True, False, False]),
        ("layerwise-unmask", {"groups": "10"}, [True, True, False, False]),
    ],
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_early_token_sees_later_one_only_where_unmasked(
    name: str, params: dict[str, Any], open_blocks: list[bool], implementation: str, padded: bool
) -> None:
    model: Any = decoder_classifier(layers=4)
    model.set_attn_implementation(implementation)
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[:3, -2:] = 0  # in the last row the last token is a real one
    found = attached(made(name, CLASSIFIER, **params), model)
    assert looks_right(found.eval(), mask if padded else None) == open_blocks


def test_the_head_reads_the_mean_of_the_tokens() -> None:
    model: Any = attached(made("ls-unllama", CLASSIFIER), decoder_classifier()).eval()
    states: list[torch.Tensor] = []
    model.get_base_model().model.norm.register_forward_hook(lambda *call: states.append(call[-1]))
    ids, mask = batch(CLASSIFIER)["input_ids"], batch(CLASSIFIER)["attention_mask"]
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
        means = torch.stack([row[real.bool()].mean(0) for row, real in zip(states[0], mask, strict=True)])
        assert gap(found, model.get_base_model().score(means)) < 1e-5


def test_padding_stays_hidden_where_the_causal_mask_is_removed() -> None:
    model = attached(made("ls-unllama", CLASSIFIER), decoder_classifier()).eval()
    ids, mask = batch(CLASSIFIER)["input_ids"], torch.ones(4, 12, dtype=torch.long)
    mask[:, -2:] = 0
    with torch.no_grad():
        padded = model(input_ids=torch.where(mask == 0, 0, ids), attention_mask=mask).logits
        short = model(input_ids=ids[:, :-2], attention_mask=mask[:, :-2]).logits
    assert gap(padded, short) < 1e-5


def test_what_has_no_causal_mask_is_refused() -> None:
    with pytest.raises(Unsupported, match="BertForSequenceClassification have no causal mask"):
        attached(made("ls-unllama", CLASSIFIER), base(CLASSIFIER))
    with pytest.raises(Unsupported, match="none is in a group"):
        attached(made("layerwise-unmask", CLASSIFIER, groups="0100"), decoder_classifier(layers=2))
    with pytest.raises(UserError, match="digits 0 and 1"):
        made("layerwise-unmask", CLASSIFIER, groups="0000")
    assert "nothing left to predict" in str(type(made("ls-unllama")).check(CAUSAL, "fp", {}))


def test_longlora_interpolates_positions_for_a_longer_context(tmp_path: Path) -> None:
    def rotation(model: Any, position: int) -> torch.Tensor:
        found: torch.Tensor = model.model.rotary_emb(torch.zeros(1, 1, 16), torch.tensor([[position]]))[0]
        return found

    before: Any = llama()
    own = before.config.max_position_embeddings
    method = made("longlora", context=own + 1)
    model: Any = attached(method, llama())
    inner = model.get_base_model()
    assert inner.config.max_position_embeddings == 2 * own
    assert torch.allclose(rotation(inner, 10), rotation(before, 5))
    assert not torch.allclose(rotation(inner, 10), rotation(before, 10))
    train(method, model)
    model = method.finish(model)
    method.save(model, tmp_path)
    again = made("longlora", context=own + 1).load(llama(), tmp_path)
    assert gap(logits(again, CAUSAL), logits(model, CAUSAL)) < 1e-5
    with pytest.raises(Unsupported, match="rotary positions"):
        attached(made("longlora", CLASSIFIER, context=10_000), base(CLASSIFIER))
    with pytest.raises(UserError, match="context of longlora"):
        made("longlora", context="long")
