"""Methods that train quantized weights: which numbers move, and which stay bit-identical."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.methods.quantized.int21 import divergence
from harness.methods.quantized.peqa import packed_layers
from harness.methods.quantized.sketch import SketchLinear, kmeans, sketch
from harness.quantizers.packing import Grid, PackedLinear, unpack
from tests.methods.tiny import CAUSAL, CLASSIFIER, attached, base, batch, gap, live, llama, logits, made, train


# --- PEQA ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [CAUSAL, CLASSIFIER])
@pytest.mark.parametrize("quantizer", ["rtn"])
def test_peqa_moves_the_scales_and_leaves_every_integer_alone(kind: str, quantizer: str) -> None:
    method = made("peqa", kind, "rtn")
    model = base(kind, quantizer)
    before = [(m.packed.clone(), m.zero.clone(), m.scale.clone()) for m in packed_layers(model)]
    expected = method.expected_trainable(model)
    model = attached(method, model)
    assert expected == sum(p.numel() for p in model.parameters() if p.requires_grad)
    train(method, model)
    for (codes, zero, scale), layer in zip(before, packed_layers(model), strict=True):
        assert torch.equal(codes, layer.packed)
        assert torch.equal(zero, layer.zero)
        assert not torch.equal(scale, layer.scale)


def test_peqa_lives_on_our_packed_bases_as_it_says() -> None:
    for kind in (CAUSAL, CLASSIFIER):
        life = live("peqa", kind, "rtn")
        assert life.trainable == life.expected
        assert life.start_gap < 1e-5
        assert life.changed == life.names
        assert max(life.reload_gap, life.merge_gap or 0.0) < 1e-6
        assert life.moved > 1e-4


def test_scale_gradient_sums_decoded_weights_over_its_group() -> None:
    torch.manual_seed(0)
    linear, grid = nn.Linear(10, 6), Grid(4, 4, symmetric=False)
    scale, zero = grid.fit(linear.weight.data)
    codes = grid.encode(linear.weight.data, scale, zero)
    columns = torch.rand(10) + 0.5
    layer = PackedLinear(linear, grid, codes, scale, zero, columns)
    x = torch.randn(3, 2, 10, requires_grad=True)
    trained = layer.train_scales()
    layer(x).square().sum().backward()
    free, again = scale.clone().requires_grad_(True), x.detach().clone().requires_grad_(True)
    weight = grid.decode(unpack(layer.packed, 4, 10), free, zero) * columns
    nn.functional.linear(again, weight, linear.bias).square().sum().backward()
    assert trained.grad is not None
    assert free.grad is not None
    assert torch.allclose(trained.grad, free.grad, atol=1e-4)
    assert torch.allclose(x.grad, again.grad, atol=1e-5)  # type: ignore[arg-type]  # both have one


# --- INT2.1 --------------------------------------------------------------------------------------
def test_int21_repair_improves_two_bits_then_adapters_move() -> None:
    teacher = logits(llama(), CAUSAL)
    raw = logits(attached(made("int21", repair_steps=0), llama()), CAUSAL)
    method = made("int21", repair_steps=40)
    model = attached(method, llama())
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert {m.grid.bits for m in layers} == {2}
    repaired = logits(model, CAUSAL)
    assert float(divergence(teacher, repaired, None)) < 0.5 * float(divergence(teacher, raw, None))
    codes = [m.packed.clone() for m in layers]
    train(method, model)
    assert all(torch.equal(before, m.packed) for before, m in zip(codes, layers, strict=True))


def test_int21_leaves_the_model_as_it_was_after_the_repair() -> None:
    model = llama()
    before = logits(model, CAUSAL)
    method = made("int21", repair_steps=2)
    from tests.methods.tiny import calibrated

    calibrated(method, model)
    assert gap(logits(model, CAUSAL), before) < 1e-6
    assert not any(isinstance(m, PackedLinear) for m in model.modules())


def test_int21_keeps_no_decoded_weight_for_the_backward_pass() -> None:
    model = attached(made("int21", repair_steps=0), llama())
    shapes = {(m.out_features, m.in_features) for m in model.modules() if isinstance(m, PackedLinear)}
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        model(**batch(CAUSAL))
    assert not shapes & set(kept)


# --- SketchTune ----------------------------------------------------------------------------------
def test_sketch_maps_to_nearest_number_and_beats_uniform() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 64)
    grid, codes = sketch(weight, torch.ones(64), bits=3, groups=2)
    for row in range(5):
        for part in range(2):
            values = weight[row, part * 32 : part * 32 + 32]
            numbers = grid[row, part]
            chosen = numbers[codes[row, part * 32 : part * 32 + 32].long()]
            assert torch.allclose((values - chosen).abs(), (values[:, None] - numbers).abs().amin(1), atol=1e-6)
    uniform = Grid(3, 32, symmetric=False)
    scale, zero = uniform.fit(weight)
    rounded = uniform.decode(uniform.encode(weight, scale, zero), scale, zero)
    layer = SketchLinear(nn.Linear(64, 5), grid, codes, 3)
    assert (layer.dequantize() - weight).norm() < 0.9 * (rounded - weight).norm()


def test_large_inputs_pull_numbers_towards_their_weights() -> None:
    torch.manual_seed(0)
    values, counted = torch.randn(1, 40), torch.ones(40)
    counted[7] = 1e4
    centres, nearest = kmeans(values, counted, 4)
    assert abs(float(centres[0, nearest[0, 7].long()] - values[0, 7])) < 1e-2
    plain, where = kmeans(values, torch.ones(40), 4)
    assert abs(float(plain[0, where[0, 7].long()] - values[0, 7])) > 1e-2


def test_sketchtune_moves_weights_of_a_code_together() -> None:
    method = made("sketchtune")
    model = attached(method, llama())
    layers = [m for m in model.modules() if isinstance(m, SketchLinear)]
    codes = [m.sketch_codes.clone() for m in layers]
    train(method, model)
    assert all(torch.equal(before, m.sketch_codes) for before, m in zip(codes, layers, strict=True))
    for layer in layers:
        assert max(len(set(row.tolist())) for row in layer.dequantize()) <= 16


def test_number_gradient_sums_over_the_weights_that_use_it() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 4)
    layer = SketchLinear(linear, *sketch(linear.weight.data, torch.ones(12), 2, 2), 2)
    x = torch.randn(3, 12)
    layer(x).square().sum().backward()
    free = layer.sketch_grid.detach().clone().requires_grad_(True)
    weight = free.flatten(1).gather(1, layer.places())
    nn.functional.linear(x, weight, linear.bias).square().sum().backward()
    assert layer.sketch_grid.grad is not None
    assert free.grad is not None
    assert torch.allclose(layer.sketch_grid.grad, free.grad, atol=1e-4)
