"""Methods that train single entries: which entries, how many, and that nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import CheckFailed
from harness.meters.flops import count_flops
from harness.methods.modules import TENSORS_FILE
from harness.methods.selective.principal import PrincipalAdamW, principal
from harness.methods.selective.spiel_ops import SparseSM3, combined_product, grow, scattered
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, llama, made, train


# --- SpIEL ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["spiel-ag", "spiel-ma"])
def test_spiel_moves_entries_and_keeps_their_number(name: str) -> None:
    method = made(name, steps=12, r=1, interval=8, watched=3)
    model = attached(method, llama())
    module: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    drawn = module.spiel_index.clone()
    train(method, model, steps=12)
    moved = set(module.spiel_index.tolist())
    assert moved != set(drawn.tolist())
    assert len(moved) == len(drawn) == 128  # no place twice
    weight = module.weight.detach().clone()
    method.merge(model)
    assert int((module.weight != weight).sum()) <= 128


def test_spiel_ag_grows_where_the_whole_gradient_is_largest() -> None:
    method = made("spiel-ag", steps=40, r=1, watched=1)
    model = attached(method, llama())
    module: Any = model.get_submodule("model.layers.1.mlp.down_proj")
    plain = llama()
    plain(**batch(CAUSAL)).loss.backward()
    gradient = plain.get_parameter("model.layers.1.mlp.down_proj.weight").grad
    assert gradient is not None
    largest = set(gradient.abs().flatten().topk(len(module.spiel_index)).indices.tolist())
    train(method, model, steps=1)  # with one step watched, everything is given up after it
    assert set(module.spiel_index.tolist()) == largest
    assert not module.spiel_delta.any()
    state = method._optimizer.state[module.spiel_delta]
    assert state["exp_avg"].abs().min() > 0  # seeded by what was watched


def test_spiel_ma_grows_at_largest_rows_and_columns() -> None:
    method = made("spiel-ma", steps=40, r=1, watched=2)
    model = attached(method, llama())
    module: Any = model.get_submodule("model.layers.1.mlp.down_proj")
    train(method, model, steps=2)
    state = method._optimizer.state[module.spiel_delta]
    assert {k: tuple(v.shape) for k, v in state.items()} == {"rows": (64,), "columns": (128,)}
    product = (state["rows"][:, None] * state["columns"]).flatten()
    assert product[module.spiel_index].min() >= product.sort().values[-2 * len(module.spiel_index)]


@pytest.mark.parametrize("name", ["spiel-ag", "spiel-ma"])
def test_spiel_multiplies_once_and_saves_places_in_four_bytes(name: str, tmp_path: Path) -> None:
    def flops(row: str) -> int:
        method = made(row)
        model = attached(method, llama()).train()
        return count_flops(lambda: model(**batch(CAUSAL)).loss.backward())

    assert flops(name) <= flops("full")  # a second, dense product made it 1.5 times as much
    method = made(name)
    method.save(attached(method, llama()), tmp_path)
    stored = load_file(tmp_path / TENSORS_FILE)
    assert {t.dtype for n, t in stored.items() if n.endswith("spiel_index")} == {torch.int32}


def test_spiel_s_one_product_has_the_gradient_of_the_sum() -> None:
    torch.manual_seed(0)
    module: Any = torch.nn.Linear(6, 5).double()
    module.spiel_index = torch.tensor([3, 11, 20])
    module.spiel_delta = torch.nn.Parameter(torch.randn(3).double())
    x = torch.randn(2, 4, 6).double().requires_grad_(True)
    y = combined_product(x.float(), module)
    dense = torch.zeros(30).double()
    dense[module.spiel_index] = module.spiel_delta.detach()
    weight = (module.weight.detach() + dense.view(5, 6)).requires_grad_(True)
    expected = x @ weight.T
    assert torch.allclose(y.double(), expected, atol=1e-5)
    seed = torch.randn(2, 4, 5).double()
    of_x, of_delta = torch.autograd.grad(y, [x, module.spiel_delta], seed.float())
    true_x, true_weight = torch.autograd.grad(expected, [x, weight], seed)
    assert torch.allclose(of_x, true_x, atol=1e-5)
    assert torch.allclose(of_delta.double(), true_weight.flatten()[module.spiel_index], atol=1e-5)


def test_entries_without_better_position_stay_unique() -> None:
    module: Any = torch.nn.Linear(4, 3)
    module.spiel_index = torch.tensor([0, 5, 7])
    module.spiel_delta = torch.nn.Parameter(torch.tensor([0.1, 0.2, 3.0]))
    new, _ = grow(module, torch.tensor([0, 1]), torch.tensor([7, 5, 2]), torch.tensor([9.0, 8.0, 1.0]))
    assert module.spiel_index.tolist()[2] == 7  # what was not given up
    assert len(set(module.spiel_index.tolist())) == 3
    assert 2 in new.tolist()
    assert scattered(module)[1, 3] == 3.0


def test_sm3_bounds_adagrad_s_state_from_above() -> None:
    torch.manual_seed(0)
    module: Any = torch.nn.Linear(4, 3)
    module.spiel_index = torch.arange(12)
    delta = module.spiel_delta = torch.nn.Parameter(torch.zeros(12))
    optimizer = SparseSM3([{"params": [delta], "layer": module}], lr=1e-2)
    exact = torch.zeros(12)
    for _ in range(5):
        delta.grad = torch.randn(12)
        exact += delta.grad.square()
        optimizer.step()
    state = optimizer.state[delta]
    covered = torch.minimum(state["rows"][:, None], state["columns"]).flatten()
    assert bool((covered >= exact - 1e-5).all())


# --- LIFT ----------------------------------------------------------------------------------------
def test_lift_moves_principal_weights_and_keeps_their_states() -> None:
    method = made("lift", rank=1, picture=8)
    model = attached(method, llama())
    name = "model.layers.0.mlp.up_proj.weight"
    before = model.get_parameter(name).detach().clone()
    optimizer = method.optimizer(model)
    model(**batch(CAUSAL)).loss.backward()
    optimizer.step()
    u, s, v = torch.linalg.svd(before)
    picture = (u[:, :8] * s[:8]) @ v[:8]
    largest = set(picture.abs().flatten().topk(64 + 128).indices.tolist())
    moved = (model.get_parameter(name) != before).flatten().nonzero().flatten().tolist()
    assert set(moved) == largest
    state = optimizer.state[model.get_parameter(name)]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (64 + 128,)


def test_lift_carries_the_states_of_entries_that_stay() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(10, 10))
    optimizer = PrincipalAdamW([{"params": [weight], "rank": 1}], lr=1.0, picture=2, interval=1)
    for _ in range(2):
        weight.grad = torch.randn(10, 10)
        old = {k: v for k, v in optimizer.state[weight].items() if k != "step"}
        optimizer.step()
    new = optimizer.state[weight]
    kept = [i for i in new["index"].tolist() if i in old["index"].tolist()]
    fresh = [i for i in new["index"].tolist() if i not in old["index"].tolist()]
    assert kept
    assert fresh
    for place in kept:
        was = old["exp_avg"][old["index"] == place]
        assert new["exp_avg"][new["index"] == place] == pytest.approx(
            float(0.9 * was + 0.1 * weight.grad.flatten()[place])
        )
    for place in fresh:
        assert new["exp_avg"][new["index"] == place] == pytest.approx(float(0.1 * weight.grad.flatten()[place]))


@pytest.mark.parametrize("exact_side", [1024, 64])
def test_lift_finds_the_principal_entries_of_a_slow_spectrum(exact_side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.methods.selective.principal.EXACT_SIDE", exact_side)
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(200, 200)).Q, torch.linalg.qr(torch.randn(300, 200)).Q
    values = torch.linspace(1, 0.05, 200) * (1 + 3 * torch.arange(1, 201) ** -0.5)  # as of a trained matrix
    for weight in ((left * values) @ right.T, right @ (left * values).T):
        u, s, v = torch.linalg.svd(weight)
        exact = ((u[:, :8] * s[:8]) @ v[:8]).abs().flatten().topk(2000).indices.tolist()
        assert len(set(principal(weight, 2000, 8).tolist()) & set(exact)) >= 0.95 * 2000


# --- LT-SFT and grafting -------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_lt_sft_goes_back_and_trains_what_moved_furthest(kind: str) -> None:
    method = made("lt-sft", kind, steps=6, share=0.05)
    model = attached(method, base(kind))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    seen: dict[str, torch.Tensor] = {}
    turn = method.select

    def select(model: Any, step: int) -> None:
        if step == 3:
            seen.update({n: p.detach().clone() for n, p in model.named_parameters()})
        turn(model, step)
        if step == 3:  # back at the start
            assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())

    method.select = select  # type: ignore[method-assign] # spied on
    train(method, model, steps=6)
    method.finish(model)
    head = method.head_names(model)
    moved = torch.cat([(seen[n] - start[n]).abs().flatten() for n in start if n not in head])
    kept = torch.cat([(p != start[n]).flatten() for n, p in model.named_parameters() if n not in head])
    number = round(0.05 * len(moved))
    assert int(kept.sum()) <= number
    assert int(kept.sum()) > 0.9 * number
    assert moved[kept].min() >= moved.sort().values[-number]


def test_an_entry_that_should_not_have_moved_is_noticed() -> None:
    method = made("lt-sft", steps=6)
    model: Any = attached(method, llama())
    train(method, model, steps=6)
    with torch.no_grad():
        model.model.norm.weight += 1
        model.model.layers[0].mlp.up_proj.weight += 1
    with pytest.raises(CheckFailed, match=r"and [0-9]+ others"):
        method.finish(model)


def test_grafting_selects_few_fine_tuned_entries() -> None:
    def grafted(mask_steps: int) -> tuple[float, int]:
        method = made("grafting", steps=10, share=0.01, mask_steps=mask_steps, mask_rate=1e10)
        model = attached(method, llama())
        fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert fixed == {"model.embed_tokens.weight", "lm_head.weight"}
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        train(method, model, steps=10)
        tuned = {n: p.detach().clone() for n, p in model.named_parameters()}
        model = method.finish(model.eval())
        kept = 0
        for name, parameter in model.named_parameters():
            differs = parameter != start[name]
            assert torch.equal(parameter[differs], tuned[name][differs])
            kept += int(differs.sum())
        seen = [batch(CAUSAL, seed) for seed in range(8)]
        with torch.no_grad():
            return float(sum(model(**inputs).loss for inputs in seen)), kept

    chosen, number = grafted(0)
    learned, _ = grafted(60)
    inside = sum(
        p.numel() for n, p in llama().named_parameters() if n not in ("model.embed_tokens.weight", "lm_head.weight")
    )
    assert number == round(0.01 * inside)
    assert learned < chosen


def test_grafting_keeps_the_best_of_the_masks_on_the_way() -> None:
    method: Any = made("grafting", steps=10, share=0.01, mask_steps=20, mask_rate=1e12)  # a rate that ruins the mask
    model = attached(method, llama())
    train(method, model, steps=10)
    method.finish(model.eval())
    losses = method.facts()["graft_loss"]
    assert len(losses) == 21
    judged = [*method._batches[:4], *method._validation]
    with torch.no_grad():
        kept = sum(float(model(**inputs).loss) for inputs in judged) / len(judged)
    assert kept == pytest.approx(min(losses), rel=1e-5)
    assert losses[-1] > min(losses)
