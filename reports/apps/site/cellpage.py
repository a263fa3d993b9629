"""One page per cell: what was run, what every stage cost, the answers, where they come from, how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.metrics import METRICS, MetricDef
from harness.record import EnvironmentView, Reading, Record
from harness.store.store import Store
from reports.apps.site.text import block, flat, line
from reports.board.formats.text import MISSING, scale, why_words
from reports.data.frame import marks

TEXT_CHARACTERS = 1000
"""Characters shown of a question, a prediction or an answer; a longer one says how long it was."""
MOST_SAMPLES = 200
"""Scored items shown of one arm; the page says of how many. All of them are in the record."""

STAGE_QUANTITIES = (
    "peak_rss_bytes",
    "pss_peak_bytes",
    "cuda_allocated_peak_bytes",
    "cuda_reserved_peak_bytes",
    "device_used_peak_bytes",
    "energy_gross_j",
    "cpu_package_j",
    "power_mean_w",
    "gpu_temperature_end_c",
    "sm_clock_mhz",
)
ARM_WORDS = {
    "adapted": "the adapted model, read back from disk",
    "merged": "after the merge into the base",
    "retained": "the base's own skills, after adaptation",
    "base": "the base's own skills, before adaptation",
}
ENVIRONMENT = ("python", "implementation", "platform", "device", "threads", "cores", "neighbours")
TRACE = ("power_s", "power_w")
RESULTS = (
    "accuracy",
    "retained_accuracy",
    "base_retained_accuracy",
    "merged_accuracy",
    "step_ms",
    "latency_ms",
    "tpot_ms",
)
MEMORY = ("device_used_peak_bytes", "cuda_reserved_peak_bytes", "cuda_allocated_peak_bytes", "rss_growth_bytes")
MERGE_LOSS = 0.05
"""Accuracy lost by a merge from which on a page warns."""


@dataclass(frozen=True)
class Value:
    """A measured quantity as shown: text with unit, or a dash and why."""

    name: str
    label: str
    text: str
    meaning: str
    source: str
    missing: bool


def describe(
    record: Record,
    identity: str,
    *,
    siblings: Sequence[Mapping[str, str]],
    attempts: Sequence[tuple[str, Record]],
    shown_samples: Sequence[Mapping[str, object]],
) -> dict[str, object]:
    """Everything the template of a cell page shows.

    Args:
        siblings: the same configuration under other seeds: ``{"seed", "page", "status"}``.
        attempts: all records of this cell with their ids, this one included.
        shown_samples: what :func:`samples_data` gives.
    """
    imported = bool(record.environment_view.imported)
    return {
        "label": line(record.label, 200),
        "key": line(record.key, 80),
        "id": identity,
        "sweep": line(record.sweep, 120),
        "outcome": {
            "status": record.outcome.status,
            "stage": line(record.outcome.stage, 40),
            "reason": line(record.outcome.reason, 2000),
            "check": line(record.outcome.check, 80),
            "log": block(record.outcome.log_tail),
        },
        "marks": marks(record),
        "result": result(record),
        "cautions": _cautions(record),
        "main_settings": main_settings(record),
        "axes": [
            (axis, line(record.cell_view.label(axis), 200))
            for axis in ("model", "method", "quantization", "task", "hardware")
        ],
        "seed": line(record.cell_view.seed, 20),
        "settings": [(line(name, 80), line(text)) for name, text in flat(record.cell)],
        "stages": _stages(record),
        "metrics": _metrics(record),
        "unmeasured": _unmeasured(record),
        "has_trace": all(len(record.series.get(name, ())) > 1 for name in TRACE),
        "curves": sorted(name for name, values in record.series.items() if len(values) > 1 and name not in TRACE),
        "samples": shown_samples,
        "arm_words": ARM_WORDS,
        "provenance": _provenance(record, identity),
        "packages": ", ".join(
            line(f"{name} {version}", 80)
            for name, version in sorted(record.environment_view.packages.items())
            if version
        ),
        "siblings": siblings,
        "attempts": [
            (line(one.finished, 40) or MISSING, one.outcome.status, line(one.fingerprint[:12], 12), other[:12])
            for other, one in sorted(attempts, key=lambda pair: (pair[1].finished, pair[0]))
        ],
        "command": "" if imported else _command(record),
        "imported": imported,
    }


def result(record: Record) -> list[tuple[str, str]]:
    """The scores and costs that a reader asks for first: (label, text with unit), only those with a value."""
    spans = [reading for span in record.spans if span.stage == "train" for reading in span.readings]
    peak = [r for name in MEMORY for r in spans if r.quantity == name and r.value is not None][:1]
    energy = [r for r in spans if r.quantity == "energy_gross_j" and r.value is not None]
    found = [record.metrics[name] for name in RESULTS if name in record.metrics]
    values = [_value(reading, bare=True) for reading in (*found, *peak, *energy) if reading.value is not None]
    return [(value.label, value.text) for value in values]


def main_settings(record: Record) -> list[tuple[str, str]]:
    """Learning rate, steps, batch size, training rows and the method's parameters."""
    cell = record.cell_view
    method, training, task = (cell.part(name) for name in ("method", "training", "task"))
    steps = method.get("steps") or training.get("steps")
    found = [
        ("learning rate", method.get("learning_rate")),
        ("steps", steps),
        ("batch size", training.get("batch_size")),
        ("training rows", task.get("train_items")),
        *sorted(cell.params.items()),
    ]
    return [(line(name, 40), line(value, 80)) for name, value in found if value not in (None, "", [], {})]


