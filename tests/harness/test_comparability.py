"""Keys that decide which records are comparable."""

from __future__ import annotations

from harness.comparability import gpus_of, machine, place
from tests.harness.examples import make_record
from tests.reports.making import cell

H100 = {"name": "NVIDIA H100", "driver": "580", "power_limit_w": 700.0}


def on(gpus: object):
    return make_record(
        1, cell=cell() | {"hardware": {"device": "cuda"}}, environment={"cpu": {"model": "x"}, "gpus": gpus}
    )


def test_the_machine_names_its_gpus_and_power_limits() -> None:
    assert machine(on([H100]))["gpus"] == ["NVIDIA H100, 700.0 W"]
    assert place(on([H100])) != place(on([{**H100, "power_limit_w": 350.0}]))


def test_gpus_known_by_uuid_alone_are_read() -> None:
    assert gpus_of({"gpus": ["GPU-1"]})[0]["uuid"] == "GPU-1"
    assert machine(on(["GPU-1"]))["gpus"] == ["GPU not described, power limit not stated"]
