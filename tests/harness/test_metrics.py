from __future__ import annotations

import re

import pytest

from harness.metrics import METRICS, MetricDef, define, metric, missing, reading

SUFFIXES = {"_bytes": "B", "_s": None, "_ms": "ms", "_j": "J", "_w": "W"}


@pytest.mark.parametrize("definition", METRICS.values(), ids=lambda d: d.name)
def test_every_metric_explains_itself(definition: MetricDef) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", definition.name)
    assert definition.label
    assert definition.unit
    assert definition.source
    assert definition.definition.endswith(".")
    assert len(definition.definition) > 15
    assert definition.version >= 1
    assert METRICS[definition.name] is definition


@pytest.mark.parametrize("definition", METRICS.values(), ids=lambda d: d.name)
def test_a_name_that_carries_a_unit_carries_its_own(definition: MetricDef) -> None:
    for suffix, unit in SUFFIXES.items():
        if definition.name.endswith(suffix):
            assert definition.unit == (unit or ("1/s" if definition.name.endswith("_per_s") else "s"))


def test_a_metric_defined_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="'accuracy' is defined twice"):
        define(METRICS["accuracy"])


def test_an_unknown_metric_is_named_with_close_ones() -> None:
    with pytest.raises(KeyError, match="Did you mean 'accuracy'"):
        metric("acuracy")
    with pytest.raises(KeyError):
        reading("no_such_quantity", 1.0, source="test")


def test_a_reading_takes_its_unit_from_the_definition() -> None:
    made = reading("step_ms", 12, source="clock", n=3, details={"warm_up": 1})
    assert (made.quantity, made.value, made.unit, made.n) == ("step_ms", 12.0, "ms", 3)
    assert isinstance(made.value, float)


def test_a_missing_value_has_a_typed_reason_and_no_number() -> None:
    made = missing("energy_gross_j", "window_too_short", source="NVML")
    assert (made.value, made.why_missing, made.unit) == (None, "window_too_short", "J")
    with pytest.raises(ValueError, match="either a value or why_missing"):
        reading("energy_gross_j", None, source="NVML")
