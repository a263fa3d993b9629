"""One function a smell; each yields (where, what) for everything it finds."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.comparability import remarks
from harness.digests import digest
from harness.errors import UserError
from harness.metrics import METRICS
from harness.record import SCHEMA_VERSION, Parts
from reports.board import lbom
from reports.board.board import DEGENERATE, MARK_WORDS, NOT_LEARNED, BoardRow
from reports.board.checks.reading import FORMATS, Files
from reports.board.formats.files import texts
from reports.board.formats.text import MISSING, ColumnText, columns, place
from reports.data.frame import comparable, current, outdated

Found = Iterator[tuple[str, str]]

LARGEST_PAGE_BYTES = 64 * 2**20
FULL = ("full", "none")
NEEDED_FACTS = ("protocol", "records")


def _name(row: Mapping[str, Any]) -> str:
    labels = row["labels"]
    return f"row {labels['method']} / {labels['quantization']} / {labels['task']}"[:120]


# --- missing -------------------------------------------------------------------------------------
def missing(files: Files) -> Found:
    """Every planned cell is a row or counted as not run; every gap has a reason; provenance is there."""
    on_board = {record["key"] for record in (files.bill.get("records") or {}).values()}
    planned = set((files.bill.get("cells") or {}).get("planned") or ())
    ran = {record.key for record in (*files.table.records.values(), *files.table.trials)}
    lost = sorted((planned & ran) - on_board - {trial.key for trial in files.table.trials})
    for key in lost:
        yield "lbom.json", f"the cell {key} has a record and is not on the board"
    not_run = len(planned - ran)
    if planned and files.content["not_run"] != not_run:
        yield "board.json", f"{not_run} planned cells have no record; the board says {files.content['not_run']}"
    there = {(files.content["sections"][number]["group"], row["config"]) for number, row in files.rows}
    for section in files.table.sections:
        for wanted in section.rows:
            if (section.group, wanted.config) not in there:
                yield "board.json", f"{_name({'labels': wanted.labels})} is not on the board"
    rows = sum(len(section.rows) for section in files.table.sections)
    for name, count in (
        ("board.md", sum(len(table) - 1 for table in files.markdown_tables)),
        ("board.csv", len(files.csv_rows)),
        ("board.html", sum(len(table) for table in files.page.tables)),
    ):
        if count < rows:
            yield name, f"{rows - count} of {rows} rows are not there"
    for _, row in files.rows:
        yield from _gaps(row)
    for number, line in enumerate(files.csv_rows, start=2):
        for head, text in line.items():
            if text and head.endswith("]") and text.lower() in ("nan", "inf", "-inf", "none", "null"):
                yield f"board.csv:{number}", f"{head} is {text!r}: neither a value nor a reason"
    facts = files.content["about"]["facts"]
    for fact in NEEDED_FACTS:
        if files.rows and not facts.get(fact):
            yield "board.json", f"the board does not state its {fact}"


def _gaps(row: Mapping[str, Any]) -> Found:
    for key, cell in row["cells"].items():
        if cell["value"] is None and not cell["text"] and not cell["why"]:
            yield _name(row), f"{key} is missing without a reason"
    for end in row["failed"]:
        if not end["reason"]:
            yield _name(row), f"seed {end['seed']} ended {end['status']} without a reason"


# --- unresponsive --------------------------------------------------------------------------------
def unresponsive(files: Files) -> Found:
    """The page is whole, not too large, asks for nothing, and every link and anchor leads somewhere."""
    page = files.page
    size = len(files.text("board.html").encode())
    if not page.complete:
        yield "board.html", "the page is cut off or empty"
    if size > LARGEST_PAGE_BYTES:
        yield "board.html", f"{size / 2**20:.0f} MiB; more than {LARGEST_PAGE_BYTES // 2**20} MiB load too slowly"
    ids = Counter(page.ids)
    for identity in sorted(i for i, n in ids.items() if n > 1):
        yield "board.html", f"the id {identity!r} occurs {ids[identity]} times"
    for address in sorted(set(page.addresses)):
        if not address.startswith("#"):
            yield "board.html", f"asks for {address[:120]!r}, which is not in the page"
        elif address[1:] not in ids:
            yield "board.html", f"the anchor {address[:120]!r} has no target"
    for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", files.text("board.md")):
        if not target.startswith("#") and not (files.folder / target).is_file():
            yield "board.md", f"the link {target[:120]!r} has no target"


# --- confusing -----------------------------------------------------------------------------------
def confusing(files: Files) -> Found:
    """Every column has unit, direction and definition, explains itself, and shares its name with no other."""
    for column in files.content["columns"]:
        definition = column["definition"]
        for name in ("unit", "better", "definition", "source", "version") if definition else ():
            if not definition.get(name):
                yield f"column {column['key']}", f"has no {name}"
    glossary = set(re.findall(r"^- \*\*(.+?)\*\*: \S", files.text("board.md"), re.MULTILINE))
    for number, table in enumerate(files.markdown_tables):
        for label, count in Counter(table[0]).items():
            if label and count > 1:
                yield f"board.md, table {number + 1}", f"{count} columns are called {label!r}"
    shown = files.markdown_tables[0][0] if files.markdown_tables else []
    explained = {re.sub(r"\\(.)", r"\1", term) for term in glossary}
    for label in shown:
        if label and label not in explained:
            yield "board.md", f"the column {label!r} is not explained"
    for number, tip in enumerate(files.page.tips, start=1):
        if not tip:
            yield "board.html", f"the header of column {number} does not explain itself"


# --- inaccessible --------------------------------------------------------------------------------
def inaccessible(files: Files) -> Found:
    """Every format, figure, record and table of samples can be reached, and is what its digest says."""
    wanted = [*FORMATS, *(f"{f['name']}.{k}" for f in files.content["figures"] for k in ("svg", "png", "pdf"))]
    for name in wanted:
        path = files.folder / name
        if not path.is_file() or not path.stat().st_size:
            yield name, "is not there or empty"
    for damage in files.damaged:
        yield damage.path, damage.reason
    for _, row in files.rows:
        for identity in row["records"]:
            record = files.records.get(identity)
            if record is None:
                yield _name(row), f"its record {identity[:12]} is not in the store"
                continue
            if record.samples is not None:
                try:
                    files.store.samples(record)
                except UserError as error:
                    yield _name(row), f"the samples of record {identity[:12]}: {error.what}"


# --- mismatched ----------------------------------------------------------------------------------
def mismatched(files: Files) -> Found:
    """The files are what the records give, and agree with the bill."""
    again = texts(files.table, files.drawn, files.left_out)
    for name, data in again.items():
        path = files.folder / name
        if path.is_file() and path.read_bytes() != data:
            yield name, f"differs from what the records give{_first_difference(path.read_bytes(), data)}"
    names = {f"{one.name}.{kind}": b"" for one in files.drawn for kind in one.files}
    if files.bill and files.text("lbom.json") != lbom.render(files.table, {**again, **names}):
        yield "lbom.json", "differs from what the records give"
    for name, entry in (files.bill.get("files") or {}).items():
        path = files.folder / name
        wanted = entry.get("sha256")
        if wanted and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            yield name, "is not the file that lbom.json lists"
    for column in files.content["columns"]:
        definition = column["definition"]
        known = METRICS.get(definition["name"]) if definition else None
        if definition and (known is None or known.version != definition["version"]):
            yield f"column {column['key']}", "its definition is not the one in use now"


def _first_difference(there: bytes, wanted: bytes) -> str:
    pairs = zip(there.splitlines(), wanted.splitlines(), strict=False)
    line = next((n for n, (a, b) in enumerate(pairs, start=1) if a != b), None)
    return f" (first in line {line})" if line else " (in length)"


# --- misdisplayed --------------------------------------------------------------------------------
def misdisplayed(files: Files) -> Found:
    """Order and bold follow the ranks, and every number shown parses back to its value."""
    shown = columns(files.table)
    for number, part in enumerate(files.content["sections"]):
        yield from _order(files, number, part["rows"])
    for number, section in enumerate(files.table.sections):
        if number < len(files.markdown_tables):
            yield from _markdown(f"board.md, table {number + 1}", files.markdown_tables[number], section.rows, shown)
        if number < len(files.page.tables):
            yield from _html(f"board.html, table {number + 1}", files, number, section.rows, shown)


def _order(files: Files, number: int, rows: list[Mapping[str, Any]]) -> Found:
    metric = files.content["board"]["sort"]
    sign = -1.0 if METRICS[metric].better == "higher" else 1.0
    ranked = [row for row in rows if row["rank"] is not None]
    for above, below in itertools.pairwise(ranked):
        values = [row["cells"].get(metric, {}).get("value") for row in (above, below)]
        if None not in values and sign * values[0] > sign * values[1]:
            yield f"section {number + 1}", f"{_name(above)} is above {_name(below)}, which is better"
        if above["rank"][0] > below["rank"][1]:
            yield f"section {number + 1}", f"{_name(above)} is above {_name(below)}, which ranks before it"


def _markdown(where: str, table: list[list[str]], rows: tuple[BoardRow, ...], shown: list[ColumnText]) -> Found:
    for line, row in zip(table[1:], rows, strict=False):
        for column, text in zip(shown, line[1:], strict=False):
            bold = text.startswith("**")
            if column.key == "rank" and bold != (row.rank is not None and row.rank[0] == 1):
                yield where, f"{_name({'labels': row.labels})}: bold does not follow the rank"
            if column.scale is not None and not _tells(text, column, row):
                yield where, f"{_name({'labels': row.labels})}: {column.header} shows {text[:40]!r}"


def _html(where: str, files: Files, number: int, rows: tuple[BoardRow, ...], shown: list[ColumnText]) -> Found:
    for line, row in zip(files.page.tables[number], rows, strict=False):
        name = _name({"labels": row.labels})
        if ("leading" in line.classes) != (row.rank is not None and row.rank[0] == 1):
            yield where, f"{name}: bold does not follow the rank"
        for column, there in zip(shown, line.places, strict=False):
            if column.scale is None:
                continue
            value = row.cells[column.key].value
            if not _tells(there.text, column, row):
                yield where, f"{name}: {column.header} shows {there.text[:40]!r}"
            if there.sort != ("" if value is None else repr(value)):
                yield where, f"{name}: {column.header} is sorted by {there.sort[:40]!r}"


def _tells(text: str, column: ColumnText, row: BoardRow) -> bool:
    """True if the number shown is the value at the column's scale, to the last digit shown."""
    shown = row.cells[column.key]
    main = text.replace("**", "").split(" ")[0] if text else ""
    if shown.text:
        return main == shown.text.split(" ")[0]
    if shown.value is None or column.scale is None:
        return main == MISSING
    try:
        number = float(main.replace("−", "-").replace(",", ""))
    except ValueError:
        return False
    decimals = len(main.partition(".")[2])
    exact = shown.value * column.scale.factor
    return math.isclose(number, exact, abs_tol=0.5001 * 10**-decimals) and main == place(column, row).main


