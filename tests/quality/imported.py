"""The detector on the accuracies of peft's own suite: ``python -m tests.quality.imported``.

The 63 published result files go through the importer. What they print is taken for the truth of 63 cells; nights are
drawn around it as binomial counts of the suite's 1,319 test items, and one point is taken away from every cell on the
newest night, in the same environment or in a new one. No history of that suite with a known truth exists.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness import stats
from reports.apps.importers.peft_suite import read
from reports.apps.regressions.detect import detect
from reports.apps.regressions.series import History, Series, SeriesPoint

ROOT = Path(__file__).parents[2]
RUNS = Path(os.environ.get("PEFT_MATRIX_DATA", ROOT / ".." / "shared" / "data")) / "peft_method_comparison"
ENVIRONMENTS = {"old": {"packages": {"transformers": "5.13.1"}}, "new": {"packages": {"transformers": "5.15.0"}}}
ITEMS, NIGHTS, ROUNDS = 1319, 6, 200


def truths() -> list[tuple[str, float]]:
    """Label and accuracy of every published run that has one."""
    made = [one.record for path in sorted(RUNS.rglob("*.json")) for one in read(path)]
    found = [(record.label, record.metrics["accuracy"].value) for record in made]
    return [(label, value) for label, value in found if value is not None]


def nights(cells: Sequence[tuple[str, float]], lost: float, new_environment: bool, seed: int) -> History:
    """Drawn nights; on the newest one every cell is worse by ``lost``."""
    rng = np.random.default_rng([seed, 29])
    series = []
    for number, (label, truth) in enumerate(cells):
        rates = np.full(NIGHTS, truth)
        rates[-1] = max(0.0, truth - lost)
        points = tuple(
            SeriesPoint(
                f"2026-08-{night + 1:02d}T00:00:00+00:00",
                f"{number} {night}",
                count / ITEMS,
                "new" if new_environment and night == NIGHTS - 1 else "old",
                ITEMS,
            )
            for night, count in enumerate(rng.binomial(ITEMS, rates))
        )
        series.append(Series(str(number), label, "accuracy", "model", points))
    return History(tuple(series), {}, ENVIRONMENTS, {})


def main() -> None:
    """Print the table in Markdown."""
    cells = truths()
    print(f"{len(cells)} cells, {NIGHTS} nights, {ROUNDS} histories a row; Wilson 95 % intervals\n")
    print("| planted | matrix-wide alarm | with the right suspect | nights with a cell alarm |\n|---|---|---|---|")
    for lost, new in ((0.0, False), (0.0, True), (0.005, True), (0.01, False), (0.01, True)):
        pooled = suspects = single = 0
        for seed in range(ROUNDS):
            report = detect(nights(cells, lost, new, seed), drift=False)
            pooled += bool(report.pooled)
            suspects += any("transformers 5.13.1 → 5.15.0" in f.suspects for f in report.pooled)
            single += bool(report.cells)
        shown = [stats.wilson(count, ROUNDS) for count in (pooled, suspects, single)]
        texts = [f"{100 * s.estimate:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in shown]
        where = "new environment" if new else "same environment"
        what = f"all cells {100 * lost:g} points worse" if lost else "nothing"
        print(f"| {what}, {where} | {texts[0]} | {texts[1] if new and lost else '–'} | {texts[2]} |")


if __name__ == "__main__":
    main()
