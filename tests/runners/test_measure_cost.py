"""Sweeps that measure no cost: cells share a device, and no record holds a time, a size or a joule."""

from __future__ import annotations

import pytest

from harness.metrics import metric
from harness.spec import SweepSpec
from runners.worker.main import COST_FAMILIES
from tests.runners.conftest import Bench


def test_cells_share_a_device_and_record_no_cost(bench: Bench) -> None:
    path = bench.write(measure_cost=False, limits={"threads": 1, "workers": 1, "cells_per_device": 2})
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    records = bench.records()
    first, second = sorted(records, key=lambda r: r["started"])
    assert second["started"] <= first["finished"], "the second cell waited for the device"
    for record in records:
        assert record["cell"]["measure_cost"] is False
        assert record["environment"]["neighbours"] == 1
        steps = record["cell"]["method"]["steps"]
        assert {name: len(values) for name, values in record["series"].items()} == (
            {"loss": steps, "grad_norm": steps} if steps else {}
        )
        assert record["metrics"]["accuracy"]["value"] is not None
        costs = {n: m for n, m in record["metrics"].items() if metric(n).family in COST_FAMILIES}
        assert costs
        assert {m["why_missing"] for m in costs.values()} == {"not_measured"}
        assert {r["quantity"] for span in record["spans"] for r in span["readings"]} <= {"seconds"}


def test_the_default_is_not_in_the_key(bench: Bench) -> None:
    assert bench("run", str(bench.write(methods=["none"]))).returncode == 0
    assert "measure_cost" not in bench.records()[0]["cell"]


def test_measured_cells_may_not_share(bench: Bench) -> None:
    with pytest.raises(ValueError, match="cells_per_device above 1 needs 'measure_cost: false'"):
        SweepSpec.model_validate({**bench.sweep, "limits": {"cells_per_device": 2}})