# --- redundant -----------------------------------------------------------------------------------
def redundant(files: Files) -> Found:
    """One row per configuration, one row per record, and no measurement listed twice under two names."""
    rows = Counter((number, row["config"]) for number, row in files.rows)
    labels = Counter((number, *sorted(row["labels"].items())) for number, row in files.rows)
    owners = Counter(identity for _, row in files.rows for identity in row["records"])
    for number, row in files.rows:
        if rows[number, row["config"]] > 1:
            yield _name(row), "is listed twice"
        elif labels[(number, *sorted(row["labels"].items()))] > 1:
            yield _name(row), "another row has the same labels"
    for identity in sorted(i for i, n in owners.items() if n > 1):
        yield f"record {identity[:12]}", f"is listed under {owners[identity]} rows"
    for lines, count in Counter(line["records"] for line in files.csv_rows).items():
        if lines and count > 1:
            yield "board.csv", f"the row of record {lines[:12]} occurs {count} times"
    told: dict[str, str] = {}
    for identity, record in sorted(files.table.records.items()):
        if record.outcome.status == "ok" and record.metrics:
            content = record.content()
            same = digest({name: content[name] for name in ("metrics", "spans", "series", "samples")})
            first = told.setdefault(same, identity)
            if first != identity:
                yield f"record {identity[:12]}", f"holds the very same measurements as {first[:12]}"


