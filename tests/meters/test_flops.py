"""Counted operations against 2 * m * n * tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.meters.flops import count_flops, linear_forward_flops, mfu, step_flops
from harness.metrics import reading

TOKENS = 6


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))


def test_a_training_step_is_three_forward_passes_less_the_input_gradient_of_the_first_layer() -> None:
    net = model()
    forward = 2 * TOKENS * (32 * 64 + 64 * 16)
    assert linear_forward_flops(net, TOKENS) == forward
    batch = torch.randn(TOKENS, 32)
    assert count_flops(lambda: net(batch)) == forward
    got = step_flops(lambda: net(batch).sum().backward(), net, TOKENS)
    assert got.value == 3 * forward - 2 * TOKENS * 32 * 64
    assert got.details["linear_forward"] == forward


def test_a_step_whose_kernels_the_counter_cannot_see_has_no_value() -> None:
    net = model()
    got = step_flops(lambda: None, net, TOKENS)
    assert (got.value, got.why_missing) == (None, "not_supported")


def test_a_wrapper_that_repeats_the_shape_of_its_layer_counts_once() -> None:
    from peft import LoraConfig, get_peft_model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    wrapped = get_peft_model(Net(), LoraConfig(r=4, target_modules=["layer"]))
    expected = 2 * TOKENS * (32 * 64 + 32 * 4 + 4 * 64)
    assert linear_forward_flops(wrapped, TOKENS) == expected
    batch = torch.randn(TOKENS, 32)
    with torch.no_grad():
        assert count_flops(lambda: wrapped(batch)) == expected


def test_mfu_needs_a_stated_peak() -> None:
    flops = reading("step_flops", 1e12, source="test")
    assert mfu(flops, 0.01, 989e12).value == pytest.approx(0.1011, rel=1e-3)
    assert mfu(flops, 0.01, None).why_missing == "not_measured"
    unseen = step_flops(lambda: None, model(), TOKENS)
    assert mfu(unseen, 0.01, 989e12).why_missing == "not_supported"
