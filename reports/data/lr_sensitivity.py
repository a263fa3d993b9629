"""Gain from tuning: every method at the shared learning rate, compared with its tuned rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.digests import digest
from harness.record import Record
from reports.data.frame import has, summary

METRIC = "shared_rate_accuracy"
RATES = f"{METRIC}:rates"
LEAST_ROWS = 3
"""Rows below which a rank correlation says nothing."""


def untuned_identity(record: Record) -> str:
    """Digest of a cell without its seed, its labels and everything that tuning chose."""
    cell = {name: part for name, part in record.cell.items() if name not in ("seed", "role", "tuning")}
    kept = {
        name: {k: v for k, v in part.items() if k not in ("label", "learning_rate")} if isinstance(part, dict) else part
        for name, part in cell.items()
    }
    return digest(kept)


def at_shared_rate(records: Iterable[Record]) -> dict[str, list[tuple[float, float]]]:
    """Untuned identity to (learning rate, accuracy) of its seeds at the shared rate; what diverged has none."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record.cell_view.role != "shared-lr":
            continue
        value = record.value("accuracy")
        rate = record.cell_view.learning_rate
        if record.outcome.status == "ok" and rate and value is not None:
            found.setdefault(untuned_identity(record), []).append((rate, value))
    return found


def columns(record: Record, shared: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Values of the row of ``record`` at the shared rate, as columns of the aggregated frame; ``{}``: nothing."""
    runs = shared.get(untuned_identity(record)) if shared else None
    if not runs:
        return {}
    return {**summary(METRIC, [value for _, value in runs]), RATES: tuple(sorted({rate for rate, _ in runs}))}


def caption(rows: Sequence[Mapping[str, Any]]) -> str:
    """Distance between the order of the rows at the shared rate and the tuned order; "" if there is too little.

    Kendall's tau-b (Kendall 1945, doi:10.1093/biomet/33.3.239): 1 for the same order, 0 for no relation, ties apart.
    """
    from scipy.stats import kendalltau

    both = [row for row in rows if has(row, METRIC) and has(row, "accuracy")]
    rate = sorted({rate for row in both for rate in row[RATES]})
    if len(both) < LEAST_ROWS or len(rate) != 1:
        return ""
    tuned, shared = [row["accuracy"] for row in both], [row[METRIC] for row in both]
    tau = float(kendalltau(tuned, shared).statistic)
    best = max(both, key=lambda row: row[METRIC])
    agreement = "cannot be given, since all are equal" if math.isnan(tau) else f"is {tau:.2f}"
    return (
        f"At the one learning rate {rate[0]:g} for all, Kendall's tau-b of the order of these {len(both)} rows with "
        f"their tuned order {agreement}; {best['method']} leads there."
    )
