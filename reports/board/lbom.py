"""The leaderboard's bill of materials: ``lbom.json`` of each board, made from the board and its records alone.

LBOps (arXiv:2407.04065) proposes such a bill; what it must hold was not to be had in its wording. The list here is
inferred from that paper's domain model, and the file says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from harness.digests import canonical_json, digest
from harness.metrics import METRICS
from harness.record import SCHEMA_VERSION, Record
from reports.board.board import BoardTable
from reports.data.frame import machine

LAYOUT = 1
INFERRED = (
    "Contents inferred from the domain model of arXiv:2407.04065 (LBOps), which proposes a leaderboard bill of "
    "materials; its own list of contents was not available."
)
NOT_RECORDED = "not recorded"


def render(table: BoardTable, files: Mapping[str, bytes]) -> str:
    """The bill of a board.

    Args:
        files: what was rendered. Text formats are listed with their SHA-256; pictures by name, since their bytes
            depend on the libraries of the machine that draws them.
    """
    content = {
        "layout": LAYOUT,
        "inferred": INFERRED,
        "board": _board(table),
        "metrics": _metrics(table),
        "protocol": _protocol(table),
        "tasks": _distinct(_task(record) for record in _records(table)),
        "models": _distinct(_model(record) for record in _records(table)),
        "methods": _distinct(_method(record) for record in _records(table)),
        "harness": _distinct(_harness(record) for record in _records(table)),
        "hardware": _distinct(_hardware(record) for record in _records(table)),
        "records": {identity: _record(record) for identity, record in sorted(table.records.items())},
        "cells": {"planned": None if table.planned is None else list(table.planned), "not_run": table.not_run},
        "submission": _submission(table),
        "changelog": _changelog(table),
        "known_smells": _known_smells(table),
        "files": {name: _file(name, data) for name, data in sorted(files.items())},
    }
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _records(table: BoardTable) -> list[Record]:
    return [record for _, record in sorted(table.records.items())]


def _distinct(values: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """Each distinct value once, in the order of their canonical text."""
    found = {canonical_json(value): value for value in values}
    return [found[text] for text in sorted(found)]


def _board(table: BoardTable) -> dict[str, object]:
    spec = table.board.model_dump(mode="json")
    return {"name": table.board.name, "version": digest(spec)[:16], "specification": spec, "digest": table.about.digest}


def _metrics(table: BoardTable) -> list[dict[str, object]]:
    """Definition, unit, direction, version and source of every metric that a column or an axis shows."""
    names = {head.definition.name for head in table.heads if head.definition is not None}
    names |= {name for axis in table.board.pareto for name in axis.metric}
    return [asdict(METRICS[name]) for name in sorted(names)]


def _protocol(table: BoardTable) -> list[dict[str, object]]:
    """Measuring conditions of each section: protocol version, budget, decoding, split and number of items."""
    found = []
    for section in table.sections:
        record = table.records[section.rows[0].records[0]]
        cell, task = record.cell, record.cell_view.part("task")
        found.append(
            {
                "section": section.title,
                "group": section.group,
                "version": cell.get("protocol"),
                "training": cell.get("training"),
                "evaluation": cell.get("evaluation"),
                "probes": cell.get("probes"),
                "threads": cell.get("threads"),
                "items": {name: task.get(f"{name}_items") for name in ("train", "validation", "test")},
                "prompt": task.get("prompt", f"fixed by the task's version {task.get('version')}"),
            }
        )
    return found


def _task(record: Record) -> dict[str, Any]:
    task = record.cell_view.part("task")
    kept = {name: task.get(name) for name in ("name", "version", "digest", "kind", "retain")}
    return {**kept, "licence": task.get("licence", NOT_RECORDED)}


def _model(record: Record) -> dict[str, object]:
    model = record.cell_view.part("model")
    weights = record.environment_view.facts.get("weights_sha256")
    return {
        **{name: model.get(name) for name in ("id", "revision", "dtype")},
        "weights_sha256": weights or NOT_RECORDED,
        "licence": model.get("licence", NOT_RECORDED),
    }


def _method(record: Record) -> dict[str, object]:
    method, quantization = record.cell_view.part("method"), record.cell_view.part("quantization")
    return {
        "method": {name: method.get(name) for name in ("name", "params", "learning_rate", "steps")},
        "quantization": {name: quantization.get(name) for name in ("name", "params", "moment")},
    }


def _harness(record: Record) -> dict[str, object]:
    """Commit and lock: the versions of every package that ran."""
    environment = record.environment_view
    return {
        "commit": environment.commit or NOT_RECORDED,
        "local_changes": environment.part("harness").get("dirty"),
        "python": record.environment.get("python"),
        "packages": environment.packages,
        "fingerprint": record.fingerprint,
    }


def _hardware(record: Record) -> dict[str, object]:
    gpus = record.environment_view.gpus
    return {
        "machine": machine(record),
        "platform": record.environment.get("platform", NOT_RECORDED),
        "gpus": [
            {name: gpu.get(name) for name in ("name", "uuid", "driver", "power_limit_w", "clocks")} for gpu in gpus
        ],
        "gpus_missing": record.environment.get("gpus_missing"),
    }


def _record(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "label": record.label,
        "status": record.outcome.status,
        "samples": record.samples.digest if record.samples is not None else None,
        "schema_version": record.schema_version,
        "finished": record.finished,
    }


def _submission(table: BoardTable) -> dict[str, object]:
    """By which way the numbers came, and who ran them as far as it is known."""
    tools = {record.environment_view.imported.get("from") for record in _records(table)}
    channels = sorted("run here" if tool is None else f"imported from {tool}" for tool in tools)
    return {"channels": channels, "who": NOT_RECORDED, "schema_version": SCHEMA_VERSION}


def _changelog(table: BoardTable) -> list[dict[str, str]]:
    """Corrections: which record supersedes which earlier one."""
    return [
        {"record": identity, "supersedes": record.supersedes}
        for identity, record in sorted(table.records.items())
        if record.supersedes
    ]


def _known_smells(table: BoardTable) -> list[str]:
    """Limits that a reader must know before using the board; the checks that can fail are ``peft-matrix check``."""
    rows = [row for section in table.sections for row in section.rows if row.status == "ok"]
    counts = {
        "rows rest on one seed": sum(len(row.seeds) == 1 for row in rows),
        "rows are unranked": sum(row.rank is None for row in rows),
        "rows carry a mark (imported, throttled, shared, outdated)": sum(bool(row.marks) for row in rows),
        "rows lack some of their seeds": sum(bool(row.failed) for row in rows),
        "planned cells have not been run": table.not_run,
        "licences of tasks and models are not in the records": len(_distinct(map(_model, _records(table)))),
    }
    return [f"{count} {words}" for words, count in counts.items() if count]


def _file(name: str, data: bytes) -> dict[str, object]:
    text = name.startswith("board.")
    return {"sha256": hashlib.sha256(data).hexdigest()} if text else {"sha256": None, "why": "depends on the renderer"}
