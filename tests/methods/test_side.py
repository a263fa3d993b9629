"""Side networks: no gradient enters the backbone; initialisation, cache and padding are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.methods.base import Method
from harness.methods.modules import blocks
from harness.methods.side.ladder import LadderNetwork, strongest
from harness.methods.side.lst import NAME
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, gap, logits, made, train

SIDE: list[tuple[str, dict[str, Any]]] = [("qst", {}), ("qst", {"mode": "repo"}), ("lst", {})]


def trained(name: str, kind: str = CAUSAL, **params: Any) -> tuple[Method, nn.Module]:
    method = made(name, kind, **params)
    model = attached(method, base(kind))
    train(method, model)
    return method, model


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
@pytest.mark.parametrize(("name", "params"), SIDE)
def test_backbone_gets_no_gradient_and_keeps_no_activations(name: str, params: dict[str, Any], kind: str) -> None:
    _, model = trained(name, kind, **params)
    prefix, layers = blocks(model)
    outputs: list[torch.Tensor] = []
    kept: list[int] = []
    inner = {id(p) for n, p in model.named_parameters() if n.startswith(prefix)}
    hooks = [m.register_forward_pre_hook(lambda _, args: outputs.append(args[0])) for m in layers[1:]]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(id(t)), t)[1], lambda t: t):
        loss = model(**batch(kind)).loss
    for hook in hooks:
        hook.remove()
    assert len(outputs) == len(layers) - 1
    assert not any(t.requires_grad for t in outputs)
    assert not inner & set(kept)  # what the backward pass needs holds no weight of a block
    loss.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith((NAME, "classifier")))
    assert all(p.grad is not None for p in model.get_submodule(NAME).parameters())


@pytest.mark.parametrize(("name", "params"), SIDE)
def test_cached_decoding_equals_uncached(name: str, params: dict[str, Any]) -> None:
    _, model = trained(name, **params)
    model.eval()
    ids = batch(CAUSAL)["input_ids"][:2]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :7], use_cache=True)
        steps = [first.logits]
        for at in range(7, ids.shape[1]):
            out = model(input_ids=ids[:, at : at + 1], past_key_values=first.past_key_values, use_cache=True)
            steps.append(out.logits)
    assert gap(torch.cat(steps, dim=1), whole) < 1e-4
    assert first.past_key_values.get_seq_length() == ids.shape[1]


@pytest.mark.parametrize(("name", "params"), SIDE)
def test_causal_side_network_ignores_future_and_padding(name: str, params: dict[str, Any]) -> None:
    _, model = trained(name, **params)
    model.eval()
    ids = batch(CAUSAL)["input_ids"][:1]
    other = ids.clone()
    other[:, 8:] = 11
    padded = torch.cat([torch.full((1, 3), 0), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * ids.shape[1]])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        assert gap(model(input_ids=other).logits[:, :8], alone[:, :8]) < 1e-5
        found = model(input_ids=padded, attention_mask=mask, position_ids=places).logits[:, 3:]
    assert gap(found, alone) < 1e-4


def test_qst_gate_starts_at_base_in_paper_mode_only() -> None:
    before = logits(base(CAUSAL), CAUSAL)
    assert gap(logits(attached(made("qst"), base(CAUSAL)), CAUSAL), before) < 1e-5
    assert gap(logits(attached(made("qst", mode="repo"), base(CAUSAL)), CAUSAL), before) > 1e-3


def test_qst_in_repo_mode_mixes_behind_the_final_norm() -> None:
    _, model = trained("qst", mode="repo")
    like: Any = model
    side = like.get_submodule(NAME)
    assert not hasattr(side, "first")  # the embeddings go through the first block's adapter
    with torch.no_grad():
        side.share.fill_(1e4)  # sig(a) = 1: the backbone's normalised state, and the head at once
        assert gap(logits(model, CAUSAL), logits(base(CAUSAL), CAUSAL)) < 1e-4
        side.share.fill_(-1e4)  # the side network alone; nothing normalises what comes back up
        side.back.weight.zero_()
        side.back.bias.normal_()
        assert gap(logits(model, CAUSAL), like.lm_head(side.back.bias)[None]) < 1e-4


def test_qst_answers_through_the_side_network() -> None:
    """With the gate's share of the backbone at zero, only the side network is left, which reads every block."""
    _, model = trained("qst")
    side: Any = model.get_submodule(NAME)
    with torch.no_grad():
        side.share.zero_()
        before = logits(model, CAUSAL)
        for adapter in side.adapters:
            kept = adapter.into.weight.clone()
            adapter.into.weight.zero_()
            assert gap(logits(model, CAUSAL), before) > 1e-5
            adapter.into.weight.copy_(kept)


def test_lst_starts_from_strongest_backbone_rows() -> None:
    model: Any = attached(made("lst"), base(CAUSAL))
    side = model.get_submodule(NAME)
    assert isinstance(side, LadderNetwork)
    stream = strongest(
        sum(
            w.square().sum(0)
            for block in model.model.layers
            for w in (m.weight for m in block.modules() if isinstance(m, nn.Linear))
            if w.shape[1] == 64
        ),
        16,
    )
    query = model.model.layers[1].self_attn.q_proj.weight
    rows = strongest(query.square().sum(1), 16)
    assert torch.equal(side.blocks[1].query.weight, query[rows][:, stream])
    with torch.no_grad():
        side.back.weight.zero_()
    assert gap(logits(model, CAUSAL), torch.zeros(1)) < 1e-6  # nothing of the backbone's own last state is left
