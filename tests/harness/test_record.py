from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, create_model

from harness import record as record_module
from harness.digests import digest
from harness.errors import UserError
from harness.metrics import METRICS, MetricDef, define, metric, missing, reading
from harness.record import (
    SCHEMA_VERSION,
    CellView,
    EnvironmentView,
    Outcome,
    Reading,
    Record,
    SamplesRef,
    SharedParts,
    Span,
    UnknownLayout,
)
from tests.harness.examples import full_record, make_record
from tests.harness.test_matrix import JSON, TEXT

GOLDEN = Path(__file__).parents[1] / "golden"
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.dictionaries(TEXT, JSON, max_size=3)

READINGS = st.one_of(
    st.builds(Reading, quantity=TEXT, value=FINITE, unit=TEXT, source=TEXT, why_missing=st.none(), details=PLAIN),
    st.builds(Reading, quantity=TEXT, value=st.none(), unit=TEXT, source=TEXT, why_missing=st.just("no_device")),
)
RECORDS = st.builds(
    Record,
    key=TEXT,
    label=TEXT,
    sweep=TEXT,
    cell=PLAIN,
    outcome=st.builds(Outcome, status=st.sampled_from(["ok", "oom", "lost"]), reason=TEXT, log_tail=TEXT),
    metrics=st.dictionaries(TEXT, READINGS, max_size=2),
    spans=st.lists(st.builds(Span, stage=TEXT, seconds=FINITE, readings=st.tuples(READINGS)), max_size=2).map(tuple),
    series=st.dictionaries(TEXT, st.lists(FINITE, max_size=3).map(tuple), max_size=2),
    samples=st.none() | st.builds(SamplesRef, digest=st.from_regex(r"[0-9a-f]{64}", fullmatch=True), rows=st.just(3)),
    environment=PLAIN,
)


@given(RECORDS)
def test_a_record_reads_back_as_it_was_written(record: Record) -> None:
    text = record.to_json()
    copy = Record.from_json(text)
    assert copy == record
    assert copy.id == record.id
    assert copy.to_json() == text


@given(st.lists(RECORDS, max_size=3))
def test_sharing_equal_parts_changes_no_record(records: list[Record]) -> None:
    shared = SharedParts()
    for record in [*records, *(full_record() for _ in range(2))]:
        text = record.to_json()
        assert shared.share(Record.from_json(text)).to_json() == text


def test_records_that_are_held_together_share_what_is_equal() -> None:
    energy = missing("energy_gross_j", "no_device", source="NVML")
    zeros = [reading("accuracy", zero, source="scorer") for zero in (0.0, -0.0)]
    packages = {"packages": {"torch": "2.13.0"}}
    spans = (Span(stage="train", seconds=1.0, readings=(energy,)),)
    made = [make_record(n, metrics={"accuracy": zeros[n]}, spans=spans, environment=packages) for n in range(2)]
    shared = SharedParts()
    first, second = (shared.share(Record.from_json(record.to_json())) for record in made)
    assert first.spans[0].readings[0] is second.spans[0].readings[0]
    assert first.environment["packages"] is second.environment["packages"]
    assert [str(r.metrics["accuracy"].value) for r in (first, second)] == ["0.0", "-0.0"]


@given(RECORDS, st.integers(min_value=0))
def test_a_record_cut_off_anywhere_is_noticed(record: Record, at: int) -> None:
    text = record.to_json()
    with pytest.raises(UserError):
        Record.from_json(text[: at % (len(text) - 2)])  # the last two characters are the brace and the line break


# --- the golden record of layout 1 ---------------------------------------------------------------
def test_golden_record_keeps_its_content_and_its_id() -> None:
    text = (GOLDEN / f"record-v{SCHEMA_VERSION}.json").read_text(encoding="utf-8")  # one field a line, as before
    record = Record.from_json(text)
    assert json.loads(record.to_json()) == json.loads(text)
    assert record.id == full_record().id == json.loads(text)["id"]
    assert record == full_record()


def test_a_record_is_one_line_with_the_text_of_its_digest() -> None:
    text = full_record().to_json()
    assert text.count("\n") == 1
    canonical = "{" + text.removesuffix("\n").partition(",")[2]
    assert hashlib.sha256(canonical.encode()).hexdigest() == json.loads(text)["id"] == digest(full_record().content())


