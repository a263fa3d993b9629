"""Tables and lists of the command line, as text for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.record import CellView, Parts, Reading, Record
from runners.planning.cost_model import Prediction, total
from runners.planning.plan import Plan
from runners.running.progress import clock

if TYPE_CHECKING:
    from reports.apps.regressions.detect import Report
    from reports.board.checks import Smell


Rows = list[dict[str, Any]]
WIDEST_WORD = 30
"""Characters; a longer word, such as a path, may be broken."""
MOST_METHODS = 30
"""Methods whose settings a plan prints."""


def print_rows(rows: Rows, console: Console) -> None:
    """Rows as a table: the first column is highlighted; lists are joined, dictionaries shortened."""
    columns = [c for c in (rows[0] if rows else {}) if c not in ("defaults", "file", "unverified")]
    heads = [column.replace("_", " ") for column in columns]
    print_cells(heads, [[_cell_text(row.get(c, "")) for c in columns] for row in rows], console)


def print_cells(heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """A table; where the console is too narrow for the longest word of each column, a block of lines for each row."""
    words = [
        max(len(word) for text in (head, *(row[at] for row in rows)) for word in text.split() or [""])
        for at, head in enumerate(heads)
    ]
    if sum(min(width, WIDEST_WORD) for width in words) + 2 * len(words) > console.width:
        for row in rows:
            console.print(Text.assemble((f"{heads[0]}: ", "bold"), (row[0], "bold cyan")))
            for head, text in zip(heads[1:], row[1:], strict=True):
                if not text:
                    continue
                console.print(Padding(Text.assemble((f"{head}: ", "bold"), text), (0, 0, 0, 2)))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, head in enumerate(heads):
        table.add_column(head, style="" if at else "cyan", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_methods(rows: Rows, console: Console) -> None:
    """One line a method under its family; a summary that is too long is cut. A star: no record shows that it learns."""
    width = max(len(row["method"]) for row in rows) + 3
    for family in dict.fromkeys(row["family"] for row in rows):
        console.print(Text(family, style="bold"))
        for row in (one for one in rows if one["family"] == family):
            star = " " if row["evidence"]["learned"] else "*"
            line = Text.assemble(star, (f"{row['method']:<{width}}", "cyan"), row["summary"])
            console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(f"{len(rows)} methods. *: no record shows that it learns; 'methods NAME' says why.")


def print_fits(rows: Rows, capacity: str, console: Console) -> None:
    """Print for every cell whether it fits one device of ``capacity``, and how many it needs when sharded."""

    def gib(value: float | None) -> str:
        return "" if value is None else f"{value / 2**30:.1f}"

    shown = [
        {
            "cell": row["cell"],
            "fits": {True: "yes", False: "no", None: "unknown"}[row["fits"]],
            "devices": row["devices"] or ("" if row["fits"] is None else "> 64"),
            "one device GiB": gib(row["peak_bytes"]),
            "sharded GiB": gib(row["peak_bytes_sharded"]),
        }
        for row in rows
    ]
    print_rows(shown, console)
    console.print(
        f"Estimated from sizes, for devices of {capacity}. 'devices': the fewest that hold it when weights and\n"
        "training state are sharded (FSDP, ZeRO stage 3). The axis 'parallel' tells whether a method trains so.",
        highlight=False,
    )


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
    methods = {cell.method.label: cell for cell in [*plan.run, *plan.done, *plan.stale]}
    for label, cell in list(methods.items())[:MOST_METHODS]:
        console.print(f"  method       {label}  {method_line(CellView(cell.as_dict()))}", **plain, markup=False)
    if len(methods) > MOST_METHODS:
        console.print(f"  ... and {len(methods) - MOST_METHODS} more methods")
    for cell in plan.run[:200]:
        console.print(f"  run          {cell.label}  {cell.key}{_expected(plan.predict(cell))}", **plain)
    if len(plan.run) > 200:
        console.print(f"  ... and {len(plan.run) - 200} more to run (all of them: --json)")
    for name, reasons in (
        ("elsewhere", plan.elsewhere),
        ("unsupported", plan.unsupported),
        ("remark", plan.remarks()),
    ):
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
            f"  waiting {plan.waiting}: final cells wait for their tuning trials, combining cells for their source "
            "cells",
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
    peak = f", peak {expected['peak_bytes'] / 2**30:.2f} GiB" if expected["peak_bytes"] is not None else ""
    unknown = f"; {expected['cells_without']} cells without an estimate" if expected["cells_without"] else ""
    return f"{clock(expected['seconds'])} in sequence{peak}{unknown}"


def _expected(prediction: Prediction) -> str:
    if prediction.seconds is None or prediction.peak_bytes is None:
        return ""
    return f"  ~{prediction.seconds:.0f} s, {prediction.peak_bytes / 2**30:.2f} GiB"


STYLES = {"ok": "green", "planned": "", "not_run": "yellow", "unsupported": "yellow", "interrupted": "yellow"}
"""Colours of statuses; the others are failures."""


def print_status(stands: dict[str, Any], console: Console) -> None:
    """Counts, then what runs now, then failures by reason."""
    head = Text(f"{stands['sweep']}: {stands['cells']} cells: ")
    parts = [Text(f"{n} {name}", style=STYLES.get(name, "red")) for name, n in stands["counts"].items()]
    console.print(head.append_text(Text(", ").join(parts)))
    print_running(stands["running"], console)
    for failure in stands["failures"]:
        line = f"  {failure['status']:<12} {failure['cell']}  [{failure['stage']}] {failure['why']}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if stands["failures"]:
        console.print("  Details and the end of the log of a cell: peft-matrix show CELL", highlight=False)
    for (kind, why), n in Counter((one["kind"], one["why"]) for one in stands["not_run"]).items():
        console.print(f"  not_run      {n} cells  [{kind}] {why}", highlight=False, soft_wrap=True, markup=False)
    for damage in stands["damaged"]:
        console.print(f"  damaged      {damage['path']}: {damage['why']}", soft_wrap=True, markup=False)


def print_running(drivers: Rows, console: Console) -> None:
    """Running cells by driver; a driver whose process is gone is named as such."""
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
    for one in drivers:
        where = f" on {one['executor']}" if one["executor"] != "local" else ""
        if one["state"] == "dead":
            console.print(
                f"  dead         driver {one['pid']} of {one['sweep']} is gone, last word {clock(one['told_s'])} ago. "
                f"Its cells do not run: {', '.join(cell['cell'] for cell in one['cells']) or 'none'}. "
                f"To continue: peft-matrix run {one['sweep']}",
                **plain,
            )
            continue
        machine = " of another machine" if one["state"] == "elsewhere" else ""
        failed = f", {one['failed']} failed" if one["failed"] else ""
        console.print(
            f"  running      {one['sweep']}: driver {one['pid']}{machine}{where}, {clock(one['seconds'])}, "
            f"{one['done']}/{one['total']} cells done{failed}",
            **plain,
        )
        for cell in one["cells"]:
            console.print(f"    {cell['cell']}  {_cell_words(cell)}", **plain)
        if machine:
            console.print(f"    last word {clock(one['told_s'])} ago", **plain)


def _cell_words(cell: Mapping[str, Any]) -> str:
    done = f"{cell['what']} {cell['at']}/{cell['of']}" if cell["at"] is not None else ""
    stage = cell["stage"] if not done else f"{cell['stage']}: {done}"
    eta = f"about {clock(cell['eta_s'])} to go" if cell["eta_s"] is not None else ""
    attempt = f"attempt {cell['attempt']}" if cell["attempt"] > 1 else ""
    worker = f"worker {cell['pid']}" if cell["pid"] is not None else ""
    return ", ".join(filter(None, [stage, clock(cell["seconds"]), eta, attempt, worker]))


def print_record(record: Record, console: Console) -> None:
    """One record: outcome, settings, metrics, stages, missing values by reason, the end of a failed cell's log."""
    outcome = record.outcome
    console.print(f"{record.label}  {record.key}", style="bold", highlight=False)
    why = f": {outcome.reason}" if outcome.reason else ""
    console.print(f"{outcome.status} at stage {outcome.stage}{why}", highlight=False, markup=False)
    for name, text in settings(record.cell_view).items():
        console.print(f"  {name:<14} {text}", highlight=False, markup=False, soft_wrap=True)
    missing: dict[str, list[str]] = {}
    for name, reading in sorted(record.metrics.items()):
        if reading.value is None:
            missing.setdefault(_why_missing(reading), []).append(name)
        else:
            console.print(f"  {name:<28} {_reading_text(reading)}", highlight=False, markup=False)
    stages = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "seconds", "peak RSS (MiB)"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for span in record.spans:
        peak = span.get("peak_rss_bytes")
        shown = f"{peak.value / 2**20:.0f}" if peak is not None and peak.value is not None else "—"
        stages.add_row(span.stage, "—" if span.seconds is None else f"{span.seconds:.2f}", shown)
    console.print(stages)
    for why, names in missing.items():
        console.print(f"No value ({why}): {', '.join(names)}", highlight=False, markup=False)
    if outcome.status not in ("ok", "unsupported") and outcome.log_tail:
        console.print("End of the log:", style="bold")
        console.print(outcome.log_tail, highlight=False, markup=False)


