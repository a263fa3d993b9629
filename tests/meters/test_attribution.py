"""Bytes counted by hand against bytes counted from tensors, packed ones too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.meters.attribution import (
    Attribution,
    gradient_bytes,
    intruder_dimensions,
    model_bytes,
    optimizer_bytes,
    tensor_bytes,
)

IN, OUT = 256, 512


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT, bias=False))


def test_plain_tied_viewed_and_meta_tensors() -> None:
    model = nn.Module()
    model.a = nn.Linear(IN, OUT)
    model.b = nn.Linear(IN, OUT, bias=False)
    model.b.weight = model.a.weight
    model.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
    assert model_bytes(model) == 4 * (IN * OUT + OUT) + 24
    block = torch.zeros(100)
    assert tensor_bytes(block, block[:10], block.view(10, 10)) == 400
    assert model_bytes(nn.Linear(IN, OUT, device="meta")) == 0


def test_torchao_counts_inner_tensors() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = linear()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    scales = model_bytes(model) - IN * OUT
    assert 0 < scales <= 8 * OUT
    assert tensor_bytes(model[0].weight) == model_bytes(model)


@pytest.mark.parametrize(("kind", "bits"), [("qint8", 8), ("qint4", 4)])
def test_quanto_counts_packed_data_and_scales(kind: str, bits: int) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    model = linear()
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    packed = IN * OUT * bits // 8
    assert packed < model_bytes(model) < 1.2 * packed


def test_bitsandbytes_counts_quantization_state() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(IN, OUT, bias=False, quant_type="nf4", compress_statistics=False).to("cpu")
    # 4 bits a weight, a 4-byte scale a block of 64, the table of 16 levels
    assert model_bytes(layer) == IN * OUT // 2 + 4 * IN * OUT // 64 + 4 * 16
    eight = bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False).to("cpu")
    before = model_bytes(eight)
    assert before == IN * OUT + 4 * OUT  # one scale a row
    eight(torch.randn(2, IN))
    assert model_bytes(eight) == before  # the state moved from the parameter to the layer


def test_training_memory_of_adam() -> None:
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters())
    assert optimizer_bytes(optimizer) == 0
    model(torch.randn(3, IN)).sum().backward()
    optimizer.step()
    weights = 4 * IN * OUT
    taken = Attribution.take(model, optimizer)
    readings = {r.quantity: r for r in taken.readings(10 * weights)}
    assert readings["weights_bytes"].value == weights
    assert readings["gradient_bytes"].value == gradient_bytes(model) == weights
    assert readings["optimizer_state_bytes"].value == 2 * weights + 4  # two moments and a step count
    assert readings["activation_peak_bytes"].value == 6 * weights - 4
    without = {r.quantity: r for r in taken.readings(None)}
    assert without["activation_peak_bytes"].why_missing == "not_supported"
    impossible = {r.quantity: r for r in taken.readings(weights)}
    assert impossible["activation_peak_bytes"].why_missing == "not_applicable"


def test_projectors_and_nested_state_of_an_optimizer_count() -> None:
    class Projector:
        def __init__(self) -> None:
            self.matrix = torch.zeros(100)

    parameter = nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.SGD([parameter])
    optimizer.state[parameter] = {"projector": Projector(), "inner": [{"moment": torch.zeros(5)}], "step": 1}
    assert optimizer_bytes(optimizer) == 4 * 105


def test_a_new_direction_is_an_intruder_and_a_turned_one_is_not() -> None:
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(64, 64)).Q, torch.linalg.qr(torch.randn(80, 64)).Q
    base = (left[:, :40] * torch.linspace(4, 1, 40)) @ right[:, :40].T  # 24 directions of the outputs are free
    assert intruder_dimensions(base, base) == 0
    assert intruder_dimensions(base, 1.5 * base) == 0
    for number in (1, 3):
        new = left[:, 40 : 40 + number] @ right[:, 40 : 40 + number].T
        assert intruder_dimensions(base, base + 20 * new) == number  # strong, and of no direction of the base
    small = left[:, 40:41] @ right[:, 40:41].T
    assert intruder_dimensions(base, base + 0.1 * small) == 0  # not among the leading ten
