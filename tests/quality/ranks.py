"""Errors and power of ranks and intervals, by simulation: ``python -m tests.quality.ranks [--json] [--boards N]``.

Eight methods of equal true accuracy are scored on the same items by two, three or five seeds: a logistic model with an
effect of the item and one of the seed. What a board prints of them is then counted: boards that place any row above
another (family-wise error), intervals of rows and of differences that hold the truth (coverage), and, where four of the
methods are truly ten points worse, the share of the 16 differing pairs that are found (power), and intervals of
ratios. ``former`` are the ranks before: the variance over seeds of each row alone, Holm adjusted. ``fair_methods``
counts the pairs of 28 that differ significantly in the committed records of that sweep. ``--stress`` adds what the
model is weak against: a single method whose seeds differ by 14 points among seven steady ones.
docs/findings/statistics.md shows the tables of ``--stress --boards 300``.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

from harness.stats import fit_rows, pairwise

ROOT = Path(__file__).parents[2]
METHODS, ITEMS = 8, 500
ACCURACY, ITEM_SD = 0.75, 1.5
WORSE_BY = 0.10
SEEDS = (2, 3, 5)
NODES = stats.norm.ppf((np.arange(1001) + 0.5) / 1001)


class Scenario(NamedTuple):
    """Behaviour of the seeds.

    Attributes:
        sds: standard deviation over seeds of each method, in points of accuracy.
        shared: share of the seed's variance that all methods have in common (same data order, same fresh head).
    """

    name: str
    sds: tuple[float, ...]
    shared: float = 0.0


def _equal(points: float, shared: float = 0.0) -> Scenario:
    return Scenario("equal" if not shared else "equal, shared", (points,) * METHODS, shared)


SCENARIOS = (
    _equal(0.0),
    _equal(2.5),
    _equal(4.8),
    _equal(9.0),
    _equal(13.8),
    _equal(4.8, shared=0.8),
    Scenario("rising", tuple(float(x) for x in np.linspace(0, 13.8, METHODS))),
    Scenario("two halves", (2.5,) * 4 + (13.8,) * 4),
    Scenario("drawn", (11.3, 1.1, 7.9, 8.6, 3.2, 13.5, 0.4, 5.6)),
)
STRESS = (
    Scenario("one of eight", (2.5,) * 7 + (13.8,)),
    Scenario("two of eight", (0.0,) * 6 + (13.8,) * 2),
)


@functools.cache
def _logit_of(accuracy: float, sd: float) -> float:
    """Logit whose mean accuracy over items and seeds is ``accuracy``, with standard deviation ``sd`` over seeds."""
    spread = np.hypot(ITEM_SD, sd)
    return float(optimize.brentq(lambda a: special.expit(a + spread * NODES).mean() - accuracy, -8, 12))


@functools.cache
def _logit_sd(points: float) -> float:
    """Standard deviation over seeds on the logit that gives this one in points of accuracy."""
    if points == 0:
        return 0.0

    def of(sd: float) -> float:
        centre = _logit_of(ACCURACY, sd)
        by_seed = special.expit(centre + sd * NODES[::10, None] + ITEM_SD * NODES[::10]).mean(axis=1)
        return float(100 * by_seed.std() - points)

    return float(optimize.brentq(of, 0.0, 6.0))


def board(rng: np.random.Generator, seeds: int, scenario: Scenario, accuracies: Sequence[float]) -> np.ndarray:
    """Right and wrong of one drawn board, shape (methods, seeds, items)."""
    sds = np.array([_logit_sd(points) for points in scenario.sds])
    centres = np.array([_logit_of(a, sd) for a, sd in zip(accuracies, sds, strict=True)])
    items = rng.normal(0, ITEM_SD, ITEMS)
    own, common = rng.normal(size=(METHODS, seeds)), rng.normal(size=seeds)
    effects = sds[:, None] * (np.sqrt(1 - scenario.shared) * own + np.sqrt(scenario.shared) * common)
    logits = centres[:, None, None] + effects[..., None] + items
    return (rng.random(logits.shape) < special.expit(logits)).astype(float)


class Counted(NamedTuple):
    """Counts of one board's output."""

    wrong: bool
    former: bool
    rows: float
    pairs: float
    ratios: float
    found: float


