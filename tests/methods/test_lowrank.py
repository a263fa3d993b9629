"""Our low-rank adapters: the form of their weight change, and which parts train."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import UserError
from harness.methods.catalog import METHODS
from harness.methods.lowrank import penalties
from harness.methods.lowrank.mixtures import drawn, mixture, noise, noisy_product, uniform
from harness.methods.modules import TENSORS_FILE
from harness.methods.selective.dsee import sparse_places
from harness.quantizers.measure import dequantize
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, gap, llama, logits, made, train

LAYER = {CAUSAL: "model.layers.0.mlp.up_proj", CLASSIFIER: "bert.encoder.layer.0.intermediate.dense"}  # 64 to 128
R = 4


def layer(model: Any, kind: str = CAUSAL) -> Any:
    return model.get_submodule(LAYER[kind])


def wide(values: Any) -> Tensor:
    found: Tensor = values.detach().double()
    return found


# --- the equations, in float64 --------------------------------------------------------------------
def nystrom(w: Tensor) -> tuple[Tensor, Tensor]:
    """The corner's pseudo-inverse without its small singular values, and the approximation."""
    u, s, v = torch.linalg.svd(w[:R, :R])
    inverse = v.T @ torch.diag(torch.where(s > 0.05 * s[0], 1 / s, 0)) @ u.T
    return inverse, w[:, :R] @ inverse @ w[:R]


def slora(m: Any, w: Tensor) -> Tensor:
    return w + 2 * wide(m.nys_b) @ wide(m.nys_n) @ wide(m.nys_a)


def nlora(m: Any, w: Tensor) -> Tensor:
    return w - 2 * nystrom(w)[1] + 2 * wide(m.nys_b) @ wide(m.nys_n) @ wide(m.nys_a)


def inttune(m: Any, w: Tensor) -> Tensor:
    return w - 2 * nystrom(w)[1] + 2 * w[:, :R] @ wide(m.nys_n) @ w[:R]


def loldu(m: Any, w: Tensor) -> Tensor:
    p, lower, u = (torch.from_numpy(x) for x in scipy.linalg.lu(w.numpy()))
    d = u.diagonal()[:R]
    left, right = (p @ lower)[:, :R], u[:R] / d[:, None]
    return w - 2 * left @ torch.diag(d) @ right + float(m.loldu_c) * left @ torch.diag(wide(m.loldu_z)) @ right


def splitmix(seed: int, count: int) -> Tensor:
    """The published generator, one number at a time on whole numbers, as 24 bits on [-1, 1)."""
    full, found = (1 << 64) - 1, []
    for index in range(1, count + 1):
        z = (seed + index * 0x9E3779B97F4A7C15) & full
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & full
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
        found.append(((z ^ (z >> 31)) >> 40) * 2.0**-23 - 1)
    return torch.tensor(found, dtype=torch.float64)


def nola(m: Any, w: Tensor) -> Tensor:
    a = (splitmix(m.nola_seed, 6 * R * 64).view(6, R, 64) * wide(m.nola_a)[:, None, None]).sum(0)
    b = (splitmix(~m.nola_seed, 6 * 128 * R).view(6, 128, R) * wide(m.nola_b)[:, None, None]).sum(0)
    return w + 2 * b @ a


