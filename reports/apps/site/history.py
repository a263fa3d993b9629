"""Views of several records: validation over learning rates, and one cell over the nights."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics import METRICS
from harness.record import Record
from reports.apps.site.text import flat, line
from reports.board.board import BoardTable

TUNED = ("validation_nll", "accuracy")
TRENDS = (
    "accuracy",
    "merged_accuracy",
    "retained_accuracy",
    "step_ms",
    "train_tokens_per_s",
    "latency_ms",
    "tpot_ms",
    "train.peak_rss_bytes",
    "train.cuda_reserved_peak_bytes",
    "train.energy_gross_j",
)
"""Quantities followed over time, in the order offered."""


def tuning_data(table: BoardTable) -> list[dict[str, object]]:
    """A curve for every method and quantization that was run at two learning rates or more, trials included.

    Each curve holds its points ``[rate, value, seed, role]``; rows that differ in the rate alone form one curve.
    """
    curves: dict[tuple[str, ...], list[list[object]]] = {}
    for of, records in (("", table.trials), ("final", tuple(table.records.values()))):
        for record in records:
            role = of or str(record.cell_view.role)  # "trial" or "shared-lr"
            rate = record.cell_view.learning_rate
            for metric in TUNED:
                reading = record.metrics.get(metric)
                if record.outcome.status == "ok" and rate and reading is not None and reading.value is not None:
                    point = [rate, reading.value, line(record.cell_view.seed, 20), role]
                    curves.setdefault((*_series(record), metric), []).append(point)
    return [
        {
            "name": " · ".join(name for name in key[:-2] if name),
            "metric": key[-1],
            "label": METRICS[key[-1]].label,
            "unit": METRICS[key[-1]].unit,
            "better": METRICS[key[-1]].better,
            "points": sorted(points, key=lambda point: (point[0], point[2], point[3])),
        }
        for key, points in sorted(curves.items())
        if len({point[0] for point in points}) > 1
    ]


def _series(record: Record) -> tuple[str, ...]:
    cell = record.cell_view
    labels = [cell.label(axis) for axis in ("model", "quantization", "task")]
    return (line(cell.name("method"), 80), *(line(x, 80) for x in labels), repr(flat(cell.params)))


def trends_data(records: Sequence[tuple[str, Record]]) -> dict[str, object]:
    """Every cell that was run twice or more: its values in the order of their end, and the stack behind each.

    Args:
        records: all records of a sweep with their ids, repeated and superseded ones included.
    """
    by_key: dict[str, list[tuple[str, Record]]] = {}
    for identity, record in records:
        by_key.setdefault(record.key, []).append((identity, record))
    kept = {
        key: sorted(runs, key=lambda run: (run[1].finished, run[0]))
        for key, runs in sorted(by_key.items())
        if len(runs) > 1
    }
    return {
        "metrics": [
            {"key": key, "label": _label(key), "unit": METRICS[key.rpartition(".")[2]].unit}
            for key in TRENDS
            if any(_value(run, key) is not None for runs in kept.values() for _, run in runs)
        ],
        "cells": [
            {
                "key": key,
                "label": line(runs[-1][1].label, 200),
                "runs": [
                    {
                        "id": identity[:12],
                        "finished": line(run.finished, 40),
                        "status": run.outcome.status,
                        "stack": run.fingerprint[:12],
                        "values": {key: value for key in TRENDS if (value := _value(run, key)) is not None},
                    }
                    for identity, run in runs
                ],
            }
            for key, runs in kept.items()
        ],
    }


def _label(key: str) -> str:
    stage, _, metric = key.rpartition(".")
    return METRICS[metric].label + (f", {stage}" if stage else "")


def _value(record: Record, key: str) -> float | None:
    stage, _, metric = key.rpartition(".")
    if not stage:
        reading = record.metrics.get(metric)
    else:
        reading = next((span.get(metric) for span in record.spans if span.stage == stage), None)
    return None if reading is None else reading.value