def count(rng: np.random.Generator, seeds: int, scenario: Scenario) -> Counted:
    """One board of equal methods, and one on which half of them are worse."""
    names = [list(range(seeds))] * METHODS
    arms = list(board(rng, seeds, scenario, [ACCURACY] * METHODS))
    equal = fit_rows(arms, names)
    of_rows = [equal.interval(i) for i in range(METHODS)]
    of_pairs = [equal.effect(i, j) for i in range(METHODS) for j in range(i)]
    accuracies = [ACCURACY] * (METHODS // 2) + [ACCURACY - WORSE_BY] * (METHODS // 2)
    # the worse ones take every other place, so that steady and unsteady methods are among both
    order = [*range(0, METHODS, 2), *range(1, METHODS, 2)]
    truth = [accuracies[order.index(k)] for k in range(METHODS)]
    unequal = fit_rows(list(board(rng, seeds, scenario, truth)), names)
    differ = np.subtract.outer(truth, truth) > 0
    of_ratios = [(unequal.log_ratio(i, j), truth[i] / truth[j]) for i in range(METHODS) for j in range(i)]
    return Counted(
        bool(equal.better().any()),
        bool((pairwise(arms).p < 0.05).any()),
        float(np.mean([found.low <= ACCURACY <= found.high for found in of_rows])),
        float(np.mean([found.low <= 0 <= found.high for found in of_pairs])),
        float(np.mean([one is not None and one.low <= np.log(ratio) <= one.high for one, ratio in of_ratios])),
        float(unequal.better()[differ].mean()),
    )


def measure(boards: int, *, stress: bool = False, start: int = 0, every: int = 1) -> Iterator[dict[str, Any]]:
    """A row of the report for every scenario and number of seeds, or for one in ``every`` of these."""
    fair = fair_methods()
    for number, scenario in enumerate(SCENARIOS + (STRESS if stress else ())):
        for seeds in SEEDS[number % every :: every]:
            rng = np.random.default_rng([start, seeds, number])
            found = [count(rng, seeds, scenario) for _ in range(boards)]
            wrong = sum(one.wrong for one in found)
            pairs, rows, ratios = (
                float(np.mean([getattr(one, name) for one in found])) for name in ("pairs", "rows", "ratios")
            )
            shares = METHODS * (METHODS - 1) / 2
            yield {
                "seeds": seeds,
                "seed_sd": scenario.sds[0] if len(set(scenario.sds)) == 1 else list(scenario.sds),
                "scenario": scenario.name,
                "boards": boards,
                "family_error": wrong / boards,
                "former_family_error": float(np.mean([one.former for one in found])),
                "family_error_standard_error": round(float(np.sqrt(wrong * (boards - wrong) / boards**3)), 4),
                "coverage": (shares * pairs + METHODS * rows) / (shares + METHODS),
                "coverage_of_differences": pairs,
                "coverage_of_rows": rows,
                "coverage_of_ratios": ratios,
                "power": float(np.mean([one.found for one in found])),
                "fair_methods": fair,
            }


@functools.cache
def fair_methods(*, former: bool = False) -> dict[str, int]:
    """Significantly different pairs of 28 in the committed records of the sweep ``fair-methods``, by task."""
    from harness.store.store import Store
    from reports.data.frame import current, is_trial
    from reports.data.samples import gather

    store = Store(ROOT / "results" / "reference" / "cpu-2core-tuning")
    tables: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for _, record in current(store.records()[0]):
        if not is_trial(record) and record.outcome.status == "ok":
            rows = tables.setdefault(record.cell["task"]["label"], {})
            rows.setdefault(record.cell["method"]["label"], []).append((record.cell["seed"], store.samples(record)))
    out = {}
    for task, rows in sorted(tables.items()):
        scores = [gather(sorted(rows[name], key=lambda row: row[0]), "adapted") for name in sorted(rows)]
        assert all(one is not None for one in scores)
        kept = [one for one in scores if one is not None]
        arms = [one.right for one in kept]
        if former:
            out[task] = int((pairwise(arms).p < 0.05).sum()) // 2
        else:
            out[task] = int(fit_rows(arms, [one.seeds for one in kept]).better().sum())
    return out


HEADER = (
    "| seeds | sd over seeds (points) | family-wise error | former | coverage, all | differences | rows | ratios "
    "| power |",
    "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
)


def line(row: dict[str, Any]) -> str:
    """A row of the report in Markdown."""
    sd = f"{row['seed_sd']:g}" if isinstance(row["seed_sd"], float) else row["scenario"]
    shared = ", shared" if "shared" in row["scenario"] else ""
    coverages = [row[f"coverage{of}"] for of in ("", "_of_differences", "_of_rows", "_of_ratios")]
    shares = [row["family_error"], row["former_family_error"], *coverages]
    shown = " | ".join(f"{100 * share:.1f} %" for share in shares)
    return f"| {row['seeds']} | {sd}{shared} | {shown} | {100 * row['power']:.0f} % |"


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a list of rows as JSON")
    parser.add_argument("--boards", type=int, default=300, help="boards drawn for every row")
    parser.add_argument("--stress", action="store_true", help="also what the model is weak against")
    parser.add_argument("--start", type=int, default=0, help="seed of the random numbers")
    given = parser.parse_args()
    rows = measure(given.boards, stress=given.stress, start=given.start)
    if given.json:
        print(json.dumps(list(rows), indent=1))
        return
    print(f"Significant pairs of 28 on fair-methods: {fair_methods()}, formerly {fair_methods(former=True)}\n")
    print("\n".join(HEADER))
    for row in rows:
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