def ba_lora(m: Any, w: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    return w - u[:, :R] @ torch.diag(s[:R]) @ v[:R] + 2 * wide(m.ba_b) @ wide(m.ba_a)


def lora_ggpo(m: Any, w: Tensor) -> Tensor:
    return w + 2 * wide(m.ggpo_b) @ wide(m.ggpo_a)


EQUATIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "slora": slora,
    "nlora": nlora,
    "inttune": inttune,
    "loldu": loldu,
    "nola": nola,
    "ba-lora": ba_lora,
    "lora-ggpo": lora_ggpo,
}


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
@pytest.mark.parametrize("name", EQUATIONS)
def test_a_trained_layer_is_the_method_s_equation_in_float64(name: str, kind: str) -> None:
    weight = wide(layer(base(kind), kind).weight)
    method = made(name, kind, r=R, alpha=2 * R, **({"k": 6} if name == "nola" else {}))
    model = attached(method, base(kind))
    module = layer(model, kind)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    untrained = model.eval() and module(x).detach()
    train(method, model)
    model.eval()
    expected = EQUATIONS[name](module, weight)
    found = module(x).detach()
    bias = wide(module.bias) if module.bias is not None else 0
    assert gap(found.double(), wide(x) @ expected.T + bias) < 1e-5 * max(1, float(expected.abs().max()))
    assert gap(found, untrained) > 1e-6  # it is the equation of something that moved
    assert gap(module.weight.detach().double() + wide(method.delta(module)), expected) < 1e-5  # type: ignore[attr-defined]  # an adapter of ours


def stored(method: Any, model: Any, folder: Path) -> dict[str, Tensor]:
    method.save(model, folder)
    return load_file(folder / TENSORS_FILE)


# --- SLoRA, NLoRA, IntTune ------------------------------------------------------------------------
def test_nlora_takes_all_of_a_matrix_of_its_rank_out_of_the_base() -> None:
    torch.manual_seed(0)
    model = llama()
    left, right = torch.randn(128, R), torch.randn(R, 64)
    left[:R], right[:, :R] = torch.eye(R), torch.eye(R)  # a corner that can be inverted
    with torch.no_grad():
        layer(model).weight.copy_(left @ right)  # of rank r, where the approximation is exact
    whole = layer(model).weight.detach().clone()
    method: Any = made("nlora", r=R, alpha=R)
    attached(method, model)
    assert gap(layer(model).weight, torch.zeros(1)) < 1e-4
    assert gap(method.delta(layer(model)), whole) < 1e-4


@pytest.mark.parametrize("name", ["nlora", "inttune"])
def test_released_code_differs_at_start_and_keeps_the_base(name: str) -> None:
    before = logits(base(CAUSAL), CAUSAL)
    method: Any = made(name, mode="repo", r=R, alpha=R)
    model = attached(method, llama())
    weight = layer(llama()).weight
    assert torch.equal(layer(model).weight, weight)
    assert gap(method.delta(layer(model)), weight[:, :R] @ weight[:R, :R] @ weight[:R]) < 1e-6
    assert gap(logits(model, CAUSAL), before) > 1e-5
    assert not method.promise.identity_at_start
    assert METHODS.get(name).check(CAUSAL, "bnb-nf4", {"mode": "repo"}) is None
    assert METHODS.get(name).check_merge("fp", {"mode": "repo"}) is None
    with pytest.raises(UserError, match="mode of method"):
        METHODS.get(name).resolve({"mode": "nystrom"})


def test_nlora_s_released_start_trains_on_a_quantized_base() -> None:
    method = made("nlora", base_kind="bnb-nf4", mode="repo")
    model = base(CAUSAL, "bnb-nf4")
    expected = method.expected_trainable(model)
    before = logits(attached(method, model), CAUSAL)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert not train(method, model)
    assert gap(logits(model, CAUSAL), before) > 1e-5


@pytest.mark.parametrize(("name", "trained"), [("slora", {"nys_a", "nys_n", "nys_b"}), ("inttune", {"nys_n"})])
def test_what_trains_and_is_stored_of_the_three_matrices(name: str, trained: set[str], tmp_path: Path) -> None:
    method = made(name, r=R)
    model = attached(method, llama())
    tensors = stored(method, model, tmp_path)
    assert {n.split(".")[-1] for n in tensors} == trained
    assert tensors[f"{LAYER[CAUSAL]}.nys_n"].shape == (R, R)


