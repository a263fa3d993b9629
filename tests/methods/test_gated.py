"""Searches with gates: validation data decides what is adapted, and the search changes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import Unsupported
from harness.methods.modules import blocks
from tests.methods.tiny import CAUSAL, CLASSIFIER, base, batch, gap, made

Batches = Callable[[int], Iterable[dict[str, torch.Tensor]]]
SEARCH = {"search_steps": 8, "validation_batches": 1}


def said(token: int) -> Batches:
    """Batches in which every next token is ``token``."""

    def batches(count: int) -> Iterable[dict[str, torch.Tensor]]:
        for seed in range(count):
            made_up = batch(CAUSAL, seed)
            yield {**made_up, "labels": torch.full_like(made_up["labels"], token)}

    return batches


def deaf(listening: int | None, layers: int = 4) -> nn.Module:
    """A Llama in which attention reaches the output in one block only (or none): elsewhere queries change nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    for index, layer in enumerate(model.model.layers):
        if index != listening:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
        else:
            nn.init.normal_(layer.self_attn.o_proj.weight, std=0.5)
    with torch.no_grad():
        model.lm_head.weight[6] = -model.lm_head.weight[5]  # what makes one of the two likelier makes the other less so
    return model


def chosen_blocks(found: dict[str, Any], model: nn.Module) -> set[int]:
    prefix, _ = blocks(model)
    return {int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in found["chosen"]}


@pytest.mark.parametrize("listening", [0, 2])
def test_flexora_keeps_blocks_only_if_they_help_validation(listening: int) -> None:
    helped, misled = deaf(listening), deaf(listening)
    found = made("flexora", **SEARCH).search(helped, said(5), said(5))
    assert chosen_blocks(found, helped) == {listening}
    found = made("flexora", **SEARCH).search(misled, said(5), said(6))  # the factors learn what validation contradicts
    assert chosen_blocks(found, misled) == {0, 1, 2, 3} - {listening}


def test_flexora_keeps_one_block_where_none_gained() -> None:
    model = deaf(None)
    method = made("flexora")
    layers = method.targets(model)
    chosen = method.choose(torch.tensor([-0.3, -0.1, -0.2, -0.4]), layers, model)
    assert chosen_blocks({"chosen": chosen}, model) == {1}
    chosen = method.choose(torch.tensor([0.0, 0.1, -0.2, 0.4]), layers, model)
    assert chosen_blocks({"chosen": chosen}, model) == {1, 3}
    assert float(method.opening(torch.zeros(4)).sum()) == pytest.approx(4)


def test_diffora_keeps_modules_that_help_on_validation() -> None:
    only = {"target_modules": ["q_proj", "down_proj"], **SEARCH}
    helped, misled = deaf(None), deaf(None)
    found = made("diffora", **only).search(helped, said(5), said(5))
    assert len(found["chosen"]) == 4
    assert all(name.endswith("down_proj") for name in found["chosen"])
    found = made("diffora", **only).search(misled, said(5), said(6))
    assert all(name.endswith("q_proj") for name in found["chosen"])


def test_diffora_keeps_a_share_and_continues_search_factors() -> None:
    model: Any = deaf(1)
    method = made("diffora", rho=0.3, **SEARCH)
    found = method.search(model, said(5), said(5))
    per_block = [sum(f".layers.{index}." in name for name in found["chosen"]) for index in range(4)]
    assert per_block == [2, 2, 2, 2]  # round(0.3 x 7)
    method.attach(model)
    started = [p for n, p in model.named_parameters() if n.endswith("gated_up")]
    assert len(started) == 8
    assert all(bool(p.any()) for p in started)


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
@pytest.mark.parametrize("name", ["flexora", "diffora"])
def test_a_search_leaves_the_model_as_it_was(name: str, kind: str) -> None:
    model = base(kind)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    data = lambda count: [batch(kind, seed) for seed in range(count)]  # noqa: E731
    made(name, kind, **SEARCH).search(model, data, data)
    after = model.state_dict()
    assert after.keys() == before.keys()
    learned = {n for n in before if gap(before[n], after[n]) > 0}
    head = {n for n in before if n.startswith("classifier")}
    assert learned == (head if name == "diffora" else set())  # its factors stay, and the head they were trained with
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["flexora", "diffora"])
def test_search_needs_a_validation_split(name: str) -> None:
    with pytest.raises(Unsupported, match="learn on the validation split, which the task lacks"):
        made(name).search(base(CAUSAL), said(5), None)
    with pytest.raises(Unsupported, match="known after its search"):
        made(name).expected_trainable(base(CAUSAL))
    with pytest.raises(Unsupported, match="has no module named 'c_attn'; its linear layers are down_proj"):
        made(name, target_modules=["c_attn"]).search(base(CAUSAL), said(5), said(5))


def test_diffora_continues_with_the_gated_product() -> None:
    model: Any = deaf(1)
    method: Any = made("diffora", rho=1.0, **SEARCH)
    seen: dict[str, torch.Tensor] = {}
    keep = method.keep

    def kept(model: Any, opened: torch.Tensor) -> bool:
        for gate, layer in zip(opened, method.targets(model), strict=True):
            module = model.get_submodule(layer.name)
            seen[layer.name] = gate * (module.gated_up @ module.gated_down).detach()
        return bool(keep(model, opened))

    method.keep = kept
    method.search(model, said(5), said(5))
    method.attach(model)
    for name, product in seen.items():
        module = model.get_submodule(name)
        assert torch.allclose(module.gated_up @ module.gated_down, product, atol=1e-6)
