"""A meter that raises costs its own readings and nothing else."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.errors import UserError
from harness.hardware import HardwareProfile, Machine, Thermal, identity
from harness.meters.base import Meter, MeterHooks
from harness.meters.catalog import METERS, build
from harness.meters.flops import LinearLayers, attention_products, count_flops, mfu, step_flops
from harness.meters.instrument import MeterSetting, Sampler
from harness.meters.panel import Panel
from harness.meters.timer import Timer
from harness.metrics import METRICS, missing, reading
from harness.record import Reading
from harness.spec import Accounting, Target, Training
from reports.board.spec import Column


class Scripted:
    """A meter that notes its calls, and raises on request."""

    def __init__(self, name: str, log: list[str], raises_in: str = "", unavailable: str | None = None) -> None:
        self.name = name
        self.log = log
        self.raises_in = raises_in
        self.unavailable = unavailable
        self.quantities = ("step_ms",)

    def _do(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if self.raises_in == what:
            raise OSError(f"{self.name} broke in {what}")

    def available(self) -> str | None:
        self._do("available")
        return self.unavailable

    def begin(self, stage: str) -> None:
        self._do("begin")

    def end(self, stage: str) -> list[Reading]:
        self._do("end")
        return [reading("train_s", 1.0, source=self.name)]

    def facts(self) -> dict[str, Any]:
        self._do("facts")
        return {"ok": True}


def test_stages_open_outermost_first_and_close_innermost_first() -> None:
    log: list[str] = []
    panel = Panel([Scripted("outer", log), Scripted("inner", log)])
    panel.begin("train")
    panel.end("train")
    assert log[2:] == ["begin outer", "begin inner", "end inner", "end outer"]


@pytest.mark.parametrize("where", ["begin", "end"])
def test_raising_meter_fails_alone_and_is_retried_next_stage(where: str) -> None:
    log: list[str] = []
    bad = Scripted("bad", log, raises_in=where)
    panel = Panel([Scripted("good", log), bad, Timer(MeterSetting("cpu"))])
    panel.begin("train")
    readings = {r.quantity: r for r in panel.end("train")}
    assert readings["train_s"].value == 1.0
    assert readings["stage_s"].value is not None
    assert readings["step_ms"].why_missing == "failed"
    assert readings["step_ms"].details["error"] == f"OSError: bad broke in {where}"
    bad.raises_in = ""
    panel.begin("evaluate")
    assert all(r.value is not None for r in panel.end("evaluate"))


def test_unavailable_meters_say_so_once_and_take_no_part() -> None:
    log: list[str] = []
    panel = Panel([Scripted("absent", log, unavailable="no such device"), Scripted("broken", log, "available")])
    panel.begin("train")
    assert panel.end("train") == ()
    assert [r.details["why"] for r in panel.finish()] == [
        "no such device",
        "failed while searching for its device: OSError: broken broke in available",
    ]
    assert panel.facts()["absent"] == {"unavailable": "no such device"}


def test_facts_that_raise_are_named() -> None:
    panel = Panel([Scripted("bad", [], raises_in="facts")])
    assert panel.facts() == {"bad": {"error": "OSError: bad broke in facts"}}


def test_stages_do_not_nest() -> None:
    panel = Panel([])
    panel.begin("train")
    with pytest.raises(RuntimeError, match="'save' begins while 'train' is open"):
        panel.begin("save")
    with pytest.raises(RuntimeError, match="'save' ends while 'train' is open"):
        panel.end("save")


def test_a_clock_that_goes_back_gives_no_duration() -> None:
    times = iter([100.0, 99.0])
    timer = Timer(MeterSetting("cpu"), clock=lambda: next(times))
    timer.begin("train")
    [got] = timer.end("train")
    assert (got.value, got.why_missing) == (None, "failed")
    assert got.details["error"] == "the clock went back"


def test_catalogue_orders_meters_and_defines_each_quantity() -> None:
    meters = build("cpu")
    assert [meter.name for meter in meters] == METERS.names()
    assert [meter.name for meter in meters][-2:] == ["energy", "time"]
    assert [m.name for m in build("cpu", names=["time", "host-memory"])] == ["host-memory", "time"]
    for meter in meters:
        assert isinstance(meter, Meter)
        assert all(name in METRICS for name in meter.quantities)  # type: ignore[attr-defined]


def test_an_unknown_meter_is_a_user_error() -> None:
    with pytest.raises(UserError, match="Did you mean 'energy'"):
        build("cpu", names=["enregy"])


def test_without_gpu_every_gpu_quantity_has_a_reason() -> None:
    panel = Panel(build("cpu"))
    absent = {r.quantity: r.why_missing for r in panel.absent()}
    assert absent["energy_gross_j"] == "no_device"
    assert absent["device_used_peak_bytes"] == "no_device"
    assert absent["cuda_allocated_peak_bytes"] == "no_device"
    panel.begin("train")
    measured = {r.quantity for r in panel.end("train")}
    assert {"stage_s", "peak_rss_bytes", "pss_peak_bytes"} <= measured
    assert not measured & set(absent)


def test_a_sampler_keeps_its_error_and_stops() -> None:
    values = iter([1, 2])

    def read() -> int:
        return next(values)

    sampler = Sampler(read, 0.001, name="test")
    sampler.start()
    assert sampler._thread is not None
    sampler._thread.join(timeout=5)
    assert [value for _, value in sampler.stop()] == [1, 2]
    assert isinstance(sampler.error, StopIteration)
    assert sampler.stop() is sampler.samples


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


def test_every_hook_the_panel_asks_for_is_named() -> None:
    asked = set(re.findall(r'getattr\(meter, "(\w+)"', Path(inspect.getfile(Panel)).read_text(encoding="utf-8")))
    named = {name for name in [*vars(MeterHooks), *MeterHooks.__annotations__] if not name.startswith("_")}
    assert asked == named


def test_a_meter_defines_its_own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board may show it although no module of the project names it."""
    made = 'define(MetricDef("noise_db", "n", "dB", "lower", "d", "check"))'
    code = f"from harness.metrics import MetricDef, define\n{made}\n"
    (tmp_path / "noise_meter.py").write_text(f"{code}Noise = object\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="unknown metric 'noise_db'"):
        Column(metric="noise_db")
    monkeypatch.setitem(METERS._targets, "noise", "noise_meter:Noise")
    try:
        assert Column(metric="noise_db").metric == "noise_db"
    finally:
        METRICS.pop("noise_db", None)
        METERS._loaded.pop("noise", None)


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