def _why_missing(reading: Reading) -> str:
    note = reading.details.get("note") or reading.details.get("why") or ""
    return f"{reading.why_missing}: {note}" if note else str(reading.why_missing)


def _reading_text(reading: Reading) -> str:
    value, unit = reading.value, "" if reading.unit == "1" else reading.unit
    if unit == "B" and value is not None and abs(value) >= 2**20:
        value, unit = value / 2**20, "MiB"
    count = f"  n={reading.n}" if reading.n is not None else ""
    spread = f"  sd={reading.spread:.3g}" if reading.spread is not None else ""
    return f"{value:.6g} {unit}".rstrip() + f"{count}{spread}  [{reading.source}]"


def _cell_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def print_verdicts(rows: Rows, console: Console) -> None:
    """Claims with what was printed, what was measured, and the verdict; below, the verdicts by kind, never added up."""
    from reports.apps.reproduction.report import count_kinds, number

    lines = []
    for row in rows:
        printed = " / ".join(number(p["value"]) for p in row["printed"] if p["value"] is not None) or row["form"]
        measured = "–" if row["measured"] is None else number(row["measured"])
        if row["interval"]:
            measured += f" [{number(row['interval'][0])}, {number(row['interval'][1])}]"
        proxies = ", ".join(f"{p['setup']} {p['verdict'].removeprefix('proxy_')}" for p in row["proxies"])
        kind = row["kind"] if row["verdict"] != "not_run" else ""
        lines.append([row["claim"], kind, printed, measured, row["verdict"], ", ".join(row["flags"]), proxies])
    print_cells(["claim", "kind", "printed", "measured", "verdict", "flags", "proxies"], lines, console)
    for kind, counts in count_kinds(list(rows)).items():
        console.print(f"{kind}: " + ", ".join(f"{n} {verdict}" for verdict, n in counts))


