"""The zeroth-order family: what each estimate is, what each update does with it, and every scope it composes with."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.methods import bases
from harness.methods.catalog import METHODS
from harness.methods.zeroth_order.directions import bits, directions, shift, unpacked
from harness.methods.zeroth_order.mezo import ZerothOrderStep, by_block
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, gap, llama, logits, made, train

ESTIMATORS = [name for name in METHODS if METHODS.get(name).declaration.family == "zeroth-order"]
RATE = 5e-3


def one_step(name: str, **params: Any) -> tuple[nn.Module, dict[str, torch.Tensor], list[torch.Tensor], float, Any]:
    """One step in float64: the model, how far each tensor moved, z, the true slope along z, and the method."""
    method = made(name, **params)
    model = attached(method, base(CAUSAL)).double()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(**batch(CAUSAL)).loss.backward()
    z = [d.double() for d in directions(list(model.parameters()), 0)]  # seed 0, first step
    slope = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), z, strict=True) if p.grad is not None)
    model.zero_grad(set_to_none=True)
    method.optimizer(model)
    method.training_step(model, batch(CAUSAL))
    moved = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    return model, moved, z, slope, method


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


# --- how entries move ------------------------------------------------------------------------------
def test_forward_gradient_is_the_exact_derivative_along_z() -> None:
    passes = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: passes.append(module) if type(module).__name__ == "LlamaForCausalLM" else None
    )
    _, moved, z, slope, method = one_step("zo-forward-grad")
    hook.remove()
    assert len(passes) == 2  # one_step's own, for the true slope, and a single one for the estimate
    assert "eps" not in method.params
    assert torch.allclose(flat(moved.values()), -RATE * slope * flat(z), atol=1e-6)


def test_sign_moves_every_entry_by_the_rate_and_the_repo_s_by_z() -> None:
    _, moved, z, slope, _ = one_step("zo-sign", eps=1e-4)
    sign = 1.0 if slope > 0 else -1.0
    assert torch.allclose(flat(moved.values()), -RATE * sign * flat(z).sign(), atol=1e-7)
    _, moved, z, slope, _ = one_step("zo-sign", eps=1e-4, mode="repo")
    assert torch.allclose(flat(moved.values()), -RATE * sign * flat(z), atol=1e-6)


def test_momentum_averages_the_estimates_and_keeps_one_state() -> None:
    method = made("zo-momentum", eps=1e-4, momentum=0.5)
    model = attached(method, base(CAUSAL)).double()
    optimizer: Any = method.optimizer(model)
    start = flat(p.detach() for p in model.parameters())
    rhos = []
    slope = method.slope  # type: ignore[attr-defined]  # of the family

    def watched(*args: Any) -> Any:
        found = slope(*args)
        rhos.append(found[0])
        return found

    method.slope = watched  # type: ignore[attr-defined]
    for _ in range(2):
        method.training_step(model, batch(CAUSAL))
    z = [flat(directions(list(model.parameters()), seed)).double() for seed in (0, 1)]
    first = 0.5 * rhos[0] * z[0]
    second = 0.5 * first + 0.5 * rhos[1] * z[1]
    assert torch.allclose(flat(model.parameters()) - start, -RATE * (first + second), atol=1e-6)
    assert all(set(state) == {"momentum"} for state in optimizer.state.values())


def test_zo_adam_is_adam_on_the_estimate() -> None:
    model, moved, z, slope, method = one_step("zo-adam", eps=1e-4)
    expected = -RATE * (1.0 if slope > 0 else -1.0) * flat(z).sign()  # Adam's first step
    assert torch.allclose(flat(moved.values()), expected, atol=1e-4)
    assert len(method._optimizer.state) == len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_the_conservative_one_never_raises_the_loss_of_the_batch() -> None:
    method = made("zo-conservative")
    model = attached(method, base(CAUSAL)).eval()
    optimizer = method.optimizer(model)
    for rate in (1e-2, 10.0):  # the second step would throw MeZO far away
        optimizer.param_groups[0]["lr"] = rate
        before, kept = float(model(**batch(CAUSAL)).loss.detach()), flat(p.detach() for p in model.parameters()).clone()
        method.training_step(model, batch(CAUSAL))
        assert float(model(**batch(CAUSAL)).loss.detach()) <= before + 1e-5
        still = gap(flat(model.parameters()), kept) < 1e-3
        assert still == (rate == 10.0)


# --- which entries move ----------------------------------------------------------------------------
def test_sparse_mezo_moves_the_small_weights_alone() -> None:
    method = made("sparse-mezo", share=0.25)
    model = attached(method, base(CAUSAL))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    method.optimizer(model)
    method.training_step(model, batch(CAUSAL))
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        moved = (parameter.detach() - before[name]).abs() > 1e-5  # shifts back and forth leave rounding
        limit = before[name].abs().flatten().kthvalue(round(0.25 * parameter.numel())).values
        assert not moved[before[name].abs() > limit].any()
        assert moved[before[name].abs() <= limit].float().mean() > 0.9


def test_zo_sparse_moves_another_random_tenth_each_step() -> None:
    method = made("zo-sparse", sparsity=0.9)
    model = attached(method, base(CAUSAL)).double()
    method.optimizer(model)
    found = []
    for _ in range(2):
        before = flat(p.detach() for p in model.parameters()).clone()
        method.training_step(model, batch(CAUSAL))
        found.append((flat(model.parameters()) - before).abs() > 1e-12)
    assert all(float(moved.float().mean()) == pytest.approx(0.1, abs=0.01) for moved in found)
    assert float((found[0] & found[1]).float().mean()) == pytest.approx(0.01, abs=0.005)


def test_blockwise_estimates_each_block_by_itself() -> None:
    method = made("zo-blockwise", eps=1e-4)
    model = attached(method, base(CAUSAL)).double()
    method.optimizer(model)
    parts = by_block(model)
    assert [len(p) for p in parts] == [3, 9, 9]  # embedding, norm and head; two blocks of a Llama
    seen: list[tuple[set[int], float]] = []
    slope = method.slope  # type: ignore[attr-defined]

    def watched(step: Any) -> Any:
        inside = set(map(id, step.part))
        rest = flat(p.detach() for p in model.parameters() if id(p) not in inside).clone()
        found = slope(step)
        assert torch.equal(rest, flat(p.detach() for p in model.parameters() if id(p) not in inside))
        seen.append((inside, found[0]))
        return found

    method.slope = watched  # type: ignore[attr-defined]
    method.training_step(model, batch(CAUSAL))
    assert [ids for ids, _ in seen] == [set(map(id, part)) for part in parts]
    assert len({rho for _, rho in seen}) == 3


def test_hybrid_has_gradients_in_the_last_block_only() -> None:
    method = made("zo-hybrid", last=1)
    model = attached(method, base(CAUSAL))
    optimizer = method.optimizer(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    method.training_step(model, batch(CAUSAL))
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n in before if n.startswith(("model.layers.1.", "lm_head"))}
    below = {n for n in before if n not in with_gradient}
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == below  # the loop steps the rest
    optimizer.step()
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == set(before)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(10 * RATE)
    assert {n for n in before if method.expects_gradient(n)} == with_gradient


# --- every scope -----------------------------------------------------------------------------------
SCOPED = [(name, scope) for name in ESTIMATORS for scope in ("lora", "prefix")]


@functools.cache
def scoped(name: str, scope: str, kind: str) -> dict[str, float]:
    """A short life in that scope; MeZO's own rates would hardly move three steps, so a larger one is taken."""
    method, model = made(name, kind, scope=scope), base(kind)
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = method.expected_trainable(model)
    model = attached(method, model)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    train(method, model)
    after = logits(model, kind)
    with tempfile.TemporaryDirectory() as folder:
        method.save(model, Path(folder))
        again = made(name, kind, scope=scope).load(base(kind), Path(folder))
        reload_gap = gap(logits(again, kind), after)
    found = {n.replace("base_model.model.", "").replace(".base_layer", ""): p for n, p in model.named_parameters()}
    touched = sum(not torch.equal(kept[n], found[n]) for n in kept if n in found)
    merged = gap(logits(method.merge(model), kind), after) if method.promise.mergeable != "no" else 0.0
    return {"count": counted - (expected or 0), "touched": touched, "reload": reload_gap, "merge": merged}


