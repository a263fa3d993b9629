"""The answer of a table: its best rows or their tie, the reason, and cautions about a row.

The front page and the board's page show the same answer. A row that did not learn is never recommended; a row that
forgets most of the base's skills comes after the rows it ties with, and the page says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from harness.metrics import METRICS, MetricDef
from harness.record import Record
from reports.apps.site.text import line
from reports.board.board import BoardRow, BoardTable, CellContent, Section
from reports.board.formats.text import MISSING, ColumnText, place, scale, why_words

LEARNED = "learned"
UNTRAINED = "none"
KEEPS_LEAST = 0.5
"""A row that keeps less than this share of the base's accuracy on its own skills is said to forget."""
CARD_ROWS = 3

LIMITS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "memory",
        (
            ("device_used_peak_bytes", "My GPU has", "GiB"),
            ("cuda_reserved_peak_bytes", "My GPU has", "GiB"),
            ("cuda_allocated_peak_bytes", "My GPU has", "GiB"),
            ("process_reserved_peak_bytes", "My GPU has", "GiB"),
            ("rss_growth_bytes", "Training may add", "GiB of memory"),
            ("peak_rss_bytes", "This machine has", "GiB"),
        ),
    ),
    ("latency", (("tpot_ms", "One token may take", "ms"), ("latency_ms", "One answer may take", "ms"))),
    ("energy", (("energy_gross_j", "Training may use", "J"), ("cpu_package_j", "Training may use", "J"))),
    ("cost", (("train_gpu_cost", "Training may cost", ""), ("train_energy_cost", "Training may cost", ""))),
)
"""The reader's limits: quantities that can answer each, the most fitting first, with the question and its unit."""


@dataclass(frozen=True)
class Answer:
    """The answer of one table.

    Attributes:
        kind: ``best``: one row is better than all others; ``tie``; ``nothing``: no row can be recommended.
        headline: the answer in a few words.
        reason: why, in one or two sentences.
        rows: rows to recommend, the best first; empty for ``nothing``.
    """

    kind: str
    headline: str
    reason: str
    rows: tuple[BoardRow, ...] = ()


def row_name(row: BoardRow) -> str:
    """Method, and quantization where the base is quantized."""
    method, quantization = row.labels["method"], row.labels["quantization"]
    name = "untrained base" if method == UNTRAINED else method
    return line(name if quantization == "none" else f"{name} / {quantization}", 120)


def kept(row: BoardRow, records: Mapping[str, Record]) -> float | None:
    """Share of the base's accuracy on its own skills that the row keeps, mean over seeds; None if not measured."""
    shares = []
    for record in (records[i] for i in row.records):
        after, before = (record.metrics.get(name) for name in ("retained_accuracy", "base_retained_accuracy"))
        if after is not None and before is not None and after.value is not None and before.value:
            shares.append(after.value / before.value)
    return sum(shares) / len(shares) if shares else None


def is_sound(row: BoardRow) -> bool:
    """False for rows that nothing recommends: untrained ones, and those that did not learn."""
    if row.status != "ok" or row.labels["method"] == UNTRAINED:
        return False
    return row.learned is None or row.learned.verdict == LEARNED


def cautions(row: BoardRow, records: Mapping[str, Record]) -> list[str]:
    """Warnings for a reader who considers the row."""
    out = []
    if row.learned is not None and row.learned.verdict != LEARNED:
        out.append(f"{row.learned.verdict}: {row.learned.why}")
    elif row.learned is None and row.status == "ok" and row.labels["method"] != UNTRAINED:
        out.append("not known whether it learned: its untrained base was not scored on the same items")
    share = kept(row, records)
    if share is not None and share < KEEPS_LEAST:
        out.append(f"forgets: it keeps {share:.0%} of the base's accuracy on the skills the base had")
    return [line(text, 300) for text in out]