def print_smells(smells: Sequence[Smell]) -> None:
    """The smells of a board, one line each, to standard error."""
    from reports.board.checks import print_found

    print_found(smells)


def regressions_text(report: Report) -> str:
    """The report on regressions, as Markdown."""
    from reports.apps.regressions.analyze import to_markdown

    return to_markdown(report)


LONGEST = 60
"""Characters after which a parameter's value is cut."""


def method_line(cell: CellView) -> str:
    """Method with learning rate, steps and parameters."""
    method, training = cell.part("method"), cell.part("training")
    steps = method.get("steps", training.get("steps"))
    rate = method.get("learning_rate", training.get("learning_rate"))
    parts = [f"learning rate {rate:g}" if isinstance(rate, int | float) else "", f"{steps} steps" if steps else ""]
    return ": ".join(filter(None, [cell.name("method"), ", ".join(filter(None, [*parts, _params(method)]))]))


def settings(cell: CellView) -> dict[str, str]:
    """Short text per axis; the record has the whole cell."""
    model, task, training = (cell.part(name) for name in ("model", "task", "training"))
    rows = {
        "model": ", ".join(str(part) for part in (model.get("id"), model.get("dtype")) if part),
        "method": method_line(cell),
        "quantization": ", ".join(filter(None, [cell.name("quantization"), _params(cell.part("quantization"))])),
        "task": ", ".join(
            [cell.name("task"), *(f"{task[f'{s}_items']} {s}" for s in ("train", "test") if task.get(f"{s}_items"))]
        ),
        "batch": f"{training['batch_size']} x {training.get('gradient_accumulation', 1)}"
        if training.get("batch_size")
        else "",
        "seed": "" if cell.seed is None else str(cell.seed),
    }
    return {name: text for name, text in rows.items() if text}


def _params(point: Mapping[str, object]) -> str:
    params = Parts(point).part("params")
    return ", ".join(f"{name}={_value(value)}" for name, value in params.items() if value not in (None, False, 0.0))


def _value(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