# --- deprecated ----------------------------------------------------------------------------------
def deprecated(files: Files) -> Found:
    """No row rests on a replaced record, an old layout, or an old task or protocol without its badge."""
    newest = {identity for identity, _ in current(files.records.values())}
    old = outdated(list(files.records.items()))
    for _, row in files.rows:
        for identity in row["records"]:
            record = files.records.get(identity)
            if record is None:
                continue
            if identity not in newest:
                yield _name(row), f"its record {identity[:12]} has been replaced by a later one: draw the board again"
            if record.schema_version != SCHEMA_VERSION:
                yield _name(row), f"its record {identity[:12]} has the old layout {record.schema_version}"
            if identity in old and "outdated" not in row["marks"]:
                yield _name(row), "a newer version of its task or protocol has been run, and no badge says so"
        for mark in row["marks"]:
            words = MARK_WORDS.get(mark, mark)
            if words not in files.text("board.md"):
                yield "board.md", f"{_name(row)} is marked {mark!r}, which is not shown"


# --- unsound -------------------------------------------------------------------------------------
TIMES = frozenset({"time", "energy"})
WITH_SPREAD = frozenset({"mean_sd", "ratio_to_plain"})
WHOLE_MACHINE = {
    "peak_rss_bytes": "peak RSS is a Pareto axis; most of it is the process that workers are forked from",
    "cgroup_peak_bytes": "the peak of the control group is a Pareto axis; other processes share it",
}
AT_EDGE = "edge of the rates"


