"""Selective, projected and zeroth-order methods: for each, a test that fails without its central idea."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.meters.flops import count_flops
from harness.methods.catalog import METHODS
from harness.methods.modules import blocks, linears
from harness.methods.optimizers.projected import ProjectedAdamW, back, project, projector
from harness.methods.selective.greentrainer import knapsack
from harness.methods.selective.lofit import HEADS, head_width, output_projections
from harness.methods.selective.owlore import outlier_share
from harness.methods.selective.s2ft import CHANNELS, down_projections
from harness.methods.zeroth_order.directions import directions, shift
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, llama, logits, made, train


def deep(layers: int = 6) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


# --- HFT -----------------------------------------------------------------------------------------
def test_hft_trains_half_of_each_kind_and_all_outside_blocks() -> None:
    model = attached(made("hft"), deep())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    prefix, layers = blocks(model)
    for index in range(len(layers)):
        inside = {n for n in trained if n.startswith(f"{prefix}.{index}.")}
        assert sum("self_attn" in n for n in inside) == 2
        assert sum("mlp" in n for n in inside) in (1, 2)
        assert sum("norm" in n for n in inside) == 1
    assert sum("mlp" in n for n in trained) == 9  # 2 of 3 in half of the blocks, 1 of 3 in the others
    assert all(n in trained for n, _ in model.named_parameters() if not n.startswith(prefix))
    again = {n for n, p in attached(made("hft"), deep()).named_parameters() if p.requires_grad}
    assert again == trained  # the seed draws the same half, so that what is reloaded is what was saved


# --- LISA ----------------------------------------------------------------------------------------
def test_lisa_trains_drawn_blocks_and_drops_other_states() -> None:
    method = made("lisa", active=2, interval=3)
    model = attached(method, deep())
    optimizer = method.optimizer(model)
    inputs = batch(CAUSAL)
    awake = []
    for step in range(6):
        before = snapshot(model)
        method.select(model, step)
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = changed(model, before)
        prefix, _ = blocks(model)
        awake.append({n.removeprefix(f"{prefix}.").split(".")[0] for n in moved if n.startswith(prefix)})
        assert {"model.embed_tokens.weight", "model.norm.weight"} <= moved
        stateful = {id(p) for p in optimizer.state}
        asleep = [p for n, p in model.named_parameters() if n.startswith(prefix) and n not in moved]
        assert not {id(p) for p in asleep} & stateful
    assert {len(a) for a in awake} == {2}
    inside = [n for n, _ in model.named_parameters() if n.startswith(prefix)]
    assert {n.split(".")[2] for n in inside if method.expects_change(n)} == awake[0] | awake[3]
    assert awake[0] == awake[1] == awake[2] != awake[3]  # drawn again after three steps, and really other blocks


# --- OwLore --------------------------------------------------------------------------------------
def test_owlore_draws_blocks_by_their_outliers() -> None:
    model = deep()
    _, layers = blocks(model)
    with torch.no_grad():
        for index, planted in ((1, 8), (4, 24)):
            layers[index].mlp.up_proj.weight[0, :planted] = 5.0  # against a standard deviation of 0.02
    method = made("owlore", active=1)
    attached(method, model)
    assert method.outliers is not None
    assert [index for index, share in enumerate(method.outliers) if share > 0] == [1, 4]
    assert method.outliers[4] == pytest.approx(3 * method.outliers[1])
    drawn = [method.draw(6, random.Random(seed)) for seed in range(400)]
    counts = [sum(index in d for d in drawn) for index in range(6)]
    assert counts[0] == counts[2] == counts[3] == counts[5] == 0
    assert 60 < counts[1] < 140  # a fourth
    method.params["active"] = 3
    assert all({1, 4} < method.draw(6, random.Random(seed)) for seed in range(20))  # then one of those without


def test_an_outlier_is_weighed_by_its_input() -> None:
    weight = torch.ones(4, 50)
    inputs = torch.ones(50)
    assert outlier_share([(weight, inputs)], 13.0) == 0
    inputs[3] = 1e3  # one input channel is far larger than the others, as in language models
    assert outlier_share([(weight, inputs)], 13.0) == pytest.approx(1 / 50)


def test_owlore_trains_drawn_blocks_in_a_renewed_low_rank() -> None:
    method = made("owlore", active=2, interval=2, rank=3)
    model = attached(method, deep())
    optimizer = method.optimizer(model)
    inputs = batch(CAUSAL)
    prefix, _ = blocks(model)
    age: dict[str, int] = {}
    restarts = 0
    for step in range(8):
        before = snapshot(model)
        method.select(model, step)
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {n for n in changed(model, before) if n.startswith(prefix)}
        awake = {n.removeprefix(f"{prefix}.").split(".")[0] for n in moved}
        assert len(awake) == 2
        age = {index: age.get(index, 0) + 1 for index in awake}  # what sleeps begins again
        for name in (n for n in moved if n.endswith("proj.weight")):
            assert torch.linalg.matrix_rank(model.get_parameter(name) - before[name], tol=1e-5) <= 3
            state = optimizer.state[model.get_parameter(name)]
            assert state["exp_avg"].numel() == 3 * max(before[name].shape)
            assert state["step"] == age[name.removeprefix(f"{prefix}.").split(".")[0]]
        restarts += int(step > 1 and 1 in age.values())
    assert restarts  # some block woke that had slept


# --- GreenTrainer --------------------------------------------------------------------------------
def test_the_knapsack_is_the_best_choice_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(2, 8))
        value, cost = list(rng.uniform(-0.2, 1, n)), list(rng.integers(1, 10, n).astype(float))
        budget = float(rng.uniform(0.3, 1.2) * 2 * sum(cost))

        def spent(chosen: tuple[int, ...], cost: list[float] = cost) -> float:
            return sum(cost[i] for i in chosen) + sum(cost[: max(chosen) + 1])

        choices = [c for k in range(1, n + 1) for c in itertools.combinations(range(n), k)]
        found = knapsack(value, cost, budget)
        # every cost is rounded up to a thousandth of the budget, which a choice near the limit may not survive
        surely = [sum(value[i] for i in c) for c in choices if spent(c) <= budget * (1 - 2 * n / 1000)]
        if not surely:
            continue
        assert spent(tuple(found)) <= budget
        worth = sum(value[i] for i in found)
        assert (
            max(surely) - 1e-9 <= worth <= max(sum(value[i] for i in c) for c in choices if spent(c) <= budget) + 1e-9
        )


def test_greentrainer_stays_in_budget_and_restores_the_model() -> None:
    model = deep()
    before = snapshot(model)
    method = made("greentrainer", rho=0.5, selections=1)
    model = attached(method, model)
    assert not changed(model, before)
    assert method.selected
    layers = linears(model)[::-1]
    cost = {layer.name: 2.0 * layer.inputs * layer.outputs for layer in layers}
    deepest = max(index for index, layer in enumerate(layers) if layer.name in method.selected)
    spent = sum(cost[n] for n in method.selected) + sum(cost[layer.name] for layer in layers[: deepest + 1])
    forward, backward = sum(cost.values()), 2 * sum(cost.values())
    assert spent + forward <= 0.5 * (forward + backward) * 1.001
    train(method, model)
    assert changed(model, before) == {f"{n}.weight" for n in method.selected}


def test_greentrainer_chooses_again_and_drops_old_states() -> None:
    model = deep()
    method: Any = made("greentrainer", rho=0.5, steps=8)
    model = attached(method, model)
    before = snapshot(model)
    trained: list[set[str]] = []
    choose = method.select

    def select(model: Any, step: int) -> None:
        choose(model, step)
        trained.append({n for n, p in model.named_parameters() if p.requires_grad})
        if step:  # no state but that of what trains, nor of what has not stepped yet
            held = {n for n, p in model.named_parameters() if p in method._optimizer.state}
            assert held <= trained[-1]

    method.select = select
    train(method, model, steps=8)
    method.finish(model)
    history = method.facts()["selections"]
    assert [one["step"] for one in history] == [0, 2, 4, 6]
    assert trained == [{f"{n}.weight" for n in history[step // 2]["selected"]} for step in range(8)]
    with method.counted(model):
        counted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert counted == trained[-1]
    assert len({tuple(one["selected"]) for one in history}) > 1  # it adapts
    assert changed(model, before) == {f"{n}.weight" for one in history for n in one["selected"]}
    method.finish(model)
    saved = {n for n, p in model.named_parameters() if p.requires_grad}
    assert saved == changed(model, before)


def test_greentrainer_refuses_a_budget_below_forward_cost() -> None:
    cls = METHODS.get("greentrainer")
    assert "the forward pass alone" in (cls.check(CAUSAL, "fp", {"rho": 0.3}) or "")
    assert cls.check(CAUSAL, "fp", {"rho": 0.5}) is None


# --- S2FT ----------------------------------------------------------------------------------------
def test_s2ft_moves_only_its_channels() -> None:
    method = made("s2ft", channels=0.1)
    model = attached(method, base(CAUSAL))
    train(method, model)
    plain = {layer.name: model.get_submodule(layer.name).weight.detach().clone() for layer in down_projections(model)}
    drawn = {name: getattr(model.get_submodule(name), CHANNELS).tolist() for name in plain}
    merged = method.merge(model)
    for name, weight in plain.items():
        columns = (merged.get_submodule(name).weight != weight).any(dim=0).nonzero().flatten().tolist()
        assert columns == drawn[name]


# --- LoFiT ---------------------------------------------------------------------------------------
def test_lofit_shifts_the_chosen_heads_and_becomes_a_bias() -> None:
    method = made("lofit", share=0.25)
    model = attached(method, base(CAUSAL))
    assert method.chosen
    assert sum(map(len, method.chosen.values())) == 2  # a quarter of 2 x 4 heads
    train(method, model)
    before = logits(model, CAUSAL)
    names = [n for n, m in model.named_modules() if hasattr(m, HEADS)]
    merged = method.merge(model)
    assert all(merged.get_submodule(n).bias.abs().max() > 0 for n in names)
    assert (logits(merged, CAUSAL) - before).abs().max() < 1e-5
    assert {layer.inputs // head_width(model) for layer in output_projections(model)} == {4}


# --- GaLore --------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_galore_step_is_in_the_subspace_with_a_small_state(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    start = weight.detach().clone()
    optimizer = ProjectedAdamW([{"params": [weight], "rank": 3}], lr=1e-2)
    weight.grad = torch.randn(shape)
    basis = projector(weight.grad, 3)
    optimizer.step()
    step = weight.detach() - start
    assert torch.linalg.matrix_rank(step, tol=1e-5) == 3
    assert torch.allclose(back(project(step, basis), basis, weight.shape), step, atol=1e-6)
    state = optimizer.state[weight]
    assert state["exp_avg"].numel() == state["exp_avg_sq"].numel() == 3 * max(shape)
    for _ in range(3):  # the subspace stays between two updates
        kept = state["projector"].clone()
        weight.grad = torch.randn(shape)
        optimizer.step()
        assert torch.equal(state["projector"], kept)


def test_without_projection_it_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.zeros(5, 7))
    theirs.data.copy_(ours.data)
    one = ProjectedAdamW([ours], lr=1e-2, weight_decay=0.1)
    two = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        ours.grad = torch.randn(5, 7)
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


# --- MeZO ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_mezo_steps_along_z_and_keeps_no_state(kind: str) -> None:
    method = made("mezo", kind, eps=1e-4)
    model = attached(method, base(kind)).double()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inputs = batch(kind)
    model(**inputs).loss.backward()
    parameters = list(model.parameters())
    z = list(directions(parameters, 0))  # seed 0, first step
    projected = sum(float((p.grad * d).sum()) for p, d in zip(parameters, z, strict=True) if p.grad is not None)
    model.zero_grad(set_to_none=True)
    optimizer = method.optimizer(model)
    method.training_step(model, inputs)
    rate = method.setting.learning_rate
    for (name, parameter), d in zip(model.named_parameters(), z, strict=True):
        moved = (parameter.detach() - before[name]).flatten()
        along = float(moved @ d.flatten().double()) / float(d.flatten().double() @ d.flatten().double())
        assert along == pytest.approx(-rate * projected, rel=2e-2)
        assert torch.allclose(moved, along * d.flatten().double(), atol=1e-5)
    optimizer.step()
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())


def test_a_shift_and_its_opposite_give_the_weights_back() -> None:
    weight = nn.Parameter(torch.randn(50, 50, dtype=torch.float32))
    start = weight.detach().clone()
    shift([weight], 3, 1e-2)
    assert float((weight.detach() - start).std()) == pytest.approx(1e-2, rel=0.1)
    shift([weight], 3, -1e-2)
    assert torch.allclose(weight, start, atol=1e-7)


@pytest.mark.parametrize("name", ["lisa", "owlore", "greentrainer"])
def test_counted_operations_are_those_of_a_real_step(name: str) -> None:
    method: Any = made(name, steps=8)
    model = attached(method, deep()).train()

    def counted() -> int:
        found = count_flops(lambda: model(**batch(CAUSAL)).loss.backward())
        model.zero_grad(set_to_none=True)
        return found

    everything = counted()
    with method.counted(model):
        before = counted()
    assert counted() == everything  # it is put back
    method.optimizer(model)
    method.select(model, 0)
    assert counted() == before < everything


def test_s2ft_trains_whole_heads_of_the_output_projection() -> None:
    method: Any = made("s2ft", heads=0.5, channels=0)
    model = attached(method, llama())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(method, model)
    method.merge(model)
    moved = {n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert moved == {layer.name + ".weight" for layer in output_projections(model)}
    width = head_width(model)
    for layer in output_projections(model):
        name = f"{layer.name}.weight"
        columns = (model.get_parameter(name) != before[name]).any(dim=0).view(-1, width)
        assert int(columns.all(dim=1).sum()) == layer.inputs // width // 2  # two of four heads, whole
        assert int(columns.any(dim=1).sum()) == layer.inputs // width // 2
    resolve = METHODS.get("s2ft").resolve
    assert resolve({"heads": 0}) == {"channels": 0.03}  # as before there were heads
