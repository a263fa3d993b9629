"""Errors of comparisons of time and memory, on real runs: ``python -m tests.quality.times [FOLDER [--run]] [--json]``.

Without a folder the runs of ``tests/golden/null_times.csv`` are judged; docs/findings/statistics.md shows that table.
``--run`` trains one LoRA under eight labels (only its scale differs, a number that costs no time), one of them with an
identical second arm (A/A), and one method that costs more (DoRA), in 12 randomised blocks: 120 real cells of the nano
model, 8 minutes on a quiet core. ``--csv`` prints the runs of a folder as that file holds them. Every pair of the eight
is a *null pair*: any difference found is an error. The blocks are cut into groups of 3, 4 and 6, as sweeps of that size
would have had, and each group is judged by itself:

* ``blocks, A/A``: what boards, ``compare`` and ``reproduce`` use (:func:`reports.data.timing.ratio`);
* ``blocks``: the same without the floor of the A/A arm;
* ``runs in a row``: the runs of one label next to each other in time and paired by their number, as if seeds repeated a
  time. This is how sweeps ran before blocks, rebuilt from the same runs in the order in which they ran.

Power is the share of comparisons of DoRA with one of the eight that are found.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from harness import stats
from harness.metrics import reading
from harness.record import Outcome, Record, Span
from reports.data.timing import block_of, ratio

LABELS = tuple(f"lora-{letter}" for letter in "abcdefgh")
OTHER = "dora"
REPLICATES, STEPS = 11, 40
SIZES = (3, 4, 6)
METRICS = {
    "step_ms": lambda r: r.metrics["step_ms"].value,
    "latency_ms": lambda r: r.metrics["latency_ms"].value,
    "train: seconds": lambda r: next(s.seconds for s in r.spans if s.stage == "train"),
    "train: rss_growth_bytes": lambda r: next(s.get("rss_growth_bytes").value for s in r.spans if s.stage == "train"),
}
Value = Callable[[Record], "float | None"]
Runs = dict[str, dict[int, Record]]
KEPT = Path(__file__).parents[1] / "golden" / "null_times.csv"
COLUMNS = ("label", "block", "position", *METRICS)
WORDS = {
    "step_ms": "step",
    "latency_ms": "latency of a forward pass",
    "train: seconds": "seconds of `train`",
    "train: rss_growth_bytes": "RSS growth in `train`",
}


def run(folder: Path) -> None:
    """Run the sweep; what is already in the folder is kept."""
    import peft_matrix

    methods = [{"name": "lora", "label": label, "params": {"alpha": 8 + i}} for i, label in enumerate(LABELS)]
    sweep = peft_matrix.sweep(
        name="null-times",
        models=["builtin:nano"],
        methods=[*methods, {"name": OTHER, "params": {"alpha": 8}}],
        tasks=[{"name": "strings-compose", "train_items": 2000, "validation_items": 10, "test_items": 20}],
        training={"steps": STEPS, "batch_size": 32, "max_length": 64},
        evaluation={"retention": False, "merged": False},
        timing={"replicates": REPLICATES, "identical": {"method": LABELS[0]}},
        limits={"threads": 1, "workers": 1, "timeout_s": 600},
    )
    peft_matrix.run(sweep, results=str(folder), quiet=True)


def read(folder: Path) -> tuple[Runs, str]:
    """Runs by label and block, the A/A arm under ``identical``, and the sweep's machine in words."""
    import peft_matrix

    records = [r for r in peft_matrix.load(str(folder)).records("null-times") if r.outcome.status == "ok"]
    runs: Runs = {}
    for record in records:
        block = block_of(record)
        assert block is not None
        label = "identical" if record.cell.get("arm") else record.cell["method"]["label"]
        runs.setdefault(label, {})[block[1]] = record
    machine = f"{records[0].environment['cpu']['model']}, {records[0].environment['cpu']['cores']} cores"
    return runs, machine


def kept() -> Runs:
    """The committed runs, as records that hold what is compared and nothing else."""
    runs: Runs = {}
    with KEPT.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            block, position, step, latency, seconds, growth = (float(row[name]) for name in COLUMNS[1:])
            growth_reading = reading("rss_growth_bytes", growth, source="csv")
            record = Record(
                key=f"{row['label']}.{row['block']}",
                label=row["label"],
                sweep="null-times",
                cell={"method": {"label": row["label"]}},
                outcome=Outcome(status="ok"),
                metrics={
                    "step_ms": reading("step_ms", step, source="csv"),
                    "latency_ms": reading("latency_ms", latency, source="csv"),
                },
                spans=(Span(stage="train", seconds=seconds, readings=(growth_reading,)),),
                environment={"order": {"run": "r", "block": int(block), "position": int(position)}},
                started=f"{int(block):03d}.{int(position):03d}",
            )
            runs.setdefault(row["label"], {})[int(block)] = record
    return runs