@pytest.mark.parametrize(("name", "scope"), SCOPED)
def test_every_estimator_trains_lora_and_a_prefix(name: str, scope: str) -> None:
    if scope in METHODS.get(name).refused_scopes():  # type: ignore[attr-defined]  # of the family
        with pytest.raises(UserError, match=r"outside the blocks"):
            METHODS.get(name).resolve({"scope": scope})
        return
    found = scoped(name, scope, CAUSAL if scope == "prefix" else CLASSIFIER)
    assert found["count"] == 0
    assert found["touched"] == 0  # the base stays as it was
    assert found["reload"] < 1e-5
    assert found["merge"] < 1e-4


@pytest.mark.parametrize("quantizer", ["bnb-nf4", "bnb-int8", "rtn"])
def test_mezo_trains_lora_on_integer_weights(quantizer: str) -> None:
    method = made("mezo", CAUSAL, "bnb-nf4", scope="lora", r=4)
    model = base(CAUSAL, quantizer)
    expected = method.expected_trainable(model)
    model = attached(method, model)
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == expected
    train(method, model)
    assert all(not torch.equal(p, trained[n]) for n, p in model.named_parameters() if n in trained)


def test_the_declaration_follows_the_scope() -> None:
    cls = METHODS.get("mezo")
    full, lora = cls.resolve({}), cls.resolve({"scope": "lora", "r": 4})
    assert full == {"eps": 1e-3}  # as before there were scopes: records keep their keys
    assert (lora["scope"], lora["r"], lora["eps"]) == ("lora", 4, 1e-2)
    assert cls.resolve({"scope": "full"}) == full
    assert cls.declared(lora).lr_factor == pytest.approx(50 * cls.declared(full).lr_factor)
    assert "integers" in (cls.check(CAUSAL, "bnb-nf4", full) or "")
    assert cls.check(CAUSAL, "bnb-nf4", lora) is None
    assert cls.check(CAUSAL, next(iter(bases.DYNAMIC)), lora) is None  # no gradient is needed
    assert "quanto" in (cls.check_merge("quanto-int8", lora) or "")
    assert cls.check_merge("fp", cls.resolve({"scope": "prefix"})) == "mezo cannot be merged"
    assert "forward-mode" in (METHODS.get("zo-forward-grad").check(CAUSAL, "bnb-nf4", {"scope": "lora"}) or "")
    with pytest.raises(UserError, match=r"a\.yaml: method 'mezo' has no parameter 'r' in the scope full"):
        cls.resolve({"r": 4}, where="a.yaml")
    with pytest.raises(UserError, match=r"scope 'lorra' is unknown.*Did you mean 'lora'"):
        cls.resolve({"scope": "lorra"})
    with pytest.raises(UserError, match="method 'lora' has no parameter 'epz'"):
        cls.resolve({"scope": "lora", "epz": 1})


