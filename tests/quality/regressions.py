"""Recall and false alarms of the regression detector on simulated histories: ``python -m tests.quality.regressions``.

A history is a matrix of cells over nights with the noise of real runs: rates with binomial noise, step times with a
few per cent of scatter, memory almost without. What is planted is known, so a finding is right or wrong. A second
table: how often the paired test over the cells alone, without the spread of the nights, would take a night's common
effect for a change. A third, ``published``: the 63 result files of peft's own suite go through the importer; what they
print is taken for the truth of 63 cells, and nights are drawn around it as binomial counts of the suite's test items.
docs/findings/regressions.md shows the three tables.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import stats
from reports.apps.importers.peft_suite import read
from reports.apps.regressions import matrix
from reports.apps.regressions.detect import Report, detect
from reports.apps.regressions.series import History, Series, SeriesPoint

CELLS, NIGHTS, ITEMS = 40, 15, 1000
ROUNDS = 100
SCATTER, NIGHT_SD, MEMORY_SCATTER = 0.015, 0.004, 1e-4
NIGHT_SDS = (0.01, 0.02, 0.03, 0.05)
ENVIRONMENTS = {"old": {"packages": {"torch": "2.13.0"}}, "new": {"packages": {"torch": "2.14.0"}}}
Values = dict[str, np.ndarray]


def quiet(rng: np.random.Generator, night_sd: float = NIGHT_SD) -> Values:
    """Nights on which nothing changed: metric to values, shape (cells, nights)."""
    rates = rng.uniform(0.5, 0.9, (CELLS, 1))
    night = 1 + rng.normal(0, night_sd, NIGHTS)  # all cells of one night share its machine
    return {
        "accuracy": rng.binomial(ITEMS, np.repeat(rates, NIGHTS, 1)) / ITEMS,
        "step_ms": rng.uniform(5, 200, (CELLS, 1)) * night * (1 + rng.normal(0, SCATTER, (CELLS, NIGHTS))),
        "cuda_allocated_peak_bytes": rng.uniform(1e9, 2e10, (CELLS, 1))
        * (1 + rng.normal(0, MEMORY_SCATTER, (CELLS, NIGHTS))),
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
    night_sd: float = NIGHT_SD
    nights: int = NIGHTS


def in_cell(metric: str) -> Callable[[Report], bool]:
    return lambda report: any(f.label == "cell 0" and f.metric == metric for f in report.cells)


def in_matrix(metric: str) -> Callable[[Report], bool]:
    return lambda report: any(f.metric == metric for f in report.pooled)


CASES = (
    Case("nothing", None, 0, None),
    Case("nothing, new environment", None, 1, None),
    *(Case(f"nothing, nights differ by {100 * sd:.0f} % in time", None, 0, None, sd) for sd in NIGHT_SDS),
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
        return shown(count, rounds)

    whole = case.name.startswith("all")
    return {
        "planted": case.name,
        "found": rate(hits) if case.found else "–",
        "with the right suspect": rate(suspected) if case.found and case.new_environment == 1 else "–",
        "nights with a false cell alarm": "–" if whole else rate(per_cell),
        "nights with a false matrix alarm": "–" if whole else rate(per_matrix),
    }


def cells_alone(night_sd: float, rounds: int = ROUNDS) -> str:
    """How often the paired test over the cells calls a common effect of one night on times a change."""
    alarms = 0
    for number in range(rounds):
        history = as_history(quiet(np.random.default_rng([number, 17]), night_sd), 0)
        rows = matrix._by_question([one for one in history.series if one.metric == "step_ms"])["step_ms", "night", ""]
        t = matrix._paired(rows)
        alarms += max(t.p, matrix._guard(rows, t)) < matrix.ALPHA and abs(t.effect) >= matrix.floor_of("step_ms") / 2
    return shown(alarms, rounds)


def alone_row(sd: float, rounds: int = ROUNDS) -> dict[str, str]:
    """One row of the second table."""
    return {"nights differ in time by": f"{100 * sd:.0f} %", "paired test alone alarms": cells_alone(sd, rounds)}


# --- the published runs of peft's suite ----------------------------------------------------------
REPOSITORY = Path(__file__).parents[2]
RUNS = Path(os.environ.get("PEFT_MATRIX_DATA", REPOSITORY / ".." / "shared" / "data")) / "peft_method_comparison"
SUITE = {"old": {"packages": {"transformers": "5.13.1"}}, "new": {"packages": {"transformers": "5.15.0"}}}
SUITE_ITEMS, SUITE_NIGHTS, SUITE_ROUNDS = 1319, 6, 200
PLANTED = ((0.0, False), (0.0, True), (0.005, True), (0.01, False), (0.01, True))


@functools.cache
def truths() -> list[tuple[str, float]]:
    """Label and accuracy of every published run that has one."""
    made = [one.record for path in sorted(RUNS.rglob("*.json")) for one in read(path)]
    found = [(record.label, record.metrics["accuracy"].value) for record in made]
    return [(label, value) for label, value in found if value is not None]


def drawn_nights(cells: Sequence[tuple[str, float]], lost: float, new_environment: bool, seed: int) -> History:
    """Nights around the published accuracies; on the newest one every cell is worse by ``lost``."""
    rng = np.random.default_rng([seed, 29])
    series = []
    for number, (label, truth) in enumerate(cells):
        rates = np.full(SUITE_NIGHTS, truth)
        rates[-1] = max(0.0, truth - lost)
        points = tuple(
            SeriesPoint(
                f"2026-08-{night + 1:02d}T00:00:00+00:00",
                f"{number} {night}",
                count / SUITE_ITEMS,
                "new" if new_environment and night == SUITE_NIGHTS - 1 else "old",
                SUITE_ITEMS,
            )
            for night, count in enumerate(rng.binomial(SUITE_ITEMS, rates))
        )
        series.append(Series(str(number), label, "accuracy", "model", points))
    return History(tuple(series), {}, SUITE, {})


def published(lost: float, new: bool, rounds: int = SUITE_ROUNDS) -> dict[str, str]:
    """One row of the third table."""
    cells = truths()
    whole = suspects = single = 0
    for seed in range(rounds):
        report = detect(drawn_nights(cells, lost, new, seed), drift=False)
        whole += bool(report.pooled)
        suspects += any("transformers 5.13.1 → 5.15.0" in f.suspects for f in report.pooled)
        single += bool(report.cells)
    what = f"all cells {100 * lost:g} points worse" if lost else "nothing"
    return {
        "planted": f"{what}, {'new' if new else 'same'} environment",
        "matrix-wide alarm": shown(whole, rounds),
        "with the right suspect": shown(suspects, rounds) if new and lost else "–",
        "nights with a cell alarm": shown(single, rounds),
    }


def shown(count: int, rounds: int) -> str:
    """A share with its Wilson interval, in %."""
    found = stats.wilson(count, rounds)
    return f"{100 * found.estimate:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """A table in Markdown."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


def main() -> None:
    """Print the tables in Markdown."""
    print(f"{CELLS} cells x 3 metrics, {NIGHTS} nights, {ROUNDS} histories a row; Wilson 95 % intervals\n")
    print_table([measure(case) for case in CASES])
    print()
    print_table([alone_row(sd) for sd in NIGHT_SDS])
    if RUNS.is_dir():
        print(f"\n{len(truths())} cells, {SUITE_NIGHTS} nights, {SUITE_ROUNDS} histories a row\n")
        print_table([published(lost, new) for lost, new in PLANTED])


if __name__ == "__main__":
    main()
