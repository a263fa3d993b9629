"""Optimizers with small states: each one's idea, its state's size, and parity with a kept implementation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.meters.attribution import gradient_bytes, optimizer_bytes
from harness.methods.catalog import METHODS
from harness.methods.optimizers.fused import FusedAdafactor, FusedSGD
from harness.methods.optimizers.lora_optimizers import pairs, refactorize
from harness.methods.optimizers.projected import ProjectedAdamW, back, project, projector
from harness.methods.optimizers.projected_variants import (
    ApolloAdamW,
    EightBitProjectedAdamW,
    LazyProjectedAdamW,
    NaturalProjectedAdamW,
    RowNormalisedAdamW,
    TwoSidedAdamW,
    natural,
    random_projection,
)
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, llama, made, train

SHAPES = [(8, 20), (20, 8)]


def weight(shape: tuple[int, ...], seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def steps(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Distance that the parameter moves."""
    start = parameter.detach().clone()
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach() - start


def gradients(shape: tuple[int, ...], count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


# --- GaLore --------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
def test_our_galore_is_the_kept_one(shape: tuple[int, int]) -> None:
    reference = pytest.importorskip("pytorch_optimizer").GaLore
    ours, theirs = weight(shape), weight(shape)
    groups = [{"params": [theirs], "rank": 3, "update_proj_gap": 200, "scale": 0.5, "projection_type": "std"}]
    moved = steps(ProjectedAdamW([{"params": [ours], "rank": 3}], lr=1e-2, scale=0.5), ours, gradients(shape))
    expected = steps(reference(groups, lr=1e-2, eps=1e-8), theirs, gradients(shape))
    assert torch.allclose(moved, expected, atol=1e-5)
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_galore_subspace_follows_gradient_and_states_stay(shape: tuple[int, int]) -> None:
    parameter = weight(shape)
    optimizer = ProjectedAdamW([{"params": [parameter], "rank": 3}], lr=1e-2, update_gap=2)
    first, second, third = gradients(shape, 3)
    steps(optimizer, parameter, [first, second])
    state = optimizer.state[parameter]
    assert torch.equal(state["projector"], projector(first, 3))
    before = state["exp_avg"].clone()
    steps(optimizer, parameter, [third])
    assert torch.equal(state["projector"], projector(third, 3))
    assert torch.allclose(state["exp_avg"], 0.9 * before + 0.1 * project(third, state["projector"]), atol=1e-6)


def test_a_gradient_of_zeros_does_not_choose_the_subspace() -> None:
    parameter = weight((8, 20))
    optimizer = ProjectedAdamW([{"params": [parameter], "rank": 3}], lr=1e-2)
    assert not steps(optimizer, parameter, [torch.zeros(8, 20)]).any()
    (gradient,) = gradients((8, 20), 1)
    steps(optimizer, parameter, [gradient])
    assert torch.equal(optimizer.state[parameter]["projector"], projector(gradient, 3))


def test_8bit_galore_keeps_bytes_and_steps_as_galore() -> None:
    pytest.importorskip("bitsandbytes")
    shape = (64, 256)
    one, two = weight(shape), weight(shape)
    plain = ProjectedAdamW([{"params": [one], "rank": 8}], lr=1e-2)
    small = EightBitProjectedAdamW([{"params": [two], "rank": 8}], lr=1e-2)
    expected, moved = steps(plain, one, gradients(shape)), steps(small, two, gradients(shape))
    assert float(torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0)) > 0.99
    assert not torch.equal(moved, expected)
    codes, scales = small.state[two]["exp_avg"]
    assert codes.dtype is torch.uint8
    assert codes.numel() == 8 * 256
    assert scales.numel() == 8 * 256 / 256
    moments = 2 * 8 * 256
    saved = optimizer_bytes(plain) - optimizer_bytes(small)
    assert saved == 4 * moments - (moments + 4 * 2 * 8)  # four bytes an entry, against one and a scale for every 256