@pytest.mark.parametrize("name", ["nlora", "ba-lora"])
def test_removing_part_of_a_weight_needs_a_suitable_base(name: str) -> None:
    cls = METHODS.get(name)
    assert "round" in str(cls.check(CAUSAL, "bnb-nf4", cls.resolve({})))
    assert "sparse" in str(cls.check(CAUSAL, "sparse", cls.resolve({})))
    before = layer(llama()).weight
    model = attached(made(name), llama())
    assert gap(layer(model).weight, before) > 1e-3


# --- LoLDU ----------------------------------------------------------------------------------------
def test_loldu_trains_and_saves_only_diagonal_and_scale(tmp_path: Path) -> None:
    method: Any = made("loldu", r=6, alpha=3)
    model = attached(method, llama())
    train(method, model)
    tensors = stored(method, model, tmp_path)
    assert {n.split(".")[-1]: tuple(p.shape) for n, p in tensors.items()} == {"loldu_z": (6,), "loldu_c": (1,)}
    weight = layer(llama()).weight.detach()
    p, lower, upper = torch.linalg.lu(weight)
    left, right = p @ lower[:, :6], upper[:6] / upper.diagonal()[:6, None]
    inner = torch.linalg.pinv(left) @ method.delta(layer(model)).detach() @ torch.linalg.pinv(right)
    assert gap(inner, torch.diag(inner.diagonal())) < 1e-4  # still a diagonal between the same triangles
    assert float(inner.diagonal().abs().min()) > 1e-4
    assert float(layer(model).loldu_c.detach()) != 0.5


def test_a_weight_with_dependent_rows_has_a_decomposition_too() -> None:
    model = llama()
    with torch.no_grad():
        layer(model).weight[1:] = layer(model).weight[0]  # of rank one
    before = logits(model, CAUSAL)
    method = made("loldu")
    model = attached(method, model)
    assert gap(logits(model, CAUSAL), before) < 1e-5
    train(method, model)
    assert bool(logits(model, CAUSAL).isfinite().all())


# --- NOLA -----------------------------------------------------------------------------------------
def test_nola_factors_are_in_the_span_of_unsaved_matrices(tmp_path: Path) -> None:
    method: Any = made("nola", k=5, r=2)
    model = attached(method, llama())
    train(method, model)
    assert {p.numel() for p in stored(method, model, tmp_path).values()} == {5}
    module = layer(model)
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    assert held.keys() == {"weight", "nola_a", "nola_b"}
    for factor, seed, shape in zip(
        method.factors(module), (~module.nola_seed, module.nola_seed), ((128, 2), (2, 64)), strict=True
    ):
        (_, matrices), *rest = drawn(5, seed, shape, torch.device("cpu"))
        assert not rest
        span, goal = matrices.flatten(1).T, factor.detach().flatten()[:, None]
        assert gap(span @ torch.linalg.lstsq(span, goal).solution, goal) < 1e-5 * float(goal.abs().max())


def test_nola_s_size_is_that_of_no_matrix() -> None:
    sizes = {
        (r, hidden): made("nola", r=r).size(hidden)  # type: ignore[attr-defined]  # an adapter of ours
        for r in (2, 16)
        for hidden in (None, 4096)
    }
    assert set(sizes.values()) == {128}


def test_mixture_stores_no_matrix_and_has_the_sum_gradient() -> None:
    torch.manual_seed(0)
    weights = torch.randn(70, requires_grad=True)  # more than are drawn at once
    goal = torch.randn(3, 4)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        mixed = mixture(weights, 7, (3, 4))
    assert not kept
    (mixed * goal).sum().backward()  # type: ignore[no-untyped-call]
    matrices = splitmix(7, 70 * 12).view(70, 3, 4)
    assert gap(mixed.detach().double(), torch.tensordot(wide(weights), matrices, 1)) < 1e-5
    assert weights.grad is not None
    assert gap(weights.grad.double(), (matrices * goal).sum((1, 2))) < 1e-5