def _cautions(record: Record) -> list[str]:
    score, merged = (record.metrics.get(name) for name in ("accuracy", "merged_accuracy"))
    if score is None or merged is None or score.value is None or merged.value is None:
        return []
    lost = score.value - merged.value
    return [f"Merging lost {100 * lost:.1f} points of accuracy."] if lost >= MERGE_LOSS else []


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _command(record: Record) -> str:
    return f"peft-matrix run {shlex.quote(line(record.sweep, 200))} --only {shlex.quote(record.key)} --rerun all"


def _value(reading: Reading, *, bare: bool = False) -> Value:
    """``bare``: without what is known about the number's spread."""
    definition = METRICS.get(reading.quantity) or _unknown(reading)
    meaning = f"{definition.definition} {_better(definition)}".strip()
    source = line(reading.source, 120)
    if reading.value is None:
        why = why_words(reading.why_missing or "")
        detail = "; ".join(f"{value}" for _, value in flat(reading.details))
        text = f"{why} ({line(detail, 200)})" if detail else why
        return Value(reading.quantity, definition.label, text, meaning, source, missing=True)
    chosen = scale(definition, [reading.value])
    text = f"{chosen.text(reading.value)} {chosen.unit}".rstrip()
    if reading.spread is not None and not bare:
        text += f" ± {chosen.text(reading.spread)}"
    if reading.n is not None and reading.n > 1 and not bare:
        text += f" (n = {reading.n:,})"
    return Value(reading.quantity, definition.label, text, meaning, source, missing=False)


def _unknown(reading: Reading) -> MetricDef:
    name = line(reading.quantity, 80)
    return MetricDef(name, name, line(reading.unit, 20), "neither", "Not defined in this version.", "check")


def _better(definition: MetricDef) -> str:
    return {"higher": "Higher is better.", "lower": "Lower is better.", "neither": ""}[definition.better]


def _metrics(record: Record) -> list[tuple[str, list[Value]]]:
    """Readings with a value, by family and in the order of the definitions."""
    order = {name: number for number, name in enumerate(METRICS)}
    families: dict[str, list[Value]] = {}
    held = [name for name, reading in record.metrics.items() if reading.value is not None]
    for name in sorted(held, key=lambda name: (order.get(name, len(order)), name)):
        definition = METRICS.get(name)
        families.setdefault(definition.family if definition else "other", []).append(_value(record.metrics[name]))
    return list(families.items())


def _unmeasured(record: Record) -> list[tuple[str, str]]:
    """Readings without a value, by reason: ``(reason, labels)``."""
    reasons: dict[str, list[str]] = {}
    for name in sorted(record.metrics):
        value = _value(record.metrics[name])
        if value.missing:
            reasons.setdefault(value.text, []).append(value.label)
    return [(why, ", ".join(labels)) for why, labels in sorted(reasons.items())]