def unsound(files: Files) -> Found:
    """Questions of a referee: replication, ranks, references that learned, fronts, spreads, and what is left unsaid."""
    for number, part in enumerate(files.content["sections"]):
        where, caption = f"section {number + 1}", part["caption"].lower()
        yield from _pseudo_replicated(files, part)
        yield from _unlike(files, number, part)
        yield from _fronts(where, part, files.content["board"]["rank"])
        yield from _unsaid(files, where, part)
        for axis in part["axes"]:
            if (name := axis.rpartition(".")[2]) in WHOLE_MACHINE:
                yield where, WHOLE_MACHINE[name]
        timed = any((row["cells"].get("step_ms") or {}).get("value") is not None for row in part["rows"])
        if timed and "times: " not in caption:
            yield where, "step times are shown, and the caption does not say how large a difference must be"
    yield from _without_spread(files)


def _unlike(files: Files, number: int, part: Mapping[str, Any]) -> Found:
    """Rows ranked together that were not measured under the same conditions."""
    metric = files.content["board"]["rank"]
    conditions: set[str] = set()
    items: set[Any] = set()
    for row in part["rows"]:
        records = [files.records[i] for i in row["records"] if i in files.records]
        if row["rank"] is not None:
            conditions |= {digest(comparable(record)) for record in records}
            items |= {row["cells"][metric]["items"]} if metric in row["cells"] else set()
            if any(record.environment_view.imported for record in records):
                yield _name(row), "was not run here and is ranked"
            if len(row["seeds"]) < 2 and len(part["rows"]) > 1:
                yield _name(row), "has one seed and is ranked: that ranks a checkpoint, not a method"
            if row["marks"]:
                yield _name(row), f"is marked {', '.join(row['marks'])} and ranked"
    reference = [row for row in part["rows"] if (row["labels"]["method"], row["labels"]["quantization"]) == FULL]
    ranked = any(row["rank"] is not None for row in part["rows"])
    for row in reference:
        verdict = (row.get("learned") or {}).get("verdict", "learned")
        if ranked and verdict != "learned":
            yield f"section {number + 1}", f"rows are ranked although full fine-tuning did not learn ({verdict})"
    if len(conditions) > 1:
        yield f"section {number + 1}", "rows measured under different conditions are ranked together"
    if len(items) > 1:
        yield f"section {number + 1}", "rows scored on different numbers of items are ranked together"