def test_q_galore_projector_is_4bit_and_updates_less_often() -> None:
    pytest.importorskip("bitsandbytes")
    parameter = weight((64, 256))
    settings: Any = {"threshold": 0.4, "patience": 2, "update_gap": 1}
    optimizer = LazyProjectedAdamW([{"params": [parameter], "rank": 4}], lr=1e-3, **settings)
    still = gradients((64, 256), 1)[0]
    renewed = []
    for _ in range(12):
        before = optimizer.state[parameter].get("projector")
        steps(optimizer, parameter, [still])
        renewed.append(optimizer.state[parameter]["projector"] is not before)
    # renewed at every step until two projectors resembled theirs, at every second until two more did, then every fourth
    assert [i for i, new in enumerate(renewed) if new] == [0, 1, 2, 4, 6, 10]
    codes, *_ = optimizer.state[parameter]["projector"]
    assert codes.numel() == 4 * 64 / 2  # two codes a byte
    basis = optimizer._basis(optimizer.state[parameter])
    exact = projector(still, 4)
    alike = torch.nn.functional.cosine_similarity(basis, exact, dim=0).abs()
    assert float(alike.min()) > 0.98
    turning = LazyProjectedAdamW([{"params": [parameter], "rank": 4}], lr=1e-3, **settings)
    steps(turning, parameter, gradients((64, 256), 8))
    assert turning.state[parameter]["gap"] == 1


def test_natural_galore_divides_by_recent_fisher_matrix() -> None:
    history = torch.stack(gradients((12,), 5)).double()
    gradient = history[-1]
    dense = 1e-2 * torch.eye(12).double() + history.T @ history
    expected = torch.linalg.solve(dense, gradient)
    assert torch.allclose(natural(history, gradient, 1e-2), expected, rtol=1e-3, atol=1e-4)
    parameter = weight((8, 20))
    optimizer = NaturalProjectedAdamW(
        [{"params": [parameter], "rank": 3}], lr=1e-2, history=4, damping=1e-3, update_gap=5
    )
    seen = gradients((8, 20), 6)
    steps(optimizer, parameter, seen[:5])
    state = optimizer.state[parameter]
    assert state["history"].shape == (4, 3 * 20)
    assert torch.allclose(state["history"][-1], project(seen[4], state["projector"]).flatten(), atol=1e-6)
    steps(optimizer, parameter, seen[5:])
    assert len(state["history"]) == 1  # gradients of the old subspace are forgotten with it


# --- Fira and APOLLO -----------------------------------------------------------------------------
def low_rank_group(method: Any, shape: tuple[int, int]) -> tuple[torch.optim.Optimizer, nn.Parameter]:
    """The method's optimizer on the tiny Llama, and one projected weight of that shape."""
    model = attached(method, base(CAUSAL))
    optimizer = method.optimizer(model)
    name = "model.layers.0.mlp.down_proj.weight" if shape == (64, 128) else "model.layers.0.mlp.up_proj.weight"
    return optimizer, model.get_parameter(name)


@pytest.mark.parametrize("shape", [(64, 128), (128, 64)])
def test_fira_steps_outside_subspace_scaled_as_within(shape: tuple[int, int]) -> None:
    pytest.importorskip("pytorch_optimizer")
    optimizer, parameter = low_rank_group(made("fira", rank=4), shape)
    (gradient,) = gradients(shape, 1)
    step = steps(optimizer, parameter, [gradient])
    basis = projector(gradient, 4)
    inside = back(project(step, basis), basis, parameter.shape)
    outside = step - inside
    low = project(gradient, basis)
    along = 0 if shape[0] <= shape[1] else 1
    factor = torch.sign(low).norm(dim=along, keepdim=True) / low.norm(dim=along, keepdim=True)  # Adam's first step
    rest = gradient - back(low, basis, parameter.shape)
    assert torch.allclose(outside, -5e-3 * factor * rest, rtol=1e-3, atol=1e-6)
    assert torch.allclose(inside, -5e-3 * back(torch.sign(low), basis, parameter.shape), rtol=1e-3, atol=1e-5)
    moments = sum(optimizer.state[parameter][name].numel() for name in ("exp_avg", "exp_avg_sq"))
    assert moments == 2 * 4 * max(shape)