def as_csv(runs: Runs) -> None:
    """Print runs as :data:`KEPT` holds them."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    rows = [(r.environment["order"], label, r) for label, found in runs.items() for r in found.values()]
    for order, label, record in sorted(rows, key=lambda row: (row[0]["block"], row[0]["position"])):
        values = [f"{float(value(record) or math.nan):.6g}" for value in METRICS.values()]
        writer.writerow([label, order["block"], order["position"], *values])


def in_blocks(runs: Runs, blocks: Sequence[int], value: Value, *, floor: bool) -> Callable[[str, str], bool]:
    """Whether two labels differ, by the ratio within these blocks."""
    of = {label: [found[b] for b in blocks if b in found] for label, found in runs.items()}
    identical = [(of[LABELS[0]], of["identical"])] if floor else []

    def differs(a: str, b: str) -> bool:
        found = ratio(of[a], of[b], value, identical=identical)
        assert found is not None
        return found.differs

    return differs


def in_a_row(runs: Runs, first: int, size: int, value: Value) -> Callable[[str, str], bool]:
    """Whether two labels differ by a paired t over ``size`` runs each, the runs of a label one after the other.

    The labels share the machine's time as a sweep with the method outermost would: of the cells in the order in which
    they ran, the first ``size`` count as the runs of the first label, and so on. All of them are the same computation.
    """
    same = [r for label, found in runs.items() if label != OTHER for r in found.values()]
    times = [math.log(float(value(r) or math.nan)) for r in sorted(same, key=lambda r: r.started)]
    logs = {label: times[first + i * size : first + (i + 1) * size] for i, label in enumerate(LABELS)}

    def differs(a: str, b: str) -> bool:
        return bool(scipy_stats.ttest_rel(logs[a], logs[b]).pvalue < 0.05)

    return differs


def measure(runs: Runs) -> Iterator[dict[str, Any]]:
    """One row per metric, size of a group and way of comparing."""
    null = list(itertools.combinations(LABELS, 2))
    blocks = sorted(set.intersection(*(set(found) for found in runs.values())))
    for (name, value), size in itertools.product(METRICS.items(), SIZES):
        groups = [blocks[at : at + size] for at in range(0, len(blocks) - size + 1, size)]
        cells = len(LABELS) * size
        ways: dict[str, list[Callable[[str, str], bool]]] = {
            "blocks, A/A": [in_blocks(runs, group, value, floor=True) for group in groups],
            "blocks": [in_blocks(runs, group, value, floor=False) for group in groups],
            "runs in a row": [in_a_row(runs, i * cells, size, value) for i in range(len(groups))],
        }
        for way, tests in ways.items():
            wrong = sum(test(a, b) for test in tests for a, b in null)
            found = [test(OTHER, label) for test in tests for label in LABELS] if "blocks" in way else []
            error = stats.wilson(wrong, len(tests) * len(null))
            yield {
                "metric": name,
                "blocks": size,
                "way": way,
                "comparisons": len(tests) * len(null),
                "errors": wrong,
                "error": error.estimate,
                "power": float(np.mean(found)) if found else None,
            }


def spread(runs: Runs, value: Value) -> tuple[float, float]:
    """Standard deviation of the logarithm over all runs of a label, and of the log ratio of two labels in a block."""
    alone = [np.std([math.log(float(value(r) or math.nan)) for r in runs[a].values()], ddof=1) for a in LABELS]
    ratios = [
        np.std(
            [
                math.log(float(value(runs[a][n]) or 0) / float(value(runs[b][n]) or 0))
                for n in runs[a].keys() & runs[b].keys()
            ],
            ddof=1,
        )
        for a, b in itertools.combinations(LABELS, 2)
    ]
    return float(np.mean(alone)), float(np.mean(ratios))


HEADER = (
    "| quantity | blocks | null comparisons | errors: runs in a row | errors: blocks | errors: blocks, A/A "
    "| DoRA found: blocks | DoRA found: blocks, A/A |",
    "|---|--:|--:|--:|--:|--:|--:|--:|",
)


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The table of docs/findings/statistics.md, line by line, from :func:`measure`."""
    found = {(row["metric"], row["blocks"], row["way"]): row for row in rows}
    lines = list(HEADER)
    for metric, size in itertools.product(METRICS, SIZES):
        row, blocks, floored = (found[metric, size, way] for way in ("runs in a row", "blocks", "blocks, A/A"))
        errors = [f"{one['errors']} ({100 * one['error']:.1f} %)" for one in (row, blocks, floored)]
        power = [f"{100 * one['power']:.0f} %" for one in (blocks, floored)]
        lines.append(f"| {WORDS[metric]} | {size} | {row['comparisons']} | {' | '.join((*errors, *power))} |")
    return lines


def main() -> None:
    """Print the table in Markdown, or its rows as JSON."""
    parser = argparse.ArgumentParser(description="Errors of comparisons of time and memory, on real runs.")
    parser.add_argument("folder", type=Path, nargs="?", help="records; without it the committed runs")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--csv", action="store_true")
    chosen = parser.parse_args()
    if chosen.run:
        run(chosen.folder)
    runs, machine = read(chosen.folder) if chosen.folder is not None else (kept(), "the committed runs")
    if chosen.csv:
        as_csv(runs)
        return
    if chosen.json:
        print(json.dumps(list(measure(runs))))
        return
    print(f"{machine}; {sum(map(len, runs.values()))} runs\n")
    for name, value in METRICS.items():
        alone, within = spread(runs, value)
        print(f"{name}: runs of one label differ by {100 * alone:.1f} % (sd), two in a block by {100 * within:.1f} %")
    print("\n" + "\n".join(table(measure(runs))))


if __name__ == "__main__":
    main()