def test_a_mask_is_the_same_in_every_shift() -> None:
    weight = nn.Parameter(torch.randn(30, 30))
    start = weight.detach().clone()
    mask = made("zo-sparse").mask([weight], 3)  # type: ignore[attr-defined]
    for by in (1e-2, -2e-2, 1e-2):
        shift([weight], 3, by, mask=mask)
    assert torch.allclose(weight, start, atol=1e-6)


def test_a_mask_of_bits_is_the_mask() -> None:
    torch.manual_seed(0)
    mask = torch.rand(5, 13) > 0.5
    packed = bits(mask)
    assert packed.numel() == -(-65 // 8)
    assert torch.equal(unpacked(packed, mask.shape), mask)


def test_sparse_mezo_holds_a_bit_a_weight_in_a_step() -> None:
    method: Any = made("sparse-mezo")
    model = attached(method, llama())
    method.optimizer(model)
    method.training_step(model, batch(CAUSAL))
    assert method._mask_bytes <= sum(-(-p.numel() // 8) for p in model.parameters())


def test_several_directions_average_their_estimates() -> None:
    rate = 1e-2
    method: Any = made("mezo", directions=3)
    model = attached(method, llama())
    start = [p.detach().clone() for p in model.parameters()]
    inputs = batch(CAUSAL)
    expected = [p.clone().double() for p in start]
    with torch.no_grad():
        for seed in (30, 31, 32):
            rho, _ = method.slope(ZerothOrderStep(model, inputs, list(model.parameters()), seed, rate))
            for total, z in zip(expected, directions(list(model.parameters()), seed), strict=True):
                total -= rate * rho * z / 3
            for p, was in zip(model.parameters(), start, strict=True):
                p.copy_(was)
        method.descend(model, inputs, 10, rate)
    assert all(torch.allclose(p.double(), e, atol=1e-5) for p, e in zip(model.parameters(), expected, strict=True))


def test_a_constant_schedule_leaves_the_rate_where_it_is() -> None:
    constant: Any = made("mezo", schedule="constant")
    swept: Any = made("mezo")
    for method in (constant, swept):
        model = attached(method, llama())
        method.optimizer(model).param_groups[0]["lr"] = 0.0  # where a cosine ends
    assert constant.rate_now() == constant.setting.learning_rate
    assert swept.rate_now() == 0.0
    assert METHODS.get("mezo").resolve({}) == {"eps": 1e-3}  # as before there was a choice
    with pytest.raises(UserError, match="schedule must be sweep or constant"):
        METHODS.get("mezo").resolve({"schedule": "cosine"})
