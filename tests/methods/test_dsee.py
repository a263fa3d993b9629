"""DSEE: entries where a low-rank matrix cannot follow, and frozen weights that are gone from the middle on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from harness.methods.selective.dsee import sparse_places
from harness.quantizers.measure import dequantize
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, gap, logits, made, train


def test_entries_are_where_low_rank_cannot_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(40, 4, generator=generator) @ torch.randn(4, 60, generator=generator)
    spikes = torch.randperm(2400, generator=generator)[:16].sort().values
    weight = smooth.flatten()
    weight[spikes] += 6.0 * torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0)
    largest = weight.abs().topk(16).indices.sort().values
    assert not torch.equal(largest, spikes)  # size alone does not find them
    found = sparse_places(weight.view(40, 60), torch.randn(60, 4, generator=generator), 16)
    assert torch.equal(found, spikes)


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_smallest_frozen_weights_are_pruned_after_the_middle(kind: str) -> None:
    original = {n: p.detach().clone() for n, p in base(kind).named_parameters()}
    method = made("dsee", kind, steps=4)
    model: Any = attached(method, base(kind))
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "dsee_places")}
    assert len(layers) == (14 if kind == CAUSAL else 12)
    before = logits(model, kind)
    method.on_step(model, 1)
    assert gap(logits(model, kind), before) < 1e-6
    method.on_step(model, 2)
    assert gap(logits(model, kind), before) > 1e-5
    sizes = torch.cat([original[f"{n}.weight"].abs().flatten() for n in layers])
    limit = float(sizes.kthvalue(math.ceil(0.2 * len(sizes))).values)
    trained = {n: (m.dsee_up @ m.dsee_down).detach() for n, m in layers.items()}
    merged = method.merge(model)
    zeros = 0
    for name in layers:
        kept = merged.get_submodule(name).weight - trained[name]
        small = original[f"{name}.weight"].abs() <= limit
        assert gap(kept, original[f"{name}.weight"].where(~small, 0.0)) < 1e-6
        zeros += int(small.sum())
    assert zeros == pytest.approx(0.2 * len(sizes), rel=1e-3)


def test_dsee_updates_train_after_pruning_and_zeros_stay() -> None:
    method = made("dsee", steps=6)
    model: Any = attached(method, base(CAUSAL))
    assert not train(method, model, steps=6)
    module = model.model.layers[0].mlp.up_proj
    assert module.dsee_limit is not None
    pruned = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model(**batch(CAUSAL)).loss.backward()
    optimizer.step()
    assert all(gap(pruned[n], p.detach()) > 0 for n, p in model.named_parameters() if p.requires_grad)
    assert bool(module.dsee_entries.any())
    assert gap(module.weight.detach(), base(CAUSAL).get_submodule("model.layers.0.mlp.up_proj").weight) == 0


@pytest.mark.parametrize("quantizer", ["none", "bnb-nf4"])
def test_a_layer_computes_the_equation_on_any_base(quantizer: str) -> None:
    method = made("dsee", CAUSAL, "fp" if quantizer == "none" else quantizer)
    model: Any = attached(method, base(CAUSAL, quantizer))
    train(method, model)
    module = model.model.layers[1].mlp.down_proj
    weight = dequantize(module).float()
    sparse = torch.zeros_like(weight).flatten()
    sparse[module.dsee_places] = module.dsee_entries.detach()
    whole = weight.where(weight.abs() > module.dsee_limit, 0.0) + sparse.view_as(weight)
    whole = whole + (module.dsee_up @ module.dsee_down).detach()
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert gap(module(x), x @ whole.T) < 1e-5
