from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.quantizers.packing import Grid, PackedLinear, pack, unpack
from harness.quantizers.rtn import BITS
from tests.quantizers.conftest import Loader, batch, gradients, with_lora

grids = st.builds(
    Grid, bits=st.sampled_from(BITS), group_size=st.sampled_from([1, 5, 8, 32, 128]), symmetric=st.booleans()
)


def packed_layer(grid: Grid, linear: nn.Linear, column_scale: torch.Tensor | None = None) -> PackedLinear:
    weight = linear.weight.data if column_scale is None else linear.weight.data / column_scale
    scale, zero = grid.fit(weight)
    return PackedLinear(linear, grid, grid.encode(weight, scale, zero), scale, zero, column_scale)


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_packing_is_lossless_and_as_small_as_it_says(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits, columns), codes)
    assert packed.dtype == torch.uint8
    assert packed.shape[1] < columns * bits / 8 + 3  # at most one unfinished run of 3 bytes


@given(grids, st.integers(1, 4), st.integers(1, 40), st.floats(1e-3, 1e3), st.floats(-1, 1), st.integers(0, 2**31))
@settings(deadline=None)
def test_no_weight_moves_by_more_than_half_a_step(
    grid: Grid, rows: int, columns: int, size: float, offset: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = size * (torch.randn(rows, columns, generator=generator) + offset)
    scale, zero = grid.fit(weight)
    error = (weight - grid.decode(grid.encode(weight, scale, zero), scale, zero)).abs()
    step = scale.repeat_interleave(min(grid.group_size, columns), dim=1)[:, :columns]
    assert (error <= step * 0.5 * (1 + 1e-3)).all()  # the thousandth is float32's own rounding at 255 steps


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_weights_stay_zero(symmetric: bool) -> None:
    weight = torch.cat([torch.zeros(2, 8), torch.linspace(-1, 3, 16).reshape(2, 8)], dim=1)
    weight[:, 9] = 0
    grid = Grid(4, 8, symmetric)
    scale, zero = grid.fit(weight)
    decoded = grid.decode(grid.encode(weight, scale, zero), scale, zero)
    assert (decoded[weight == 0] == 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_output_and_gradient_are_those_of_the_decoded_weight(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 6)
    column_scale = torch.rand(20) + 0.5
    layer = packed_layer(Grid(bits, 8, False), linear, column_scale)
    plain = nn.Linear(20, 6)
    plain.weight.data, plain.bias.data = layer.dequantize(), linear.bias.data
    x1, x2 = (torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    y1, y2 = layer(x1), plain(x2)
    torch.testing.assert_close(y1, y2)
    upstream = torch.randn(3, 4, 6)
    y1.backward(upstream)
    y2.backward(upstream)
    torch.testing.assert_close(x1.grad, x2.grad)


def test_a_trainable_bias_gets_its_gradient() -> None:
    layer = packed_layer(Grid(4, 8, False), nn.Linear(16, 4))
    assert not any(p.requires_grad for p in layer.parameters())
    layer.bias.requires_grad_(True)
    layer(torch.randn(5, 16)).sum().backward()
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [5.0] * 4


@pytest.mark.parametrize("column_scale", [None, torch.linspace(0.5, 2, 32)])
def test_assigning_to_the_weight_rounds_it_again(column_scale: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    layer = packed_layer(Grid(8, 32, False), nn.Linear(32, 4), column_scale)
    target = layer.dequantize() + torch.randn(4, 32)
    layer.weight.data += target - layer.weight  # what merging an adapter does
    error = (layer.dequantize() - target).abs()
    factor = 1.0 if column_scale is None else column_scale
    assert (error <= layer.scale * 0.51 * factor).all()


def test_a_merged_adapter_is_in_the_packed_weight(load) -> None:
    model = with_lora(load("rtn", params={"bits": 8}), "causal-lm")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        base, adapted = model.get_base_model()(ids).logits, model(ids).logits
        with model.disable_adapter():
            base = model(ids).logits
        merged = model.merge_and_unload()(ids).logits
    assert (adapted - base).abs().max() > 0.1
    assert (adapted - merged).abs().max() < 0.05 * (adapted - base).abs().max()


def test_no_decoded_weight_is_kept_for_the_backward_pass() -> None:
    layer = packed_layer(Grid(4, 64, False), nn.Linear(64, 64, bias=False))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True))
    assert sum(kept) < 64 * 64


def test_lora_gradients_match_those_on_the_decoded_model(load) -> None:
    quantized, plain = load("rtn", params={"bits": 3}), load("none")
    for name, module in quantized.named_modules():
        if isinstance(module, PackedLinear):
            plain.get_submodule(name).weight.data = module.dequantize()
    found, expected = (gradients(with_lora(m, "causal-lm"), "causal-lm") for m in (quantized, plain))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


NOISE = 1e-5
DRAWS = 12


@pytest.mark.parametrize("name", ["none", "bnb-int8", "bnb-nf4", "rtn", "torchao-int8", "torchao-int8-dynamic"])
def test_noise_jumps_only_where_activations_are_rounded(load: Loader, name: str) -> None:
    from harness.quantizers.catalog import QUANTIZERS

    model, given = load(name), batch("causal-lm")
    embedded = model.get_input_embeddings()(given["input_ids"])  # type: ignore[operator]
    worst = 0.0
    with torch.no_grad():
        before = model(inputs_embeds=embedded, attention_mask=given["attention_mask"]).logits.float()
        for seed in range(DRAWS):
            noise = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(seed))
            moved = embedded * (1 + NOISE * noise)
            after = model(inputs_embeds=moved, attention_mask=given["attention_mask"]).logits.float()
            worst = max(worst, ((after - before).abs().max() / before.abs().max()).item())
    assert (worst > 100 * NOISE) == QUANTIZERS.get(name).declaration.rounds_activations