def test_draws_are_uniform_and_independent_of_their_number() -> None:
    numbers = uniform(11, 0, 40_000, torch.device("cpu"))
    assert torch.equal(uniform(11, 100, 50, torch.device("cpu")), numbers[100:150])
    assert float(numbers.min()) >= -1
    assert float(numbers.max()) < 1
    assert abs(float(numbers.mean())) < 0.02
    assert float(numbers.var()) == pytest.approx(1 / 3, rel=0.03)
    assert abs(float((numbers[1:] * numbers[:-1]).mean())) < 0.02
    assert abs(float((numbers * uniform(12, 0, 40_000, torch.device("cpu"))).mean())) < 0.02


# --- LoRA-GGPO ------------------------------------------------------------------------------------
def test_ggpo_s_noise_has_the_size_of_its_equation_in_every_row() -> None:
    method: Any = made("lora-ggpo", sigma=0.1, beta=2.0, r=2, alpha=6)
    model = attached(method, llama())
    module = layer(model)
    norm = wide(module.weight).norm(dim=1).mean()
    assert gap(module.ggpo_noise.double(), 0.1 * norm / math.sqrt(128)) < 1e-6  # before any step
    with torch.no_grad():
        module.ggpo_b.normal_(generator=torch.Generator().manual_seed(0))
    model.train()
    model(**batch(CAUSAL)).loss.backward()
    for other in (n for n, _ in model.named_modules() if n in method._hooks):
        assert model.get_submodule(other).ggpo_a.grad is not None
    a, b = wide(module.ggpo_a), wide(module.ggpo_b)
    gradient = 3 * (b @ wide(module.ggpo_a.grad) + wide(module.ggpo_b.grad) @ a)
    method.on_step(model, 1)
    size = (0.1 * (norm**2 + (3 * b @ a).norm(dim=1) ** 2).sqrt() + 2.0 * gradient.norm(dim=1) ** 2) / math.sqrt(128)
    assert gap(module.ggpo_noise.double() / size, 1) < 1e-5
    assert float(size.std() / size.mean()) > 0.01  # rows differ


def test_ggpo_perturbs_weights_in_training_only() -> None:
    method: Any = made("lora-ggpo", sigma=0.1)
    model = attached(method, llama())
    module = layer(model)
    module.ggpo_noise.copy_(torch.linspace(0.01, 0.1, 128))
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        still = module.eval()(x)
        module.train()
        shaken = torch.stack([(module(x) - still)[0] for _ in range(400)])
    assert float((shaken.std(0) / (module.ggpo_noise * x.norm())).sub(1).abs().max()) < 0.2
    assert float((shaken.mean(0) / shaken.std(0)).abs().max()) < 0.25
    assert gap(module.eval()(x).detach(), still) == 0


