"""Measuring settings of a sweep and a hardware profile, and which of them are part of a cell."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.errors import UserError
from harness.hardware import HardwareProfile, Machine, Thermal, identity
from harness.meters.catalog import build
from harness.spec import Accounting, Target, Training

CPU = Machine(cores=2, memory_bytes=2**33, cpu_model="x")


def test_price_needs_currency_and_nothing_has_a_default() -> None:
    with pytest.raises(ValidationError, match="needs its 'currency'"):
        Accounting(price_per_kwh=0.25)
    assert Accounting().model_dump(exclude_none=True) == {}
    assert Accounting(grid_gco2_per_kwh=0).grid_gco2_per_kwh == 0  # a stated zero is not a missing value


def test_a_target_is_part_of_a_cell_only_if_there_is_one() -> None:
    assert "target" not in Training(steps=10).identity()
    target = Target(metric="accuracy", value=0.8, every=5)
    assert Training(steps=10, target=target).identity()["target"] == {"metric": "accuracy", "value": 0.8, "every": 5}
    assert target.met(0.8)
    assert not target.met(0.79)
    assert Target(metric="validation_nll", value=0.5, every=5).met(0.4)
    assert not target.met(float("nan"))


def test_profile_settings_enter_the_cell_only_if_relevant() -> None:
    plain = HardwareProfile(name="p", device="cpu")
    assert identity(plain, CPU) == {"device": "cpu", "gpu": "*"}
    stated = HardwareProfile(name="p", device="cpu", peak_tflops={"float32": 1.0})
    assert identity(stated, CPU) == identity(plain, CPU)  # a constant that divides: the measurement is the same
    settled = HardwareProfile(name="p", device="cpu", thermal=Thermal(cool_below_c=45))
    assert identity(settled, CPU)["thermal"]["cool_below_c"] == 45


def test_options_of_meters_are_checked_by_name() -> None:
    with pytest.raises(UserError, match=r"no option 'idle'.*idle_s"):
        build("cpu", options={"energy": {"idle": 3}})
    with pytest.raises(UserError, match="Did you mean 'energy'"):
        build("cpu", options={"enrgy": {}})