def fields_used(value: BaseModel) -> dict[type, set[str]]:
    """For each model inside ``value``, the fields that somewhere differ from their default."""
    used: dict[type, set[str]] = {type(value): set()}
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        if field.is_required() or inner != field.get_default(call_default_factory=True):
            used[type(value)].add(name)
        parts = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, tuple) else (inner,)
        for part in parts:
            if isinstance(part, BaseModel):
                for kind, names in fields_used(part).items():
                    used.setdefault(kind, set()).update(names)
    return used


def rewritten(text: str, old: str, new: str) -> str:
    """The record with another content and the id of the new text."""
    canonical = "{" + text.removesuffix("\n").partition(",")[2].replace(old, new, 1)
    return f'{{"id":"{hashlib.sha256(canonical.encode()).hexdigest()}",{canonical[1:]}\n'


def test_reading_checks_the_text_as_it_is_against_the_id() -> None:
    record = make_record(1)
    text = record.to_json()
    assert Record.from_json(rewritten(text, '"attempt":1', '"attempt":2')).attempt == 2
    with pytest.raises(UserError, match="does not match its id"):
        Record.from_json(text.replace('"attempt":1', '"attempt":2'))
    for number in ("1e999", "-1E+400", "9" * 400 + ".0"):  # infinite as floats, and no canonical JSON
        with pytest.raises(UserError):
            Record.from_json(rewritten(text, '"cell":{', f'"cell":{{"x":{number},'))


def test_a_record_is_not_encoded_again_to_check_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    text = make_record(1, fingerprint="0e123" * 12).to_json()  # a digest may look like a large number
    monkeypatch.setattr("harness.record.digest", lambda _: pytest.fail("it was encoded again"))
    assert Record.from_json(text).fingerprint == "0e123" * 12


def test_golden_record_sets_every_field_of_every_part() -> None:
    used = fields_used(Record.from_json((GOLDEN / "record-v1.json").read_text(encoding="utf-8")))
    assert {kind: set(kind.model_fields) for kind in (Record, Outcome, Reading, Span, SamplesRef)} == {
        kind: names | ({"schema_version"} if kind is Record else set()) for kind, names in used.items()
    }


def test_new_field_without_new_schema_version_is_detected() -> None:
    wider = create_model("Wider", __base__=Record, colour=(str, "blue"))
    text = (GOLDEN / "record-v1.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="older layout"):
        wider.from_json(text).to_json()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("record-v*.json")), ids=lambda p: p.stem)
def test_records_of_every_layout_load(path: Path) -> None:
    assert Record.from_json(path.read_text(encoding="utf-8")).schema_version == SCHEMA_VERSION


# --- layouts -------------------------------------------------------------------------------------
def test_every_layout_has_its_golden_record_and_its_step() -> None:
    numbers = range(1, SCHEMA_VERSION + 1)
    assert sorted(p.name for p in GOLDEN.glob("record-v*.json")) == sorted(f"record-v{n}.json" for n in numbers)
    assert sorted(record_module.STEPS) == list(numbers[:-1])


def later_layout(monkeypatch: pytest.MonkeyPatch) -> type[Record]:
    """Examples of two schema changes: a new field, then one renamed."""

    def add_colour(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "color": "grey"}

    def rename_it(content: dict[str, Any]) -> dict[str, Any]:
        return {**{k: v for k, v in content.items() if k != "color"}, "colour": content["color"]}

    monkeypatch.setattr(record_module, "STEPS", {1: add_colour, 2: rename_it})
    monkeypatch.setattr("harness.record.SCHEMA_VERSION", 3)
    return create_model("Later", __base__=Record, colour=(str, ...))


def test_older_schema_is_migrated_and_keeps_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (GOLDEN / "record-v1.json").read_text(encoding="utf-8")
    later = later_layout(monkeypatch)
    record = later.from_json(text, id_prefix=full_record().id[:12])
    assert (record.schema_version, record.colour) == (3, "grey")  # type: ignore[attr-defined]
    assert record.id == json.loads(text)["id"]
    with pytest.raises(ValueError, match="copy its file"):
        record.to_json()
    with pytest.raises(UserError, match="does not match its id"):  # the digest is of what was written
        later.from_json(text.replace('"quickstart"', '"slowstart"'))
    monkeypatch.delitem(record_module.STEPS, 2)
    with pytest.raises(UserError, match="not a record: 2"):
        later.from_json(text)


