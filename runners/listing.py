"""What the listing verbs say: plain rows from declarations, plans and records, and how they are printed."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import hardware, provenance
from harness.errors import UserError
from harness.methods.catalog import METHODS
from harness.models import skeleton, sources
from harness.quantizers.catalog import QUANTIZERS
from harness.record import Reading, Record
from harness.spec import LoadedSweep
from harness.store import Store, current
from runners import environments, guards
from runners import plan as planning
from runners.plan import Plan
from runners.predict import Prediction, total
from runners.progress import clock
from runners.workspace import Workspace
from tasks.task import find_tasks, load_task

Rows = list[dict[str, Any]]


# --- rows ----------------------------------------------------------------------------------------
def sweeps(workspace: Workspace) -> Rows:
    """The sweeps there are."""
    from harness import spec

    rows = []
    for name, path in sorted(workspace.sweeps().items()):
        loaded = spec.load(path).spec
        rows.append({"sweep": name, "summary": loaded.summary, "file": _shown(path)})
    return rows


def methods() -> Rows:
    """One row per fine-tuning method."""
    rows = []
    for name in METHODS:
        d = METHODS.get(name).declaration
        rows.append(
            {
                "method": name,
                "family": d.family,
                "summary": d.summary,
                "paper": d.paper,
                "bases": sorted(d.bases),
                "merge": d.mergeable,
                "lr_factor": d.lr_factor,
                "defaults": dict(d.defaults),
                "unverified": d.unverified,
            }
        )
    return rows


def quantizers() -> Rows:
    """One row per quantizer, with the reason where it does not run on this machine."""
    devices = hardware.probe().device_types
    cache = Workspace.discover().cache
    rows = []
    for name in QUANTIZERS:
        quantizer = QUANTIZERS.get(name)
        d = quantizer.declaration
        reasons = [
            environments.why_not(quantizer, device, moment, cache) for device in devices for moment in sorted(d.moments)
        ]
        here = None if None in reasons else reasons[0]
        rows.append(
            {
                "quantizer": name,
                "bits": d.bits,
                "summary": d.summary,
                "base": d.base,
                "devices": sorted(d.devices),
                "moments": sorted(d.moments),
                "here": here or "yes",
                "defaults": dict(d.defaults),
            }
        )
    return rows


def tasks(workspace: Workspace) -> Rows:
    """One row per task, built in or of the workspace."""
    rows = []
    for name, path in sorted(find_tasks(list(workspace.roots)).items()):
        d = load_task(name, list(workspace.roots)).definition
        source = d.source
        origin = source.generator or (source.hub.id if source.hub else None) or source.data_root or "files"
        if source.data_root and workspace.data_root and (workspace.data_root / source.data_root).is_dir():
            origin = f"data root: {source.data_root}"
        rows.append(
            {
                "task": name,
                "kind": d.kind,
                "summary": d.summary,
                "source": origin,
                "licence": d.licence,
                "version": d.version,
                "file": _shown(path),
            }
        )
    return rows


def models() -> Rows:
    """The built-in models, the skeletons, and how to name any other."""
    built_in = [
        {"model": f"builtin:{name}", "summary": sources.recipe(name).data["summary"]} for name in sources.recipes()
    ]
    random = [
        {"model": f"skeleton:{name}", "summary": f"architecture of {preset['source']}, random weights"}
        for name, preset in skeleton.presets().items()
    ]
    return [
        *built_in,
        *random,
        {"model": "OWNER/NAME", "summary": "a model of the Hub; pin it with 'revision'"},
        {"model": "./FOLDER", "summary": "a folder written by save_pretrained (safetensors)"},
        {"model": "package:NAME/FOLDER", "summary": "a model inside an installed Python package"},
    ]


def doctor() -> Rows:
    """What this machine is and can do; one row per finding, with what to do where something is missing."""
    machine = hardware.probe()
    environment = provenance.environment()
    rows: Rows = [
        {"what": "python", "found": sys.version.split()[0], "note": ""},
        {"what": "cpu", "found": f"{machine.cpu_model}, {machine.cores} cores", "note": ""},
        {"what": "memory", "found": f"{machine.memory_bytes / hardware.GIB:.1f} GiB", "note": ""},
    ]
    for gpu in machine.gpus:
        found = f"{gpu.name}, {gpu.memory_bytes / hardware.GIB:.1f} GiB, driver {gpu.driver}"
        rows.append({"what": "gpu", "found": found, "note": gpu.uuid})
    if not machine.gpus:
        rows.append({"what": "gpu", "found": "none", "note": machine.why_no_gpu_detail})
    for name, version in sorted(environment["packages"].items()):
        rows.append({"what": name, "found": version or "not installed", "note": ""})
    loose = [name for name in sorted(find_tasks([])) if load_task(name, []).definition.unpinned]
    note = "their rows may change under the same name; rows of a data root are held by a digest"
    note = f"{note}: {', '.join(loose)}"
    rows.append({"what": "tasks without a pinned revision", "found": str(len(loose)), "note": note})
    for row in quantizers():
        if row["here"] != "yes":
            rows.append({"what": f"quantizer {row['quantizer']}", "found": "not here", "note": row["here"]})
    return rows


# --- plan, status, record --------------------------------------------------------------------------
def sweep_keys(loaded: LoadedSweep, workspace: Workspace) -> list[str]:
    """Keys of all cells that a sweep wants now, in order, whatever their state."""
    made = planning.make(
        loaded, workspace, store=Store(workspace.results), machine=hardware.probe(), fingerprint="", only=None
    )
    return [cell.key for cell in made.cells]


def recorded_keys(sweep: str, results: str) -> list[str]:
    """Keys of the cells that a store holds under a sweep's name; needs neither the tasks nor their data.

    Raises:
        UserError: the store holds none.
    """
    from harness import index

    rows = index.load(Store(results)).flat.rows
    keys = sorted(
        {
            key
            for key, name in zip(*(rows.column(c).to_pylist() for c in ("key", "sweep")), strict=True)
            if name == sweep
        }
    )
    if not keys:
        raise UserError(f"no record of a sweep called {sweep!r}", where=results)
    return keys


def status(loaded: LoadedSweep, workspace: Workspace) -> dict[str, Any]:
    """Counts by status (``not_run`` for cells without a record) and every failure."""
    keys = sweep_keys(loaded, workspace)
    records, damaged = Store(workspace.results).records(keys)
    latest = current(records)
    counts = Counter(latest[key].outcome.status if key in latest else "not_run" for key in keys)
    failures = [
        {"cell": r.label, "status": r.outcome.status, "stage": r.outcome.stage, "why": r.outcome.reason}
        for key in keys
        if (r := latest.get(key)) is not None and r.outcome.status != "ok"
    ]
    return {
        "sweep": loaded.spec.name,
        "cells": len(keys),
        "counts": dict(sorted(counts.items())),
        "failures": failures,
        "not_run": [
            {"cell": one["label"], "kind": one["kind"], "why": one["reason"]}
            for key, one in guards.kept(workspace.results, loaded.spec.name).items()
            if key not in latest and key in keys
        ],
        "damaged": [{"path": d.path, "why": d.reason} for d in damaged],
    }


def find_record(text: str, workspace: Workspace) -> Record:
    """The latest record whose key or label begins with ``text``.

    Raises:
        UserError: none, or several cells match.
    """
    from harness import index

    store = Store(workspace.results)
    rows = index.load(store).flat.rows
    named = zip(*(rows.column(c).to_pylist() for c in ("key", "label")), strict=True)
    latest = current(store.records({key for key, label in named if text in (key[: len(text)], label[: len(text)])})[0])
    matches = [r for r in latest.values() if r.key.startswith(text) or r.label.startswith(text)]
    found = [r for r in matches if text in (r.key, r.label)] or matches
    if len({r.label for r in found}) == 1:  # the same cell under older definitions of its task or model
        found = sorted(found, key=lambda r: r.finished)[-1:]
    if not found:
        raise UserError(f"no record matches {text!r}", where=workspace.results, fix="See: peft-matrix status SWEEP.")
    if len(found) > 1:
        some = ", ".join(f"{r.label} ({r.key})" for r in found[:5])
        raise UserError(f"{len(found)} records match {text!r}: {some}", fix="Give more of the name, or the key.")
    return found[0]


# --- printing --------------------------------------------------------------------------------------
def print_rows(rows: Rows, console: Console) -> None:
    """Rows as a table: the first column stands out; lists are joined, dictionaries shortened."""
    columns = [c for c in (rows[0] if rows else {}) if c not in ("defaults", "file", "unverified")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), style="cyan" if column == columns[0] else "", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell_text(row.get(c, ""))) for c in columns))
    console.print(table)


def print_plan(plan: Plan, console: Console) -> None:
    """A plan in words: the counts, then everything that will not run and why, grouped by reason."""
    counts = {
        "run": len(plan.run),
        "done": len(plan.done),
        "stale": len(plan.stale),
        "elsewhere": len(plan.elsewhere),
        "unsupported": len(plan.unsupported),
    }
    console.print(
        f"{plan.sweep.spec.name}: {len(plan.cells)} cells: "
        + ", ".join(f"{n} {name}" for name, n in counts.items() if n),
        highlight=False,
    )
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    for cell in plan.run[:200]:
        console.print(f"  run          {cell.label}  {cell.key}{_expected(plan.predict(cell))}", **plain)
    if len(plan.run) > 200:
        console.print(f"  ... and {len(plan.run) - 200} more to run (all of them: --json)")
    for name, reasons in (("elsewhere", plan.elsewhere), ("unsupported", plan.unsupported)):
        by_reason: dict[str, list[str]] = {}
        for cell, why in reasons:
            by_reason.setdefault(why, []).append(cell.label)
        for why, labels in by_reason.items():
            shown = labels[0] if len(labels) == 1 else f"{len(labels)} cells, for example {labels[0]}"
            console.print(f"  {name:<12} {shown}: {why}", highlight=False, soft_wrap=True, markup=False)
    expected = total(plan.predict(cell) for cell in plan.run)
    if plan.run:
        console.print(f"  predicted: {predicted_words(expected)}", highlight=False)
    for damage in plan.predict.damaged:
        console.print(f"  damaged      {damage}", **plain, markup=False)
    by_why = Counter(one.reason for one in plan.not_run)
    for why, n in by_why.items():
        console.print(f"  not run      {n} cells: {why}", highlight=False)
    if plan.waiting:
        console.print(
            f"  waiting      {plan.waiting}: final cells until their tuning trials have run, and cells that combine "
            "others until those have",
            highlight=False,
            soft_wrap=True,
        )
    for task, hubs in plan.unpinned.items():
        for hub, why in hubs.items():
            line = f"  unpinned     {task}: the rows of {hub} may change under this name: {why}"
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    for model, why in plan.unpinned_models.items():
        line = f"  unpinned     the weights of {model} may change under this name: {why}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if plan.stale:
        console.print("  Stale cells were run in another environment; run them again with --rerun stale.")


def predicted_words(expected: dict[str, Any]) -> str:
    """The total of a plan's predictions: seconds one after the other, the highest peak, and what is not known."""
    peak = f", at most {expected['peak_bytes'] / 2**30:.2f} GiB" if expected["peak_bytes"] is not None else ""
    unknown = f"; nothing is known of {expected['cells_without']} cells" if expected["cells_without"] else ""
    return f"{clock(expected['seconds'])} one after the other{peak}{unknown}"


