"""Numbers and names as text, the same in every format that people read."""

from __future__ import annotations

import functools
import math
import re
import statistics
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from harness.metrics import MetricDef
from reports.board.board import MARK_WORDS, BoardRow, BoardTable, CellContent, ColumnHeader, Failure

MISSING = "—"
LABEL_CHARACTERS = 60
REASON_CHARACTERS = 400

_WHY = {
    "not_supported": "the instrument or library cannot give it",
    "no_device": "there is no such device",
    "no_permission": "the system refuses to give it",
    "mig": "a partitioned GPU has no separate sensor",
    "device_lost": "the device went away during the window",
    "window_too_short": "the window was shorter than the sensor needs",
    "shared": "a foreign process used the device",
    "too_few": "too few samples for this statistic",
    "not_applicable": "has no meaning for this row",
    "not_measured": "this sweep did not measure it",
    "stage_not_reached": "the cell ended before this stage",
    "target_not_reached": "training ended before the score met the target",
    "length_mismatch": "the produced length differs from the requested one",
    "oom": "out of memory",
    "failed": "the instrument failed",
    "no_baseline": "the baseline row is not in this table",
}


def why_words(why: str) -> str:
    """A typed reason in words."""
    return _WHY.get(why, why.replace("_", " ") or "not measured")


def plain(text: object, limit: int = LABEL_CHARACTERS) -> str:
    """``text`` on one line, safe to show: control and direction-changing characters are escaped.

    A name out of a file may hold anything, a terminal escape sequence included; nothing but its letters may
    have an effect on what surrounds it.
    """
    whole = str(text)[: 4 * limit]
    return _short(whole, limit) if len(whole) <= _SHORT else _on_one_line(whole, limit)


_SHORT = 80
"""Characters of a text that is remembered: labels, tasks and answers come again and again."""


def _on_one_line(text: str, limit: int) -> str:
    line = re.sub(r"[\t\n\r]+", " ", text)
    safe = line.isascii() and line.isprintable()
    shown = (line if safe else "".join(map(_escape, line))).strip()
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


_short = functools.lru_cache(maxsize=2**16)(_on_one_line)


def _escape(character: str) -> str:
    # Cc: control; Cf: format (directions, zero width), but not the joiner emoji are made with; Cs: half a pair
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character != "\u200d":
        return f"\\u{ord(character):04x}"
    return character


# --- units ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scale:
    """Format of a column of numbers: ``value * factor`` in ``unit`` with ``decimals`` places."""

    unit: str
    factor: float = 1.0
    decimals: int | None = None
    digits: int = 3

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """The number with a true minus sign; :data:`MISSING` for None."""
        if value is None:
            return MISSING
        shown = value * self.factor
        decimals = self.decimals if self.decimals is not None else _decimals(shown, self.digits)
        return f"{shown:{'+' if signed else ''},.{decimals}f}".replace("-", "−")


def _decimals(value: float, digits: int) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, min(8, digits - 1 - math.floor(math.log10(abs(value)))))


def scale(definition: MetricDef, values: Iterable[float]) -> Scale:
    """The scale of a column: one for all its rows, so that they can be compared down the page."""
    finite = [abs(value) for value in values if value]
    typical = statistics.median(finite) if finite else 0.0
    if definition.unit == "fraction":
        return Scale("%", 100.0, decimals=1)
    if definition.unit == "B":
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if typical >= size:
                return Scale(unit, 1 / size, decimals=_decimals(typical / size, definition.digits))
        return Scale("B", decimals=0)
    unit = "" if definition.unit == "1" else definition.unit
    if finite and all(value == int(value) for value in finite):
        return Scale(unit, decimals=0)
    return Scale(unit, decimals=_decimals(typical, definition.digits))


