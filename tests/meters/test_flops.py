"""Counted operations against 2 * m * n * tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.meters.flops import LinearLayers, attention_products, count_flops, mfu, step_flops
from harness.metrics import missing, reading

TOKENS = 6


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))


def test_training_step_is_three_forwards_less_input_gradient() -> None:
    net = model()
    forward = 2 * TOKENS * (32 * 64 + 64 * 16)
    batch = torch.randn(TOKENS, 32)
    assert count_flops(lambda: net(batch)) == forward
    got = step_flops(lambda: net(batch).sum().backward(), net, TOKENS)
    assert got.value == got.details["linear_step_flops"] == 3 * forward - 2 * TOKENS * 32 * 64
    assert got.details["linear_forward_flops"] == forward
    twice = step_flops(lambda: net(batch).sum().backward(), net, TOKENS, micro_batches=2)
    assert (twice.value, twice.details["tokens"]) == (2 * got.value, 2 * TOKENS)


def test_attention_counts_its_two_products_and_their_gradients() -> None:
    query, key, value = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    product = 2 * 2 * 3 * 16 * 16 * 8  # batch, heads, queries, keys, width; a multiply-add counts as 2
    with torch.no_grad():
        assert count_flops(lambda: attend(query, key, value)) == 2 * product
    # backward: the probabilities are computed again, and four products give the three gradients
    assert count_flops(lambda: attend(query, key, value).sum().backward()) == 2 * product + 5 * product


def test_grouped_query_attention_counts_the_query_heads() -> None:
    query = torch.randn(2, 4, 16, 8, requires_grad=True)
    key, value = (torch.randn(2, 2, 16, 8, requires_grad=True) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    product = 2 * 2 * 4 * 16 * 16 * 8
    assert attention_products(query.shape, key.shape, value.shape) == (product, product)
    counted = count_flops(lambda: attend(query, key, value, enable_gqa=True).sum().backward())
    assert counted == 2 * product + 5 * product


class Unseen(torch.autograd.Function):
    """A linear layer's kernel whose backward pass no counter has a formula for."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (grad[..., None] * weight).sum(-2), None


def test_step_with_uncounted_kernels_has_no_flops_value() -> None:
    class Packed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Unseen.apply(x, self.weight)

    net = nn.Sequential(nn.Linear(32, 64), Packed(64, 16, bias=False)).requires_grad_(True)
    net[1].weight.requires_grad_(False)
    got = step_flops(lambda: net(torch.randn(TOKENS, 32)).sum().backward(), net, TOKENS)
    assert (got.value, got.why_missing) == (None, "not_supported")
    assert got.details["micro_batch_flops"] > got.details["linear_forward_flops"]


def test_wrapper_repeating_its_layer_shape_counts_once() -> None:
    from peft import LoraConfig, get_peft_model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    wrapped = get_peft_model(Net(), LoraConfig(r=4, target_modules=["layer"]))
    expected = 2 * TOKENS * (32 * 64 + 32 * 4 + 4 * 64)
    batch = torch.randn(TOKENS, 32)
    with torch.no_grad(), LinearLayers(wrapped) as linear:
        assert count_flops(lambda: wrapped(batch)) == expected
    assert linear.forward == linear.step == expected


def test_mfu_needs_a_stated_peak() -> None:
    flops = reading("step_flops", 1e12, source="test", details={"tokens": 100})
    assert mfu(flops, 100, 0.01, 989e12).value == pytest.approx(0.1011, rel=1e-3)
    assert mfu(flops, 50, 0.01, 989e12).value == pytest.approx(0.1011 / 2, rel=1e-3)  # half of the step was padding
    assert mfu(flops, 100, 0.01, None).why_missing == "not_measured"
    unseen = missing("step_flops", "not_supported", source="test")
    assert mfu(unseen, 100, 0.01, 989e12).why_missing == "not_supported"