def test_backward_noise_equals_forward_noise_and_is_not_kept() -> None:
    x, sizes = torch.randn(3, 5, requires_grad=True), torch.rand(7)
    kept: list[int] = []
    torch.manual_seed(4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        y = noisy_product(x, sizes)
    assert sum(kept) == 7
    torch.manual_seed(4)
    drawn_before = noise(sizes, 5, int(torch.randint(2**62, ())))
    assert gap(y.detach(), x.detach() @ drawn_before.T) < 1e-6
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert gap(x.grad, drawn_before.sum(0).expand(3, 5)) < 1e-6


# --- BA-LoRA --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_ba_lora_uses_the_original_model_after_updates(kind: str) -> None:
    method: Any = made("ba-lora", kind)
    model: Any = attached(method, base(kind))
    train(method, model)
    if kind == CLASSIFIER:  # the original model is read through the head in training
        model.classifier.load_state_dict(base(kind).classifier.state_dict())  # type: ignore[union-attr, operator]
    inputs, original = batch(kind), base(kind)(**batch(kind)).logits.detach()
    model.train()
    assert gap(model(**inputs).logits.detach(), original) > 1e-3
    assert gap(method.original_logits(inputs), original) < 1e-4
    assert model.training
    assert gap(model(**inputs).logits.detach(), original) > 1e-3


@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
def test_ba_lora_loss_is_task_plus_three_penalties(kind: str) -> None:
    weights = {"consistency": 0.7, "diversity": 0.3, "spectrum": 2.0}
    method: Any = made("ba-lora", kind, **weights)
    model: Any = attached(method, base(kind))
    train(method, model)
    inputs = batch(kind)
    outputs = model(**inputs)
    z, z0 = (wide(x).numpy() for x in (outputs.logits, method.original_logits(inputs)))
    kept = inputs["attention_mask"].bool().numpy()
    if kind == CAUSAL:
        p, p0 = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (z[kept], z0[kept]))
        consistency = (p0 * np.log(p0 / p)).sum() / len(z)  # the released batchmean: a sum over tokens
        diversity = (p * np.log(p)).sum(-1).mean()
        values = np.linalg.svd((z * kept[..., None]).reshape(len(z), -1), compute_uv=False)
    else:
        unit, unit0 = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, z0))
        consistency = ((unit - unit0) ** 2).mean()
        covariance = np.cov(z.T)
        diversity = ((covariance - np.diag(np.diag(covariance))) ** 2).sum() / z.shape[-1]
        values = np.linalg.svd(z, compute_uv=False)
    largest = min(3, len(values) - 1)  # three classes have three values, whose share is always one
    spectrum = -values[:largest].sum() / values.sum()
    expected = float(outputs.loss.detach()) + 0.7 * consistency + 0.3 * diversity + 2.0 * spectrum
    assert float(method.loss(outputs, inputs, outputs.loss).detach()) == pytest.approx(expected, rel=1e-5)
    assert consistency > 1e-6


def test_ba_lora_s_penalties_pull_where_they_say() -> None:
    torch.manual_seed(0)
    z, z0 = (torch.randn(6, 5, dtype=torch.float64) for _ in range(2))
    z.requires_grad_(True)
    for index in range(3):
        before = penalties.classifying(z, z0)[index]
        (slope,) = torch.autograd.grad(before, z)
        assert float(penalties.classifying(z - 1e-3 * slope, z0)[index]) < float(before)
    words, words0 = (torch.randn(5, 4, 7, dtype=torch.float64) for _ in range(2))
    words.requires_grad_(True)
    kept = torch.ones(5, 4).bool()
    kept[1, 2:] = False
    for index in range(3):
        before = penalties.generating(words, words0, kept)[index]
        (slope,) = torch.autograd.grad(before, words)
        assert not slope[1, 2:].any()  # padding is not answered
        assert float(penalties.generating(words - 1e-2 * slope, words0, kept)[index]) < float(before)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_spectrum_s_penalty_acts_on_few_classes(classes: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(8, classes, requires_grad=True)
    _, _, spectrum = penalties.classifying(z, torch.randn(8, classes))
    (slope,) = torch.autograd.grad(spectrum, z)
    assert -1 < float(spectrum.detach()) < 0
    assert float(slope.abs().max()) > 1e-3


def test_consistency_grows_with_the_tokens_of_a_sequence() -> None:
    torch.manual_seed(0)
    z, z0 = torch.randn(2, 2, 1, 7).double()
    short = penalties.generating(z, z0, torch.ones(2, 1, dtype=torch.bool))[0]
    long = penalties.generating(z.expand(2, 256, 7), z0.expand(2, 256, 7), torch.ones(2, 256, dtype=torch.bool))[0]
    assert float(long / short) == pytest.approx(256)


def test_the_penalties_survive_mixed_precision() -> None:
    method: Any = made("ba-lora")
    model: Any = attached(method, llama())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch(CAUSAL))
        method.loss(outputs, batch(CAUSAL), outputs.loss).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_rank_must_be_a_positive_whole_number(name: str) -> None:
    with pytest.raises(UserError, match=f"r of method '{name}' must be a positive whole number, not 0"):
        METHODS.get(name).resolve({"r": 0})


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