def test_a_changed_copy_has_a_new_id() -> None:
    record = make_record()
    assert record.model_copy(update={"label": "other"}).id != record.id
    assert record.model_copy().id == record.id


# --- what is refused -----------------------------------------------------------------------------
def test_a_reading_has_either_a_value_or_a_reason() -> None:
    with pytest.raises(ValidationError, match="either a value or why_missing"):
        Reading(quantity="x", value=None, unit="1", source="s")
    with pytest.raises(ValidationError, match="either a value or why_missing"):
        Reading(quantity="x", value=1.0, unit="1", source="s", why_missing="oom")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        Reading(quantity="x", value=value, unit="1", source="s")


@pytest.mark.parametrize("digest", ["", "../../x", "A" * 64, "0" * 63])
def test_samples_are_named_by_a_digest_and_by_nothing_else(digest: str) -> None:
    with pytest.raises(ValidationError):
        SamplesRef(digest=digest, rows=1)


def test_a_record_cannot_be_edited() -> None:
    with pytest.raises(ValidationError):
        make_record().label = "other"  # type: ignore[misc]


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(make_record().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a readable record"),
        ("[1]", "not a readable record"),
        ("{}", "not a readable record"),
        (changed(sweep="other"), "does not match its id"),
        (changed(id="0" * 64), "does not match its id"),
        (changed(schema_version=None), "no schema_version"),
        (changed(schema_version=99), "layout 99 is not known"),
        (changed(schema_version=0), "layout 0 is not known"),
    ],
)
def test_a_record_that_cannot_be_trusted_says_why_and_where(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Record.from_json(text, where="results/x.json")
    assert caught.value.where == "results/x.json"


def test_an_unknown_schema_is_not_reported_as_damage() -> None:
    with pytest.raises(UnknownLayout, match="Update peft-matrix"):
        Record.from_json(changed(schema_version=2))


def test_a_record_under_another_ones_id_is_refused() -> None:
    text = make_record().to_json()
    assert Record.from_json(text, id_prefix=make_record().id[:12]) == make_record()
    with pytest.raises(UserError, match="does not begin with 000"):
        Record.from_json(text, id_prefix="000000000000")


def test_well_formed_file_with_wrong_field_types_is_no_record() -> None:
    from harness.digests import digest

    content = {**make_record().content(), "colour": "blue"}
    with pytest.raises(UserError, match="not a record"):
        Record.from_json(json.dumps({"id": digest(content), **content}))


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


def test_views_give_types_whatever_a_record_holds() -> None:
    task: dict[str, Any] = {"name": "reverse", "label": "r"}
    earlier = [{"task": task}, "x"]
    method = {"name": "lora", "params": {"r": 8}, "learning_rate": 3}
    cell = make_record(cell={"seed": 1, "task": task, "method": method, "stages": {"earlier": earlier}}).cell_view
    assert (cell.seed, cell.role, cell.protocol, cell.second_arm) == (1, "result", None, False)
    assert (cell.label("task"), cell.name("task"), cell.label("model")) == ("r", "reverse", "")
    assert (cell.params, cell.learning_rate, cell.trained_before) == ({"r": 8}, 3.0, ({"task": task},))
    odd = CellView({"seed": [1], "method": {"learning_rate": True, "params": 3}, "stages": {"earlier": 3}, "arm": 2})
    assert (odd.seed, odd.params, odd.learning_rate, odd.trained_before, odd.second_arm) == (None, {}, None, (), True)
    made = EnvironmentView({"harness": {"commit": "abc"}, "cpu": {"model": "Zen"}, "gpus": ["GPU-1", {"name": "H100"}]})
    assert (made.commit, made.cpu, made.facts, made.packages, made.imported) == ("abc", "Zen", {}, {}, {})
    assert [gpu["name"] for gpu in made.gpus] == ["GPU not described", "H100"]
    assert EnvironmentView({"harness": 3, "cpu": None, "gpus": 3}).gpus == []
