"""Errors of the plan's predictions over the committed records: ``python -m tests.quality.predictions [--json]``.

Every cell of a committed sweep whose record is current is predicted from sizes alone, as on a machine without any
record, and compared with what its record measured. The constants of :mod:`runners.planning.cost_model` were set on the
two stores of :data:`SET_ON` alone. Other jobs shared the machine with most stores (``results/index.yaml``), which made
their cells slower than predicted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError
from harness.hardware import Machine
from harness.store.store import Store
from runners.planning import cost_model, plan
from runners.running.run import load_sweep
from runners.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
SET_ON = ("cpu-2core", "cpu-2core-evidence")
MACHINE = Machine(2, 2**36, "any")


def ratios(store: str, name: str, data_root: Path) -> Iterator[tuple[float | None, float | None]]:
    """Predicted over measured time, and memory, of every current record of a sweep; None where one is missing."""
    folder = REPOSITORY / "results" / "reference" / store
    base = Workspace.discover(start=REPOSITORY)
    workspace = Workspace(base.roots, str(folder), data_root, base.cache)
    records, sweep = Store(folder), load_sweep(name, workspace)
    made = plan.make(sweep, workspace, store=None, machine=MACHINE, fingerprint="none")
    entries = records.entries()
    for cell in made.cells:
        found = next((e for e in reversed(entries.get(cell.key, ())) if e.status == "ok"), None)
        if found is None:
            continue
        record, said = records.load(found), made.predict.analytic(cell)
        seconds = cost_model.measured_s(record)
        peak = cost_model.measured_peak_bytes(record, cost_model.device_of(cell))
        yield (
            said.seconds / seconds if said.seconds and seconds else None,
            said.peak_bytes / peak if said.peak_bytes and peak else None,
        )


def rows(data_root: Path) -> Iterator[dict[str, Any]]:
    """One row for each sweep with current records, and two for all of them; the others are named on stderr."""
    stores = yaml.safe_load((REPOSITORY / "results" / "index.yaml").read_text())["stores"]
    pooled: dict[bool, list[tuple[float | None, float | None]]] = {True: [], False: []}
    skipped = []
    for store, content in stores.items():
        for name in (*content["sweeps"], *content.get("without_board", ())):
            try:
                found = list(ratios(store, name, data_root))
            except UserError:  # records that no sweep's file made
                found = []
            if not found:
                skipped.append(f"{store}/{name}")
                continue
            pooled[store in SET_ON] += found
            yield {"store": store, "sweep": name, **summary(found)}
    for used, found in pooled.items():
        yield {"store": "all", "sweep": "constants set here" if used else "held out", **summary(found)}
    print(f"No current record: {', '.join(skipped)}", file=sys.stderr)


def summary(found: list[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Median ratio, median size of the relative error, share within a factor of 2, and numbers, of time and memory."""
    out: dict[str, Any] = {}
    for kind, values in zip(("time", "memory"), zip(*found, strict=True), strict=True):
        known = [v for v in values if v is not None]
        out[kind] = {
            "n": len(known),
            "ratio": statistics.median(known) if known else None,
            "error": statistics.median(abs(v - 1) for v in known) if known else None,
            "within_2": sum(0.5 <= v <= 2 for v in known) / len(known) if known else None,
        }
    return out


def main() -> None:
    """Print a table in Markdown, or JSON."""
    parser = argparse.ArgumentParser(description="Errors of the plan's predictions over the committed records.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data-root", type=Path, default=REPOSITORY.parent / "shared" / "data")
    chosen = parser.parse_args()
    found = list(rows(chosen.data_root))
    if chosen.json:
        print(json.dumps(found))
        return
    print("| store | sweep | kind | n | predicted / measured | median error | within 2 x | constants set here |")
    print("|---|---|---|--:|--:|--:|--:|---|")
    for row in found:
        for kind in ("time", "memory"):
            if row[kind]["n"]:
                c = row[kind]
                print(
                    f"| {row['store']} | {row['sweep']} | {kind} | {c['n']} | {c['ratio']:.2f} | {c['error']:.0%} | "
                    f"{c['within_2']:.0%} | {'yes' if row['store'] in SET_ON else 'no'} |"
                )


if __name__ == "__main__":
    main()
