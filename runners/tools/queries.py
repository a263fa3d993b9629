"""Queries of the listing commands: plain rows from declarations, plans and records, and how they are printed."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness import hardware, provenance
from harness.comparability import differences
from harness.errors import UserError
from harness.matrix import Cell
from harness.methods.catalog import METHODS
from harness.models import skeleton, sources
from harness.quantizers.catalog import QUANTIZERS
from harness.record import Record
from harness.spec import LoadedSweep
from harness.store.store import Store, current
from runners import environments
from runners.planning import plan as planning
from runners.running import live, preflight
from runners.workspace import Workspace
from tasks.task import find_tasks, load_task

Rows = list[dict[str, Any]]


# --- rows ----------------------------------------------------------------------------------------
def sweeps(workspace: Workspace) -> Rows:
    """The sweeps there are."""
    from harness import spec

    rows = []
    for name, path in sorted(workspace.sweeps().items()):
        try:
            summary = spec.load(path).spec.summary
        except UserError as error:  # one file with a mistake does not hide the others
            summary = f"cannot be used: {error}"
        rows.append({"sweep": name, "summary": summary, "file": _shown(path)})
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
                "trainable": d.trainable,
                "paper": d.paper,
                "kinds": sorted(d.kinds),
                "bases": sorted(d.bases),
                "refuses": {**d.refuses_kind, **d.refuses},
                "merge": d.mergeable,
                "lr_factor": d.lr_factor,
                "defaults": dict(d.defaults),
                "defaults_source": d.defaults_source,
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


def doctor(workspace: Workspace) -> Rows:
    """Capabilities of this machine; one row per finding, with a fix if something is missing."""
    machine = hardware.probe()
    environment = provenance.environment()
    rows: Rows = [
        {"what": "python", "found": sys.version.split()[0], "note": ""},
        {"what": "cpu", "found": f"{machine.cpu_model}, {machine.cores} cores", "note": ""},
        {"what": "memory", "found": f"{machine.memory_bytes / hardware.GIB:.1f} GiB", "note": ""},
    ]
    for place in ("cache", "results"):
        folder = Path(workspace.cache if place == "cache" else Store(workspace.results).folder or workspace.cache)
        there = next(above for above in (folder, *folder.parents) if above.exists())
        free = shutil.disk_usage(there).free / hardware.GIB
        rows.append({"what": f"disk of the {place}", "found": f"{free:.1f} GiB free", "note": str(folder)})
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    note = "HF_HUB_OFFLINE is set: models and data come from the cache alone" if offline else ""
    rows.append({"what": "Hub", "found": "offline" if offline else "asked where the cache lacks a file", "note": note})
    from huggingface_hub import get_token

    found, note = ("there", "") if get_token() else ("none", "gated models and uploads need one: hf auth login")
    rows.append({"what": "Hub token", "found": found, "note": note})
    for gpu in machine.gpus:
        found = f"{gpu.name}, {gpu.memory_bytes / hardware.GIB:.1f} GiB, driver {gpu.driver}"
        rows.append({"what": "gpu", "found": found, "note": gpu.uuid})
    if not machine.gpus:
        rows.append({"what": "gpu", "found": "none", "note": machine.why_no_gpu_detail})
    for name, version in sorted(environment["packages"].items()):
        rows.append({"what": name, "found": version or "not installed", "note": ""})
    loose = [name for name in sorted(find_tasks([])) if load_task(name, []).definition.unpinned]
    note = "their rows may change under the same name; rows of a data root are pinned by a digest"
    note = f"{note}: {', '.join(loose)}"
    rows.append({"what": "tasks without a pinned revision", "found": str(len(loose)), "note": note})
    for row in quantizers():
        if row["here"] != "yes":
            rows.append({"what": f"quantizer {row['quantizer']}", "found": "not here", "note": row["here"]})
    return rows


# --- plan, status, record --------------------------------------------------------------------------
def sweep_keys(loaded: LoadedSweep, workspace: Workspace) -> list[str]:
    """Keys of all cells that a sweep currently plans, in order, in any state."""
    return [cell.key for cell in _cells(loaded, workspace)]


def _cells(loaded: LoadedSweep, workspace: Workspace) -> tuple[Cell, ...]:
    made = planning.make(
        loaded, workspace, store=Store(workspace.results), machine=hardware.probe(), fingerprint="", only=None
    )
    return tuple(made.cells)


def other_settings(loaded: LoadedSweep, workspace: Workspace, planned: Collection[str]) -> Rows:
    """Records under the sweep's name whose cells it does not plan now, as after an edit of its file.

    Args:
        planned: keys of the cells that it plans now.

    Returns:
        ``label``, ``key``, ``finished`` of each, the newest first; ``differ``: the settings that the planned cell of
        the same label has otherwise, as ``steps 12, here 13``; empty where no planned cell has the label.
    """
    from harness.store import index

    store = Store(workspace.results)
    rows = index.load(store).flat.rows
    names = ("sweep", "role", "key", "label", "finished")
    named = zip(*(rows.column(name).to_pylist() for name in names), strict=True)
    found = [row[2:] for row in named if row[:2] == (loaded.spec.name, "result") and row[2] not in planned]
    if not found:
        return []
    now = {cell.label: cell.as_dict() for cell in _cells(loaded, workspace)}
    then = {record.key: record.cell for record in store.records({key for key, *_ in found})[0]}
    told = {
        key: [d.words(", here ") for d in differences(then[key], now[label])]
        for key, label, _ in found
        if label in now and key in then
    }
    newest = sorted(found, key=lambda row: row[2], reverse=True)
    return [{"label": label, "key": key, "finished": at, "differ": told.get(key, [])} for key, label, at in newest]


def same_label(record: Record, workspace: Workspace) -> Rows:
    """Records of other cells with the label of this one, and what they have otherwise: ``steps 12, here 13``.

    Returns:
        ``key``, ``finished`` and ``differ`` of each, the newest first.
    """
    from harness.store import index

    store = Store(workspace.results)
    rows = index.load(store).flat.rows
    named = zip(*(rows.column(c).to_pylist() for c in ("key", "label")), strict=True)
    keys = {key for key, label in named if label == record.label and key != record.key}
    latest = current(store.records(keys)[0]) if keys else {}
    return [
        {
            "key": other.key,
            "finished": other.finished,
            "differ": [d.words(", here ") for d in differences(other.cell, record.cell)],
        }
        for other in sorted(latest.values(), key=lambda r: r.finished, reverse=True)
    ]


def recorded_keys(sweep: str, results: str) -> list[str]:
    """Keys of the cells that a store holds under a sweep's name; needs neither the tasks nor their data.

    Raises:
        UserError: the store holds none.
    """
    from harness.store import index

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
    """Counts by status, every failure, and what runs now. ``planned``: no record, and no run refused it."""
    keys = sweep_keys(loaded, workspace)
    records, damaged = Store(workspace.results).records(keys)
    latest = current(records)
    refused = preflight.kept(workspace.results, loaded.spec.name)
    counts = Counter(
        latest[key].outcome.status if key in latest else "not_run" if key in refused else "planned" for key in keys
    )
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
            for key, one in refused.items()
            if key not in latest and key in keys
        ],
        "damaged": [{"path": d.path, "why": d.reason} for d in damaged],
        "running": [
            one
            for one in live.drivers(workspace)
            if one["sweep"] == loaded.spec.name or any(cell["key"] in keys for cell in one["cells"])
        ],
    }


def find_record(text: str, workspace: Workspace) -> Record:
    """The latest record whose key or label begins with ``text``.

    Raises:
        UserError: none, or several cells match.
    """
    from harness.store import index

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


def _shown(path: object) -> str:
    return str(path)