def _fronts(where: str, part: Mapping[str, Any], ranked: str) -> Found:
    """Degenerate rows in front, references that did not learn, and front rows that another beats on every axis."""
    caption = part["caption"].lower()
    for row in part["rows"]:
        verdict = (row.get("learned") or {}).get("verdict", "")
        first = row["rank"] is not None and row["rank"][0] == 1
        if verdict == DEGENERATE and (row["front"] or first):
            yield _name(row), f"is degenerate and {'on the Pareto front' if row['front'] else 'ranked first'}"
        reference = (row["labels"]["method"], row["labels"]["quantization"]) == FULL
        if reference and verdict not in ("", "learned") and NOT_LEARNED not in caption:
            yield where, f"full fine-tuning did not learn ({verdict}) and the caption does not say so"
        better = next((o for o in part["rows"] if row["front"] and _beats(o, row, part["axes"], ranked)), None)
        if better is not None:
            yield _name(row), f"is on the Pareto front, and {_name(better)} is clearly better on every axis"


def _beats(one: Mapping[str, Any], other: Mapping[str, Any], axes: Sequence[str], ranked: str) -> bool:
    """Whether the first row is better on every axis, with uncertainties that do not touch.

    On the ranked metric of two ranked rows the ranks must say so: intervals of two rows are no test of the pair.
    """
    if one["marks"] or (one.get("learned") or {}).get("verdict") == DEGENERATE:
        return False
    if ranked in axes and one["rank"] is not None and other["rank"] is not None and one["rank"][1] >= other["rank"][0]:
        return False
    pairs = [(_ends(one, axis), _ends(other, axis), METRICS[axis.rpartition(".")[2]].better) for axis in axes]
    return bool(pairs) and all(
        a is not None and b is not None and (a[0] > b[1] if better == "higher" else a[1] < b[0])
        for a, b, better in pairs
    )


def _ends(row: Mapping[str, Any], axis: str) -> tuple[float, float] | None:
    """Interval of a row on an axis; two standard deviations over seeds to each side; None where neither is known."""
    cell = row["cells"].get(axis) or {}
    if cell.get("value") is None:
        return None
    if cell.get("low") is not None:
        return cell["low"], cell["high"]
    if cell.get("sd") is None:
        return None
    return cell["value"] - 2 * cell["sd"], cell["value"] + 2 * cell["sd"]


def _without_spread(files: Files) -> Found:
    """Times and energies of several runs in a column that shows their mean alone."""
    shown = {column["key"] for column in files.content["columns"]}
    for column in files.table.board.columns:
        quantity = column.quantity
        if quantity is None or column.difference or column.show in WITH_SPREAD or column.key not in shown:
            continue
        several = any(row["cells"].get(column.key, {}).get("seeds", 0) > 1 for _, row in files.rows)
        if several and METRICS[quantity.column.rpartition(".")[2]].family in TIMES:
            yield f"column {column.key}", "shows times of several runs without their spread"


def _unsaid(files: Files, where: str, part: Mapping[str, Any]) -> Found:
    """Rates at the edge of those tried, and test items in the training data, that the board does not mention."""
    conditions = set(part["conditions"])
    seen = 0
    for row in part["rows"]:
        records = [files.records[i] for i in row["records"] if i in files.records]
        if any(map(remarks, records)) and not any(AT_EDGE in note for note in row["notes"]):
            yield _name(row), "its best learning rate lies at the edge of those tried, and the row does not say so"
        for record in records:
            found = Parts(record.environment_view.facts).part("contamination").get("test_items_in_train")
            seen = max(seen, found if isinstance(found, int) else 0)
    if seen and "test items also in train" not in conditions:
        yield where, f"{seen} test items are also in the training data, and the board does not say so"


def _pseudo_replicated(files: Files, part: Mapping[str, Any]) -> Found:
    """Runs counted as seeds that are none: a seed twice, or runs that repeat a cell for its time."""
    for row in part["rows"]:
        seeds = [str(seed) for seed in row["seeds"]]
        if len(set(seeds)) < len(seeds):
            yield _name(row), f"counts a seed more than once ({', '.join(seeds)})"
        records = [files.records[i] for i in row["records"] if i in files.records]
        repeated = sum(record.cell_view.role != "result" for record in records)
        if repeated:
            yield _name(row), f"{repeated} of its records are repeated runs or trials, which are no seeds"