def answer(table: BoardTable, section: Section) -> Answer:
    """The answer of a section by its ranks, its verdicts and what its rows forget."""
    ranked = [row for row in section.rows if row.status == "ok" and row.rank is not None]
    judged = [row for row in section.rows if row.learned is not None]
    learned = [row for row in judged if row.learned is not None and row.learned.verdict == LEARNED]
    if not any(row.status == "ok" for row in section.rows):
        return Answer("nothing", "No row ended with a result", "The failures page groups the cells by reason.")
    if judged and not learned:
        reason = f"None of the {len(judged)} trained rows with a verdict beats its untrained base on this budget."
        return Answer("nothing", "Nothing learned", reason)
    if not ranked:
        return Answer("nothing", "Not ranked", unranked_reason(section))
    leaders = [row for row in ranked if row.rank is not None and row.rank[0] == 1]
    sound = sorted((row for row in leaders if is_sound(row)), key=lambda row: _order(table, row))
    metric = METRICS[table.board.rank].label
    if not sound:
        names = ", ".join(row_name(row) for row in leaders[:CARD_ROWS])
        reason = f"The rows in front ({names}) did not train or are not known to have learned."
        return Answer("nothing", "No trained row is known to be best", reason)
    if len(leaders) == 1:
        others = f"the other {len(ranked) - 1} ranked rows" if len(ranked) > 2 else "the other ranked row"
        reason = f"It is better than {others} in {metric}." if len(ranked) > 1 else f"The only ranked row by {metric}."
        return Answer("best", f"{row_name(sound[0])} is best", reason, tuple(sound))
    what = "methods" if len({row.labels["quantization"] for row in leaders}) == 1 else "rows"
    reason = f"Their differences in {metric} lie within noise."
    if len(leaders) == len(ranked):
        reason = (
            f"All {len(ranked)} ranked rows do: on these items and seeds, differences in {metric} lie within noise."
        )
    if judged and len(sound) < len(leaders):
        reason += f" Of them {len(sound)} {'is' if len(sound) == 1 else 'are'} known to have learned."
    return Answer("tie", f"{len(leaders)} {what} tie for first", reason, tuple(sound))


def unranked_reason(section: Section) -> str:
    """Why no row has a rank, as the ranking says it."""
    first = re.match(r".*?\.(?=\s+[A-Z◆]|$)", section.caption, flags=re.DOTALL)
    text = first[0] if first else section.caption
    marked = [row for row in section.rows if row.status == "ok" and row.marks]
    if marked and len(marked) == sum(row.status == "ok" for row in section.rows):
        return f"Every row is marked ({', '.join(sorted({mark for row in marked for mark in row.marks}))})."
    return line(text.removeprefix("Unranked: "), 400).capitalize() if text else "The ranking gave no reason."


def _order(table: BoardTable, row: BoardRow) -> tuple[object, ...]:
    share = kept(row, table.records)
    value = (row.cells.get(table.board.rank) or CellContent()).value
    sign = -1.0 if METRICS[table.board.rank].better == "higher" else 1.0
    return (share is not None and share < KEEPS_LEAST, sign * (value or 0.0), row_name(row), row.config)


# --- limits of the reader ------------------------------------------------------------------------
def limit_of(section: Section, table: BoardTable, name: str) -> tuple[dict[str, object], str | int | None]:
    """Quantity that a limit applies to in this section, and its position in a row (column key or axis number)."""
    reasons: set[str] = set()
    for metric, question, unit in dict(LIMITS)[name]:
        for definition, stage, where in _places(table, section):
            if definition.name != metric:
                continue
            held_here = [held(row, where) for row in section.rows]
            if any(shown.value is not None for shown in held_here):
                label = definition.label + (f", {stage}" if stage else "")
                asked = {"question": question, "after": unit or definition.unit}
                column = where if isinstance(where, str) else ""
                return {"metric": metric, "label": label, "unit": definition.unit, "column": column, **asked}, where
            reasons |= {
                why_words(shown.why) for shown, row in zip(held_here, section.rows, strict=True) if row.status == "ok"
            }
    return {"metric": None, "why": "; ".join(sorted(reasons - {""})) or "no column of this board holds it"}, None


def _places(table: BoardTable, section: Section) -> list[tuple[MetricDef, str | None, str | int]]:
    found: list[tuple[MetricDef, str | None, str | int]] = [
        (column.quantity.definition, column.stage, column.key)
        for column in table.board.columns
        if column.quantity is not None and column.difference is None and column.show != "ratio_to_plain"
    ]
    return found + [(axis.definition, axis.stage, number) for number, axis in enumerate(section.axes)]


def held(row: BoardRow, where: str | int) -> CellContent:
    """Content of a row at a column key or an axis number."""
    return row.axes[where] if isinstance(where, int) else row.cells[where]


