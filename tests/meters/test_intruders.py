"""Intruder dimensions against matrices whose intruders are known."""

from __future__ import annotations

import torch

from harness.meters.intruders import intruder_dimensions


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