def _stages(record: Record) -> dict[str, object]:
    """A table of stages: only quantities that some stage has a value for, and why the rest are missing."""
    having = [
        name
        for name in STAGE_QUANTITIES
        if any((r := span.get(name)) is not None and r.value is not None for span in record.spans)
    ]
    longest = max((span.seconds or 0.0 for span in record.spans), default=0.0)
    rows = []
    for span in record.spans:
        cells = [_value(r, bare=True) if (r := span.get(name)) is not None else None for name in having]
        seconds = span.seconds
        share = 0.0 if seconds is None or not longest else 100.0 * seconds / longest
        rows.append((line(span.stage, 40), seconds, f"{share:.1f}", cells))
    absent: dict[str, list[str]] = {}
    for name in STAGE_QUANTITIES:
        found = [r for span in record.spans if (r := span.get(name)) is not None]
        if found and name not in having:
            absent.setdefault(why_words(found[0].why_missing or ""), []).append(METRICS[name].label)
    return {
        "heads": [(METRICS[name].label, METRICS[name].definition) for name in having],
        "rows": rows,
        "absent": sorted((", ".join(labels), why) for why, labels in absent.items()),
        "total": sum(span.seconds or 0.0 for span in record.spans),
    }


def _provenance(record: Record, identity: str) -> list[tuple[str, str]]:
    """Provenance of the numbers. The host's name is left out: it says nothing about them."""
    environment, view = record.environment, record.environment_view
    gpus = [" ".join(text for _, text in flat(gpu)) for gpu in environment.get("gpus") or () if isinstance(gpu, dict)]
    facts = [
        ("record", identity),
        ("cell key", record.key),
        ("software stack", record.fingerprint),
        ("protocol", record.cell_view.protocol),
        ("started", record.started),
        ("finished", record.finished),
        ("attempt", record.attempt),
        ("supersedes", record.supersedes),
        ("peft-matrix commit", _commit(view)),
        ("processor", view.cpu),
        ("GPUs", "; ".join(gpus) or environment.get("gpus_missing_detail")),
        *((name, environment.get(name)) for name in ENVIRONMENT),
        *((f"fact: {name}", text) for name, text in flat(view.facts)),
        *((f"imported: {name}", text) for name, text in flat(view.imported)),
    ]
    return [(line(name, 80), line(value)) for name, value in facts if value not in (None, "", [], {})]


def _commit(environment: EnvironmentView) -> str:
    dirty = environment.commit and environment.part("harness").get("dirty")
    return f"{environment.commit} with local changes" if dirty else environment.commit


def series_data(record: Record) -> dict[str, list[float]]:
    """The series of a cell, for its curves: values over training steps, and the power trace."""
    return {line(name, 80): list(values) for name, values in sorted(record.series.items()) if len(values) > 1}


def samples_data(record: Record, store: Store | None) -> list[dict[str, object]]:
    """The first scored items of every arm: ``{"arm", "shown", "of", "rows"}``; a row is
    ``[task, item, correct or None, prediction, answer, log p of the answer, cut]``, and the prompt where one is stored.
    """
    if record.samples is None or store is None:
        return []
    table = store.samples(record)
    names = ["arm", "task", "item", "correct", "prediction", "answer", "logp_answer", "cut"]
    names += [name for name in ("prompt",) if name in table.column_names]
    found: dict[str, list[list[Any]]] = {}
    for arm, *values in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        found.setdefault(arm, []).append(values)
    arms = sorted(found, key=lambda arm: (list(ARM_WORDS).index(arm) if arm in ARM_WORDS else len(ARM_WORDS), arm))
    return [
        {
            "arm": line(arm, 40),
            "shown": min(MOST_SAMPLES, len(found[arm])),
            "of": len(found[arm]),
            "right": sum(bool(values[2]) for values in found[arm]),
            "rows": [_sample(values) for values in found[arm][:MOST_SAMPLES]],
        }
        for arm in arms
    ]


def _sample(values: Sequence[Any]) -> list[object]:
    task, item, correct, prediction, answer, logp, cut, *prompt = values
    return [
        line(task, 80),
        line(item, 80),
        correct,
        line(prediction, TEXT_CHARACTERS),
        line(answer, TEXT_CHARACTERS),
        None if logp is None else round(float(logp), 4),
        bool(cut),
        *(line(text or "", TEXT_CHARACTERS) for text in prompt),
    ]