# --- the front page ------------------------------------------------------------------------------
def card(
    table: BoardTable, section: Section, row_pages: Mapping[str, str], shown: list[ColumnText]
) -> dict[str, object]:
    """A table as the front page shows it.

    Args:
        row_pages: configuration to the name of its page.
        shown: the table's columns (:func:`reports.board.formats.text.columns`).
    """
    found = answer(table, section)
    best = found.rows or tuple(row for row in section.rows if row.status == "ok" and not row.marks)
    return {
        "id": section.group,
        "title": line(section.title, 200),
        "kind": found.kind,
        "headline": found.headline,
        "reason": found.reason,
        "heading": "" if found.rows else "Highest means, not recommended:",
        "rows": [card_row(table, section, row, shown, row_pages) for row in best[:CARD_ROWS]],
        "more": max(0, len(best) - CARD_ROWS) if found.rows else 0,
        "date": last_day(table, section),
        "count": len(section.rows),
        "ranked": sum(row.rank is not None for row in section.rows),
        "thumbnail": thumbnail(section),
    }


def last_day(table: BoardTable, section: Section) -> str:
    """Day on which the newest record of a section ended, as ``YYYY-MM-DD``; "" if no record says."""
    days = [table.records[i].finished[:10] for row in section.rows for i in row.records]
    return line(max(days, default=""), 10)


def card_row(
    table: BoardTable, section: Section, row: BoardRow, shown: Sequence[ColumnText], row_pages: Mapping[str, str]
) -> dict[str, object]:
    """A row in short: score with interval, memory in GiB, time, share of skills kept, cautions; "" if not measured."""
    score = next((column for column in shown if column.key == table.board.rank), None)
    time = next((column for column in shown if column.key in ("step_ms", "tpot_ms", "latency_ms")), None)
    _, where = limit_of(section, table, "memory")
    memory = None if where is None else held(row, where).value
    share = kept(row, table.records)
    return {
        "name": row_name(row),
        "page": row_pages.get(row.config, ""),
        "score": _score(score, row),
        "memory": "" if memory is None else f"{memory / 2**30:.3g} GiB",
        "time": _time(time, row),
        "kept": "" if share is None else f"keeps {share:.0%}",
        "cautions": cautions(row, table.records),
    }


def _score(column: ColumnText | None, row: BoardRow) -> str:
    shown = place(column, row) if column is not None else None
    if column is None or shown is None or shown.main == MISSING:
        return ""
    return f"{shown.main} {column.unit} {shown.aside}".strip()


def _time(column: ColumnText | None, row: BoardRow) -> str:
    shown = row.cells[column.key] if column is not None else CellContent()
    if column is None or column.scale is None or shown.value is None:
        return ""
    what = {"step_ms": "a step", "tpot_ms": "a token"}.get(column.key, "an answer")
    return f"{column.scale.text(shown.value)} {column.unit} {what}"


WIDTH, HEIGHT, EDGE = 220, 110, 8


def thumbnail(section: Section) -> Markup:
    """The front as a small picture: every row with values on both axes, rows on the front larger and green."""
    if len(section.axes) < 2:
        return Markup("")
    points = [
        (row, row.axes[1].value, row.axes[0].value)
        for row in section.rows
        if row.axes[0].value is not None and row.axes[1].value is not None
    ]
    if not points:
        return Markup("")
    x_of = _placed([x for _, x, _ in points], WIDTH)
    y_of = _placed([y for _, _, y in points], HEIGHT)
    marks = [
        f'<circle class="{"front" if row.front else "rest"}" cx="{x_of(x):.1f}" cy="{HEIGHT - y_of(y):.1f}" '
        f'r="{4 if row.front else 2.5}"/>'
        for row, x, y in sorted(points, key=lambda point: point[0].front)
    ]
    up, across = (axis.definition.label for axis in section.axes[:2])
    x_unit, x_text = _end(section, 1, [x for _, x, _ in points])
    name = escape(f"{up} over {across}, {x_text} {x_unit}: {len(points)} rows")
    return Markup(
        f'<svg class="thumb" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f'<path d="M1 0V{HEIGHT - 1}H{WIDTH}"/>{"".join(marks)}</svg>'
    )


def _placed(values: Sequence[float], size: int) -> Any:
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return lambda value: EDGE + (size - 2 * EDGE) * (0.5 if high == low else (value - low) / span)


def _end(section: Section, number: int, values: Sequence[float]) -> tuple[str, str]:
    chosen = scale(section.axes[number].definition, values)
    return chosen.unit, f"{chosen.text(min(values))} to {chosen.text(max(values))}"