@pytest.mark.parametrize("shape", [(64, 128), (128, 64)])
def test_apollo_keeps_channel_direction_and_adam_length(
    shape: tuple[int, int],
) -> None:
    optimizer, parameter = low_rank_group(made("apollo", rank=16), shape)
    (gradient,) = gradients(shape, 1)
    step = steps(optimizer, parameter, [gradient])
    side = 0 if shape[0] <= shape[1] else 1
    ratio = step / gradient
    assert torch.allclose(ratio, ratio.mean(dim=side, keepdim=True).expand_as(ratio), rtol=1e-3)
    assert float(ratio.max()) < 0
    assert ratio.select(side, 0).std() > 0  # one factor a channel, and not the same for all
    adam = 5e-3 * math.sqrt(gradient.numel())  # the first step of Adam is the sign
    assert 0.8 < float(step.norm()) / adam < 1.3
    state = optimizer.state[parameter]
    assert state["exp_avg"].numel() == 16 * max(shape)
    again = random_projection(gradient, 16, state["seed"])
    assert torch.allclose(state["exp_avg"], 0.1 * project(gradient, again), atol=1e-6)
    tensors = [v for v in state.values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 2  # the projection is drawn again, never stored


def test_apollo_mini_has_one_factor_per_matrix_and_rank_one() -> None:
    optimizer, parameter = low_rank_group(made("apollo-mini"), (64, 128))
    (gradient,) = gradients((64, 128), 1)
    ratio = steps(optimizer, parameter, [gradient]) / gradient
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert optimizer.state[parameter]["exp_avg"].numel() == 128


def test_apollo_s_step_grows_by_at_most_a_hundredth() -> None:
    parameter = weight((8, 20))
    optimizer = ApolloAdamW([{"params": [parameter], "rank": 2}], lr=1.0)
    (gradient,) = gradients((8, 20), 1)
    steps(optimizer, parameter, [gradient])
    short = steps(optimizer, parameter, [-gradient]).norm()  # the mean of both is nearly nothing
    next_ = steps(optimizer, parameter, [-gradient]).norm()  # ten times as long without the limit
    assert float(next_) == pytest.approx(1.01 * float(short), rel=1e-3)


def test_package_apollo_steps_in_a_random_subspace() -> None:
    kept = pytest.importorskip("pytorch_optimizer").APOLLO
    parameter = weight((64, 128))
    group = {"params": [parameter], "rank": 4, "update_proj_gap": 200, "scale": 1.0, "projection_type": "std"}
    step = steps(kept([group], lr=1e-2, scale_type="channel"), parameter, gradients((64, 128), 1))
    assert int(torch.linalg.matrix_rank(step, tol=1e-5)) == 4  # algorithm 1 of the paper scales the gradient itself


# --- GradNormLoRP and refactorized LoRA ----------------------------------------------------------
def test_gradnormlorp_projects_two_sides_or_one_in_repo_mode() -> None:
    shape, rank = (8, 64), 4
    parameter = weight(shape)
    optimizer = TwoSidedAdamW([{"params": [parameter], "rank": rank}], lr=1e-2, scale=4.0)
    (gradient,) = gradients(shape, 1)
    step = steps(optimizer, parameter, [gradient])
    left, right = optimizer.state[parameter]["projector"]
    assert torch.allclose(left @ left.T @ step @ right @ right.T, step, atol=1e-6)
    assert optimizer.state[parameter]["exp_avg"].shape == (rank, rank)
    for mode, width in (("paper", rank), ("repo", 64)):
        method = made("gradnormlorp", mode=mode)
        model = attached(method, base(CAUSAL))
        found: Any = method.optimizer(model)
        train(method, model)
        states = {n: found.state.get(p) for n, p in model.named_parameters()}
        name = next(n for n in states if "q_proj.lora_A" in n)
        train_with(found, model)
        assert found.state[dict(model.named_parameters())[name]]["exp_avg"].shape == (rank, width)
        magnitudes = [p for n, p in model.named_parameters() if "magnitude" in n]
        assert all(found.state[p]["exp_avg"].shape == p.shape for p in magnitudes)
    with pytest.raises(UserError, match="must be paper or repo, not 'both'"):
        METHODS.get("gradnormlorp").resolve({"mode": "both"})


def train_with(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    model.train()
    for _ in range(2):
        model(**batch(CAUSAL)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_refactorizing_keeps_product_and_balances_factors() -> None:
    a, b = weight((4, 20), 1), weight((16, 4), 2)
    product = (b @ a).detach()
    refactorize(a, b)
    assert torch.allclose(b @ a, product, atol=1e-5)
    assert torch.allclose(a @ a.T, b.T @ b, atol=1e-4)  # both are S
    assert torch.allclose(a @ a.T, torch.diag(torch.diag(a @ a.T)), atol=1e-4)


def test_refactorized_lora_restarts_adam_at_each_reset() -> None:
    method = made("lora-refactor", steps=6, resets=1)
    model = attached(method, base(CAUSAL))
    optimizer = method.optimizer(model)
    a, b = next(pairs(model))
    ages = []
    for step in range(1, 7):
        model(**batch(CAUSAL)).loss.backward()
        optimizer.step()
        method.on_step(model, step)
        optimizer.zero_grad()
        ages.append(int(optimizer.state[a]["step"]) if a in optimizer.state else 0)
    assert ages == [1, 2, 0, 1, 2, 3]  # one reset, in the middle; none after the last step
    assert torch.allclose(a @ a.T, b.T @ b, atol=1e-2) is False  # it went on training since


# --- LOMO and AdaLOMO ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lomo", "adalomo"])
@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_no_two_gradients_are_there_at_once(name: str, kind: str) -> None:
    method = made(name, kind)
    model = attached(method, base(kind))
    optimizer: Any = method.optimizer(model)
    most = 0
    update = optimizer.update

    def watched(parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        nonlocal most
        most = max(most, gradient_bytes(model))
        update(parameter, gradient, group)

    optimizer.update = watched
    loss = method.training_step(model, batch(kind))
    assert loss is not None
    assert not loss.requires_grad
    assert most == 0  # while one parameter moves, no .grad is held anywhere
    assert gradient_bytes(model) == 0
    size = sum(4 * p.numel() for p in model.parameters())
    assert optimizer_bytes(optimizer) <= (0 if name == "lomo" else 0.1 * size)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_lomo_is_gradient_descent_clipped_by_the_common_norm(clip: float) -> None:
    model, reference = base(CAUSAL), base(CAUSAL)
    trained = list(reference.parameters())
    reference(**batch(CAUSAL)).loss.backward()
    if clip:
        assert float(torch.nn.utils.clip_grad_norm_(trained, clip)) > clip
    torch.optim.SGD(trained, lr=0.1).step()
    optimizer = FusedSGD(model.parameters(), lr=7.0, clip=clip)
    optimizer.load_state_dict(optimizer.state_dict())  # accelerate does this, and the groups are others afterwards
    optimizer.param_groups[0]["lr"] = 0.1  # as a schedule does
    optimizer.backward(model(**batch(CAUSAL)).loss)
    for mine, theirs in zip(model.parameters(), trained, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_our_adalomo_is_the_kept_one() -> None:
    reference = pytest.importorskip("pytorch_optimizer").AdaLOMO
    ours, theirs = nn.Linear(6, 5), nn.Linear(6, 5)
    theirs.load_state_dict(ours.state_dict())
    one = FusedAdafactor(ours.parameters(), lr=1e-2, weight_decay=0.1)
    two = reference(theirs, lr=1e-2, weight_decay=0.1)
    for inputs in gradients((4, 6), 3):
        one.backward(ours(inputs).square().mean())
        two.fused_backward(theirs(inputs).square().mean(), 1e-2)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


# --- bitsandbytes --------------------------------------------------------------------------------
def test_adamw_8bit_keeps_a_byte_a_moment_and_steps_as_adamw() -> None:
    pytest.importorskip("bitsandbytes")
    method = made("adamw-8bit")
    optimizer = method.optimizer(nn.Linear(128, 64, bias=False))
    parameter, plain = optimizer.param_groups[0]["params"][0], weight((64, 128))
    plain.data.copy_(parameter.data)
    moved = steps(optimizer, parameter, gradients((64, 128)))
    expected = steps(torch.optim.AdamW([plain], lr=5e-3, weight_decay=0.0), plain, gradients((64, 128)))
    assert float(torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0)) > 0.98
    state = optimizer.state[parameter]
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}


def test_paged_states_need_a_gpu_and_say_so() -> None:
    cls = METHODS.get("adamw-paged")
    assert cls.declaration.devices == {"cuda"}  # on a CPU bitsandbytes pages nothing and only warns
    with pytest.raises(UserError, match="bits of adamw-paged must be 8 or 32, not 16"):
        cls.resolve({"bits": 16})


# --- subspaces that follow the run ---------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["galore", "galore-8bit", "q-galore", "natural-galore", "fira", "apollo", "gradnormlorp"]
)
def test_a_subspace_is_renewed_in_a_short_run_too(name: str) -> None:
    cls = METHODS.get(name)
    short: Any = made(name, steps=40).optimizer(attached(made(name, steps=40), llama()))
    groups = [g for g in short.param_groups if g.get("rank") is not None]
    gaps = {g.get("update_gap", g.get("update_proj_gap")) for g in groups}
    assert gaps == {10}
    assert cls.remark(cls.resolve({}), 40) is None
    stated = cls.resolve({"update_gap": 40})
    assert "never renewed in this run" in (cls.remark(stated, 40) or "")
    assert cls.remark(stated, 41) is None


def test_layerwise_updates_equal_galore_and_free_gradients() -> None:
    def trained_by(layerwise: bool) -> dict[str, torch.Tensor]:
        method = made("galore", steps=8, update_gap=2, layerwise=layerwise)
        model = attached(method, llama())
        assert method.whole_steps is layerwise
        optimizer = method.optimizer(model)
        assert optimizer is not None
        for seed in range(4):
            inputs = batch(CAUSAL, seed)
            if method.training_step(model, inputs) is None:
                model(**inputs).loss.backward()
            elif layerwise:
                assert all(p.grad is None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    one, other = trained_by(False), trained_by(True)
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_layerwise_is_no_part_of_a_cell_where_it_is_off() -> None:
    resolve = METHODS.get("galore").resolve
    assert resolve({"update_gap": 200}) == {"rank": 8, "update_gap": 200, "scale": 1.0}  # as before there was one
    assert resolve({"layerwise": True})["layerwise"] is True


def test_gradnormlorp_8bit_steps_alike_with_smaller_states() -> None:
    def trained_by(bits: int) -> tuple[torch.Tensor, int]:
        method = made("gradnormlorp", bits=bits)
        model = attached(method, llama())
        optimizer: Any = method.optimizer(model)
        for _ in range(3):
            model(**batch(CAUSAL)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        name = next(n for n, _ in model.named_parameters() if "lora_B" in n)
        state = optimizer.state[model.get_parameter(name)]
        moments = state["exp_avg"]
        size = moments.numel() * 4 if bits == 32 else moments[0].numel()
        return model.get_parameter(name).detach(), size

    (wide, wide_bytes), (narrow, narrow_bytes) = trained_by(32), trained_by(8)
    assert narrow_bytes * 4 == wide_bytes
    assert torch.nn.functional.cosine_similarity(wide.flatten(), narrow.flatten(), dim=0) > 0.95


def test_gradnormlorp_in_repo_mode_steps_lengths_and_directions() -> None:
    torch.manual_seed(0)
    start = torch.randn(6, 5)
    weight = torch.nn.Parameter(start.clone())
    optimizer = RowNormalisedAdamW([{"params": [weight], "rank": 5}], lr=0.1)  # nothing is projected at full rank
    gradient = torch.randn(6, 5)
    weight.grad = gradient.clone()
    optimizer.step()
    v = start - 0.1 * gradient / (gradient.abs() + 1e-8)  # Adam's first step is a sign
    lengths = start.norm(dim=1, keepdim=True)
    slope = (gradient * start / lengths).sum(1, keepdim=True)
    expected = (lengths - 0.1 * slope.sign()) * v / v.norm(dim=1, keepdim=True)
    assert torch.allclose(weight, expected, atol=1e-4)
    weight.grad = torch.randn(6, 5)
    before = weight.detach().clone()
    optimizer.step()
    assert not torch.allclose(weight, before)


def test_q_galore_released_similarity_is_signed_first_vector() -> None:
    def gap_after(mode: str) -> int:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 12))
        optimizer = LazyProjectedAdamW(
            [{"params": [weight], "rank": 2}], lr=0.0, threshold=0.9, patience=2, mode=mode, update_gap=1
        )
        left, right = torch.linalg.qr(torch.randn(8, 8)).Q, torch.linalg.qr(torch.randn(12, 12)).Q
        for step in range(6):  # the first direction stays, the second is another one every time
            second = torch.outer(left[:, 1 + step], right[:, 1 + step])
            weight.grad = 2 * torch.outer(left[:, 0], right[:, 0]) + second
            optimizer.step()
        return int(optimizer.state[weight]["gap"])

    assert gap_after("paper") == 1  # half of the directions turned away each time
    assert gap_after("repo") > 1