# --- columns -------------------------------------------------------------------------------------
_FIELD_LABELS = {
    "rank": "rank",
    "method": "method",
    "quantization": "quantization",
    "model": "model",
    "task": "task",
    "hardware": "hardware",
    "variant": "variant",
    "seeds": "seeds",
    "status": "status",
    "learned": "learned",
}
_FIELD_MEANING = {
    "rank": "First and last rank that paired tests on the stored samples allow; rows that are not significantly "
    "different share ranks.",
    "method": "Fine-tuning method.",
    "quantization": "How the base model's weights are stored.",
    "model": "The base model.",
    "task": "What is learned and scored.",
    "hardware": "Hardware profile.",
    "variant": "Settings of training that differ from the sweep's.",
    "seeds": "Seeds that ended ok, of all that were planned and tried.",
    "status": "How the cells ended; a reason where they did not end ok.",
    "learned": "Whether the trained row beats its own untrained base on the same items: learned, no evidence, worse, "
    "or degenerate (one answer for all items, or a rising loss), with the effect and its 95 % interval.",
}


@dataclass(frozen=True)
class ColumnText:
    """A column as people see it.

    Attributes:
        label: header without unit.
        unit: printed unit, "" for a pure number or a field.
        scale: how its numbers are printed; None for a field.
        meaning: definition, unit, direction and aggregation in one or two sentences.
    """

    head: ColumnHeader
    label: str
    unit: str
    scale: Scale | None
    meaning: str

    @property
    def key(self) -> str:
        """Unique name of the column."""
        return self.head.key

    @property
    def header(self) -> str:
        """Label with unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def is_number(self) -> bool:
        """True if the column has numbers (aligned right)."""
        return self.scale is not None or self.key in ("rank", "seeds")


def columns(table: BoardTable) -> list[ColumnText]:
    """All columns of a board with their scales, which hold for the whole board."""
    return [_column(table, head) for head in table.heads]


def _column(table: BoardTable, head: ColumnHeader) -> ColumnText:
    column = head.column
    if head.definition is None:
        field = column.field or ""
        return ColumnText(head, column.label or _FIELD_LABELS[field], "", None, _FIELD_MEANING[field])
    if column.show == "ratio_to_plain":
        return ColumnText(head, column.label or _label(table, head), "", Scale("", decimals=2), _meaning(table, head))
    rows = [row for section in table.sections for row in section.rows]
    values = [row.cells[head.key].value for row in rows]
    if column.difference:  # on the scale of the quantity itself
        values += [row.cells[column.difference].value for row in rows if column.difference in row.cells]
    chosen = scale(head.definition, [value for value in values if value is not None])
    unit = "points" if column.difference and chosen.unit == "%" else chosen.unit
    return ColumnText(head, column.label or _label(table, head), unit, chosen, _meaning(table, head))


def _label(table: BoardTable, head: ColumnHeader) -> str:
    assert head.definition is not None
    if head.column.difference and table.board.baseline is not None:
        return f"{head.definition.label} vs {plain(table.board.baseline.method, 20)}"
    label = f"{head.definition.label}, {head.column.stage}" if head.column.stage else head.definition.label
    return f"{label}, ratio to plain" if head.column.show == "ratio_to_plain" else label


def _meaning(table: BoardTable, head: ColumnHeader) -> str:
    definition, column = head.definition, head.column
    assert definition is not None
    better = {"higher": "Higher is better.", "lower": "Lower is better.", "neither": ""}[definition.better]
    parts = [definition.definition]
    if column.stage:
        parts.append(f"Stage: {column.stage}.")
    if column.difference and table.board.baseline is not None:
        base = table.board.baseline
        parts.append(
            f"Here: minus that of {plain(base.method)} / {plain(base.quantization)}, "
            "with the 95 % interval of the paired difference."
        )
    elif column.show == "ratio_to_plain":
        parts.append("Here: over that of the same row in the plain variant, 1 being no change.")
    elif column.show == "mean_interval":
        parts.append("Mean over seeds with its 95 % interval.")
    elif column.show == "mean_sd":
        parts.append("Mean over seeds ± their standard deviation.")
    else:
        parts.append("Mean over seeds.")
    if column.minus:
        parts.append("In lighter ink: change against the base model before adaptation, in points.")
    return " ".join([*parts, better, f"Version {definition.version}; {definition.source}."]).replace("  ", " ")


# --- places --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FormattedCell:
    """One cell of the table: the main text, and the lighter text next to it.

    Attributes:
        why: reason in words where ``main`` is :data:`MISSING`.
        hint: more explanation (how the interval was computed), "" if none.
    """

    main: str
    aside: str = ""
    why: str = ""
    hint: str = ""

    @property
    def text(self) -> str:
        """Both, with a space between."""
        return f"{self.main} {self.aside}".rstrip()


def place(column: ColumnText, row: BoardRow) -> FormattedCell:
    """Content of a row at a column."""
    if column.scale is None:
        return _field(column.key, row)
    shown = row.cells[column.key]
    if shown.text:
        return FormattedCell(shown.text)
    if shown.value is None:
        return FormattedCell(MISSING, why=why_words(shown.why))
    difference = column.head.column.difference is not None
    main = column.scale.text(shown.value, signed=difference)
    show = column.head.column.show
    return FormattedCell(
        main,
        _aside(column.scale, shown, "mean_interval" if difference or show == "ratio_to_plain" else show),
        hint=_hint(shown),
    )


def _aside(scale: Scale, shown: CellContent, show: str) -> str:
    parts = []
    if show == "mean_interval" and shown.low is not None and shown.high is not None:
        parts.append(f"[{scale.text(shown.low)}, {scale.text(shown.high)}]")
    elif show in ("mean_sd", "mean_interval") and shown.sd is not None:
        parts.append(f"± {scale.text(shown.sd)}")
    if shown.delta is not None:
        parts.append(f"({scale.text(shown.delta, signed=True)})")
    return " ".join(parts)


def _hint(shown: CellContent) -> str:
    """How the interval was computed, if there is one."""
    if not shown.interval:
        return ""
    items = f", {shown.items:,} items" if shown.items else ""
    return f"95 % interval: {shown.interval}{items}, {shown.seeds} seed{'s' if shown.seeds > 1 else ''}"


def _field(key: str, row: BoardRow) -> FormattedCell:
    if key == "rank":
        return FormattedCell(rank_text(row.rank), why="" if row.rank else "unranked")
    if key == "seeds":
        total = len(row.seeds) + len(row.failed)
        return FormattedCell(f"{len(row.seeds)}/{total}", why="")
    if key == "learned":
        return _learned(row)
    if key == "status":
        return FormattedCell(row.status, plain(row.reason, 120) if row.status != "ok" else "; ".join(mark_words(row)))
    return FormattedCell(plain(row.labels.get(key, "plain") if key == "variant" else row.labels[key]))


def _learned(row: BoardRow) -> FormattedCell:
    found = row.learned
    if found is None:
        return FormattedCell(MISSING, why="not trained, or no stored samples")
    if found.effect is None or found.measure != "accuracy":
        return FormattedCell(found.verdict, hint=found.why)
    return FormattedCell(found.verdict, f"{100 * found.effect:+.1f}", hint=found.why)


def mark_words(row: BoardRow) -> list[str]:
    """Reasons why a row is shown and not ranked, in words."""
    return [MARK_WORDS.get(mark, mark) for mark in row.marks]


def rank_text(rank: tuple[int, int] | None) -> str:
    """``3`` or ``2–5``; :data:`MISSING` for an unranked row."""
    if rank is None:
        return MISSING
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def failure_line(failure: Failure) -> tuple[str, str, str]:
    """Cells, their status, and the reason: three plain texts."""
    names = [failure.row.labels[axis] for axis in ("model", "method", "quantization", "task")]
    seeds = ", ".join(plain(seed, 12) for seed in failure.seeds)
    which = " · ".join(plain(name, 40) for name in names) + f" · seed{'s' if len(failure.seeds) > 1 else ''} {seeds}"
    how = f"{failure.status} at {plain(failure.stage, 20)}" if failure.stage else failure.status
    return which, how, plain(failure.reason, REASON_CHARACTERS) or "no reason was recorded"


def leading(row: BoardRow) -> bool:
    """True if no row of its section is known to be better."""
    return row.rank is not None and row.rank[0] == 1


def not_run_line(table: BoardTable) -> str:
    """Number of planned cells without a record; "" if none."""
    if not table.not_run:
        return ""
    return f"{table.not_run:,} planned cell{'s have' if table.not_run > 1 else ' has'} not been run yet."