def _expected(prediction: Prediction) -> str:
    if prediction.seconds is None or prediction.peak_bytes is None:
        return ""
    return f"  ~{prediction.seconds:.0f} s, {prediction.peak_bytes / 2**30:.2f} GiB"


def print_status(stands: dict[str, Any], console: Console) -> None:
    """Counts, then failures by reason."""
    counts = ", ".join(f"{n} {name}" for name, n in stands["counts"].items())
    console.print(f"{stands['sweep']}: {stands['cells']} cells: {counts}", highlight=False)
    for failure in stands["failures"]:
        line = f"  {failure['status']:<12} {failure['cell']}  [{failure['stage']}] {failure['why']}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for (kind, why), n in Counter((one["kind"], one["why"]) for one in stands["not_run"]).items():
        console.print(f"  not_run      {n} cells  [{kind}] {why}", highlight=False, soft_wrap=True, markup=False)
    for damage in stands["damaged"]:
        console.print(f"  damaged      {damage['path']}: {damage['why']}", soft_wrap=True, markup=False)


def print_record(record: Record, console: Console) -> None:
    """One record for people."""
    outcome = record.outcome
    console.print(f"{record.label}  {record.key}", style="bold", highlight=False)
    why = f": {outcome.reason}" if outcome.reason else ""
    console.print(f"{outcome.status} at stage {outcome.stage}{why}", highlight=False, markup=False)
    stages = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "seconds", "peak RSS, MB"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for span in record.spans:
        peak = span.get("peak_rss_bytes")
        shown = f"{peak.value / 1e6:.0f}" if peak is not None and peak.value is not None else "—"
        stages.add_row(span.stage, "—" if span.seconds is None else f"{span.seconds:.2f}", shown)
    console.print(stages)
    for name, reading in sorted(record.metrics.items()):
        console.print(f"  {name:<28} {_reading_text(reading)}", highlight=False, markup=False)
    if outcome.status not in ("ok", "unsupported") and outcome.log_tail:
        console.print("End of the log:", style="bold")
        console.print(outcome.log_tail, highlight=False, markup=False)


def _reading_text(reading: Reading) -> str:
    if reading.value is None:
        note = reading.details.get("note") or reading.details.get("why") or ""
        return f"— {reading.why_missing}{f' ({note})' if note else ''}"
    count = f"  n={reading.n}" if reading.n is not None else ""
    spread = f"  sd={reading.spread:.3g}" if reading.spread is not None else ""
    return f"{reading.value:.6g} {reading.unit}{count}{spread}  [{reading.source}]"


def _cell_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _shown(path: Any) -> str:
    return str(path)
