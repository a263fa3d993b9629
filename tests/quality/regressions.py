"""Recall and false alarms of the regression detector on simulated histories: ``python -m tests.quality.regressions``.

A history is a matrix of cells over nights with the noise of real runs: rates with binomial noise, step times with a
few per cent of scatter, memory almost without. What is planted is known, so a finding is right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness import stats
from reports.apps.regressions.detect import Report, detect
from reports.apps.regressions.series import History, Series, SeriesPoint

CELLS, NIGHTS, ITEMS = 40, 15, 1000
ROUNDS = 100
ENVIRONMENTS = {"old": {"packages": {"torch": "2.13.0"}}, "new": {"packages": {"torch": "2.14.0"}}}
Values = dict[str, np.ndarray]


def quiet(rng: np.random.Generator, night_sd: float = 0.004) -> Values:
    """Nights on which nothing changed: metric to values, shape (cells, nights)."""
    rates = rng.uniform(0.5, 0.9, (CELLS, 1))
    night = 1 + rng.normal(0, night_sd, NIGHTS)  # all cells of one night share its machine
    return {
        "accuracy": rng.binomial(ITEMS, np.repeat(rates, NIGHTS, 1)) / ITEMS,
        "step_ms": rng.uniform(5, 200, (CELLS, 1)) * night * (1 + rng.normal(0, 0.015, (CELLS, NIGHTS))),
        "cuda_allocated_peak_bytes": rng.uniform(1e9, 2e10, (CELLS, 1)) * (1 + rng.normal(0, 1e-4, (CELLS, NIGHTS))),
    }


def lose_items(values: np.ndarray, rows: slice, nights: slice, points: float) -> None:
    values[rows, nights] = np.clip(values[rows, nights] - points / 100, 0, 1)


def one_cell_slower(values: Values) -> None:
    values["step_ms"][0, -1] *= 1.15


def one_cell_more_memory(values: Values) -> None:
    values["cuda_allocated_peak_bytes"][0, -1] *= 1.03


def one_cell_worse(values: Values) -> None:
    lose_items(values["accuracy"], slice(0, 1), slice(-1, None), 8)


def all_cells_a_point_worse(values: Values) -> None:
    lose_items(values["accuracy"], slice(None), slice(-1, None), 1)


def all_cells_three_half_points_worse(values: Values) -> None:
    lose_items(values["accuracy"], slice(None), slice(-1, None), 1.5)


def all_cells_three_per_cent_slower(values: Values) -> None:
    values["step_ms"][:, -1] *= 1.03


def slow_drift(values: Values) -> None:
    values["step_ms"][0] *= 1 + 0.12 * np.clip(np.arange(NIGHTS) - 6, 0, 4) / 4


def past_spike(values: Values) -> None:
    values["step_ms"][0, 5] *= 1.5


@dataclass(frozen=True)
class Case:
    """The simulated change and the expected finding.

    Attributes:
        new_environment: how many of the newest nights ran in a new environment.
        night_sd: common effect of a night on times.
        nights: in the history, the newest ones of those drawn.
    """

    name: str
    plant: Callable[[Values], None] | None
    new_environment: int
    found: Callable[[Report], bool] | None
    night_sd: float = 0.004
    nights: int = NIGHTS


def in_cell(metric: str) -> Callable[[Report], bool]:
    return lambda report: any(f.label == "cell 0" and f.metric == metric for f in report.cells)


def in_matrix(metric: str) -> Callable[[Report], bool]:
    return lambda report: any(f.metric == metric for f in report.pooled)


CASES = (
    Case("nothing", None, 0, None),
    Case("nothing, new environment", None, 1, None),
    *(
        Case(f"nothing, nights differ by {100 * sd:.0f} % in time", None, 0, None, sd)
        for sd in (0.01, 0.02, 0.03, 0.05)
    ),
    *(
        Case(f"nothing, {nights} nights that differ by {100 * sd:.0f} % in time", None, 0, None, sd, nights)
        for nights in (2, 3)
        for sd in (0.01, 0.03, 0.05)
    ),
    Case("nothing, two nights, the second in a new environment, 5 % in time", None, 1, None, 0.05, 2),
    Case("spike ten nights ago", past_spike, 0, None),
    Case("one cell 15 % slower", one_cell_slower, 0, in_cell("step_ms")),
    Case("one cell 3 % more memory", one_cell_more_memory, 0, in_cell("cuda_allocated_peak_bytes")),
    Case("one cell 8 points worse", one_cell_worse, 0, in_cell("accuracy")),
    Case("one cell drifts 12 % slower", slow_drift, 0, in_cell("step_ms")),
    Case("all cells 1 point worse", all_cells_a_point_worse, 0, in_matrix("accuracy")),
    Case("all cells 1 point worse, new environment", all_cells_a_point_worse, 1, in_matrix("accuracy")),
    Case("all cells 1 point worse, two nights", all_cells_a_point_worse, 0, in_matrix("accuracy"), nights=2),
    Case(
        "all cells 1.5 points worse, two nights", all_cells_three_half_points_worse, 0, in_matrix("accuracy"), nights=2
    ),
    Case(
        "all cells 1 point worse, five nights after a new environment",
        all_cells_a_point_worse,
        6,
        in_matrix("accuracy"),
    ),
    Case("all cells 3 % slower", all_cells_three_per_cent_slower, 0, in_matrix("step_ms")),
    Case("all cells 3 % slower, new environment", all_cells_three_per_cent_slower, 1, in_matrix("step_ms")),
)


def as_history(values: Values, new_environment: int, nights: int = NIGHTS) -> History:
    """A history of the newest ``nights``, the last ``new_environment`` of them in a new environment."""
    series = []
    for metric, table in values.items():
        for cell, row in enumerate(table):
            points = tuple(
                SeriesPoint(
                    f"2026-01-{night + 1:02d}T00:00:00+00:00",
                    f"{metric} {cell} {night}",
                    float(value),
                    "new" if night >= NIGHTS - new_environment else "old",
                    ITEMS if metric == "accuracy" else None,
                )
                for night, value in enumerate(row)
                if night >= NIGHTS - nights
            )
            series.append(Series(f"key {cell}", f"cell {cell}", metric, "model", points))
    return History(tuple(series), {}, ENVIRONMENTS, {})


def wrong(case: Case, report: Report) -> tuple[bool, bool]:
    """True if a cell or the matrix alarmed without a simulated change."""
    planted_cell = {f for f in report.cells if f.label == "cell 0"} if case.plant not in (None, past_spike) else set()
    whole = case.name.startswith("all")
    cells = [f for f in report.cells if f not in planted_cell and not whole]
    pooled = [] if whole else report.pooled
    return bool(cells), bool(pooled)


def measure(case: Case, rounds: int = ROUNDS) -> dict[str, str]:
    """One row of the table."""
    hits = per_cell = per_matrix = suspected = 0
    for number in range(rounds):
        values = quiet(np.random.default_rng([number, 17]), case.night_sd)
        if case.plant is not None:
            case.plant(values)
        report = detect(as_history(values, case.new_environment, case.nights))
        hits += case.found is not None and case.found(report)
        cells, pooled = wrong(case, report)
        per_cell, per_matrix = per_cell + cells, per_matrix + pooled
        suspected += any("torch 2.13.0 → 2.14.0" in f.suspects for f in report.pooled)

    def rate(count: int) -> str:
        found = stats.wilson(count, rounds)
        return f"{100 * found.estimate:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"

    whole = case.name.startswith("all")
    return {
        "planted": case.name,
        "found": rate(hits) if case.found else "–",
        "with the right suspect": rate(suspected) if case.found and case.new_environment == 1 else "–",
        "nights with a false cell alarm": "–" if whole else rate(per_cell),
        "nights with a false matrix alarm": "–" if whole else rate(per_matrix),
    }


def main() -> None:
    """Print the table in Markdown."""
    rows = [measure(case) for case in CASES]
    print(f"{CELLS} cells x 3 metrics, {NIGHTS} nights, {ROUNDS} histories a row; Wilson 95 % intervals\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
