"""Records to a board: rows, ranks, Pareto front and failures, as one value that every format is rendered from.

Use: ``build(load_board("default", workspaces), records, store)`` gives a :class:`BoardTable`;
:func:`reports.board.formats.files.write_all` writes it in every format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics import METRICS, MetricDef
from harness.record import Record, Scalar
from harness.store.store import Store
from reports.board.provenance_summary import About, conditions, describe, row_settings, tell_apart
from reports.board.spec import Board, Column, Quantity, find_boards, load_board
from reports.data import lr_sensitivity
from reports.data.effects import Evidence, TestedEffect
from reports.data.frame import AXES, aggregate, comparable, current, frame, has, is_trial, rows_of
from reports.data.learned import Learned, verdicts
from reports.data.ranking import ONE_SEED, Ranking, differences, front_caption, pareto_front, rank_rows
from reports.data.samples import ARMS, SampleSource, indexed_samples
from reports.data.timing import TimedRuns, aa_floor, caption, clearly_less, ratio, value_of

__all__ = ["Board", "BoardTable", "build", "find_boards", "load_board"]


NOT_LEARNED = "full fine-tuning itself did not learn"
DEGENERATE = "degenerate"
"""Verdict of rows that take no part in a Pareto front: one answer for all items is no result at any price."""
REFERENCE = "full"
"""Method that every board's ranking rests on: where it did not learn, the budget teaches nothing."""


@dataclass(frozen=True)
class CellContent:
    """Content of one cell of the board's table.

    Attributes:
        value: mean over seeds in the metric's unit, None if missing.
        sd: standard deviation over seeds, None below two.
        low: lower end of the 95 % interval, if there is one; ``high`` likewise.
        seeds: number of seeds behind the value.
        items: number of scored items behind the interval.
        interval: how the interval came about.
        why: typed reason of a missing value.
        delta: the value minus the column's ``minus`` metric.
        text: content of a field that is no number.
    """

    value: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    items: int | None = None
    interval: str = ""
    why: str = ""
    delta: float | None = None
    text: str = ""


@dataclass(frozen=True)
class ColumnHeader:
    """One column: its file entry and the definition behind it (None for a field)."""

    column: Column
    definition: MetricDef | None

    @property
    def key(self) -> str:
        """Unique name in machine-readable output."""
        return self.column.key


@dataclass(frozen=True)
class BoardRow:
    """One configuration.

    Attributes:
        labels: model, method, quantization, task, hardware, as shown.
        rank: first and last rank the data allow; None: unranked, and ``notes`` say why.
        learned: whether the row beats its own base; None for rows that do not train or have no samples.
        front: on the Pareto front.
        failed: seeds that did not end ``ok``: (seed, status, stage, reason).
        records: ids of the records behind the row.
        settings: learning rate, steps and others (:func:`reports.board.provenance_summary.row_settings`).
    """

    config: str
    labels: Mapping[str, str]
    cells: Mapping[str, CellContent]
    axes: tuple[CellContent, ...]
    status: str
    stage: str
    reason: str
    rank: tuple[int, int] | None
    learned: Learned | None
    front: bool
    baseline: bool
    seeds: tuple[Scalar, ...]
    failed: tuple[tuple[Scalar, str, str, str], ...]
    marks: tuple[str, ...]
    notes: tuple[str, ...]
    records: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Seeds of one configuration that ended alike, and not ``ok``."""

    row: BoardRow
    seeds: tuple[Scalar, ...]
    status: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Section:
    """Rows that may be compared with each other.

    Attributes:
        labels: the ``group_by`` labels they share.
        group: digest of the conditions they share.
        conditions: those conditions for people, in order.
        axes: the Pareto axes in use here.
        caption: how rows were ranked and what the front means.
    """

    labels: Mapping[str, str]
    group: str
    conditions: tuple[tuple[str, str], ...]
    rows: tuple[BoardRow, ...]
    axes: tuple[Quantity, ...]
    caption: str

    @property
    def title(self) -> str:
        """The shared labels, for people."""
        return " · ".join(self.labels.values())


@dataclass(frozen=True)
class BoardTable:
    """A finished board. Holds no time stamp: equal records give an equal value.

    Attributes:
        heads: the columns.
        not_run: planned cells without any record.
        planned: keys of all cells that should be there; None: not known.
        records: id to record, of all rows.
        trials: tuning trials of the same sweeps; they are no rows, since their test split was not read.
        silent: tables in which nothing could run. They are not shown; their cells are listed among the failures.
    """

    board: Board
    heads: tuple[ColumnHeader, ...]
    sections: tuple[Section, ...]
    about: About = field(default_factory=About)
    not_run: int = 0
    planned: tuple[str, ...] | None = None
    records: Mapping[str, Record] = field(default_factory=dict, repr=False)
    trials: tuple[Record, ...] = field(default=(), repr=False)
    silent: tuple[Section, ...] = ()

    @property
    def failures(self) -> list[Failure]:
        """Everything that did not end ``ok``; seeds that ended alike are listed together."""
        found: dict[tuple[int, str, str, str, str], Failure] = {}
        for number, section in enumerate((*self.sections, *self.silent)):
            for row in section.rows:
                for seed, status, stage, reason in row.failed:
                    place = (number, row.config, status, stage, reason)
                    known = found[place].seeds if place in found else ()
                    found[place] = Failure(row, (*known, seed), status, stage, reason)
        return list(found.values())


def build(
    board: Board, records: Iterable[Record], store: Store | None = None, *, planned: Iterable[str] | None = None
) -> BoardTable:
    """The board of these records.

    Args:
        board: what to show.
        records: all records of a store; corrected and repeated ones are sorted out here.
        store: location of their samples; None: no samples, so nothing is ranked and intervals are Wilson's.
        planned: keys of all cells that should be there; those without a record are counted on the board.

    Returns:
        The same value for the same records, in any order.
    """
    wanted = [
        (identity, record)
        for identity, record in current(records)
        if board.rows.keeps(sweep=record.sweep, **{axis: record.cell_view.label(axis) for axis in AXES})
    ]
    kept = [(identity, record) for identity, record in wanted if not is_trial(record)]
    trials = tuple(record for _, record in wanted if is_trial(record))
    by_id = dict(kept)
    samples = indexed_samples(store, by_id.values()) if store is not None else None
    evidence = Evidence(samples)
    timed = TimedRuns(record for _, record in wanted)
    rows = aggregate(frame(record for _, record in kept), samples, evidence, board.quantities | ARMS.keys())
    shared = lr_sensitivity.at_shared_rate(trials)
    parts: dict[tuple[tuple[str, ...], str], list[dict[str, Any]]] = {}
    for row in rows_of(rows):
        row |= lr_sensitivity.columns(by_id[row["records"][0]], shared)
        parts.setdefault((tuple(row[axis] for axis in board.group_by), row["group"]), []).append(row)
    ran = {part for part, members in parts.items() if any(row["status"] != "unsupported" for row in members)} or parts
    made = {part: _section(board, *part, parts[part], by_id, evidence, samples, timed) for part in sorted(parts)}
    made = {part: _only_learned(board, section) for part, section in made.items()}
    sections = tuple(section for part, section in made.items() if part in ran)
    silent = tuple(section for part, section in made.items() if part not in ran)
    keys = None if planned is None else tuple(sorted(set(planned)))
    not_run = len(set(keys) - {record.key for _, record in wanted}) if keys is not None else 0
    return BoardTable(board, _heads(board, sections), sections, describe(kept), not_run, keys, by_id, trials, silent)


# --- sections ------------------------------------------------------------------------------------
def _section(
    board: Board,
    labels: tuple[str, ...],
    group: str,
    members: list[dict[str, Any]],
    by_id: Mapping[str, Record],
    evidence: Evidence,
    samples: SampleSource | None,
    timed: TimedRuns,
) -> Section:
    learned = verdicts(members, by_id, evidence, samples)
    ranking = _of_learned(members, learned, rank_rows(members, board.rank, evidence))
    axes = _axes(board, members)
    times = _Times(members, by_id, timed)
    front = set[str]()
    if len(axes) > 1:
        sound = [row for row in members if row["config"] not in learned or learned[row["config"]].verdict != DEGENERATE]
        front = pareto_front(sound, [axis.column for axis in axes], board.rank, ranking, times.clearly_less)
    names = tell_apart([(row["config"], by_id[row["records"][0]].cell) for row in members])
    base = _baseline(board, members)
    versus = _differences(board, members, base, evidence, by_id)
    for config, key, found in _ratios(board, members, by_id, times):
        versus.setdefault(config, {})[key] = found
    rows = [
        BoardRow(
            config=row["config"],
            labels={axis: row[axis] for axis in AXES} | names[row["config"]] | _variant(row, by_id),
            cells={c.key: _shown(row, c, versus.get(row["config"], {})) for c in board.columns if c.quantity},
            axes=tuple(_value(row, axis.column) for axis in axes),
            status=row["status"],
            stage=row["stage"],
            reason=row["reason"],
            rank=ranking.ranks.get(row["config"]),
            learned=learned.get(row["config"]),
            front=row["config"] in front,
            baseline=base is not None and row["config"] == base["config"],
            seeds=row["seeds"],
            failed=row["failed"],
            marks=row["marks"],
            notes=_notes(row, ranking, len(members)),
            records=row["records"],
            settings=row_settings([by_id[i] for i in row["ok_records"] or row["records"]]),
        )
        for row in members
    ]
    captions = [
        ranking.caption,
        front_caption([_words(a) for a in axes], board.rank) if front else "",
        times.caption() if any(c.metric == "step_ms" for c in board.columns) else "",
        lr_sensitivity.caption(members),
    ]
    alike = comparable(by_id[members[0]["records"][0]])
    return Section(
        labels=dict(zip(board.group_by, labels, strict=True)),
        group=group,
        conditions=conditions(alike, [by_id[i] for row in members for i in row["records"]]),
        rows=tuple(sorted(rows, key=lambda row: _order(board, row))),
        axes=axes,
        caption=" ".join(text for text in captions if text),
    )


class _Times:
    """Runs of a section's rows, repeated ones included, with the A/A arms of their sweep."""

    def __init__(self, members: Sequence[Mapping[str, Any]], by_id: Mapping[str, Record], timed: TimedRuns) -> None:
        firsts = {row["config"]: by_id[row["ok_records"][0]] for row in members if row["ok_records"]}
        self.runs = {config: timed.of(record) for config, record in firsts.items()}
        self.identical = timed.identical(next(iter(firsts.values()))) if firsts else []

    def caption(self) -> str:
        return caption(list(self.runs.values()), self.identical)

    def clearly_less(self, configs: Sequence[str], axis: str) -> NDArray[np.float64]:
        def value(record: Record) -> float | None:
            return value_of(record, axis)

        return clearly_less([self.runs[config] for config in configs], value, aa_floor(self.identical, value))


def _only_learned(board: Board, section: Section) -> Section:
    """Rows whose verdict the board's filter keeps; rows without one stay only under the pattern ``*``."""
    if board.rows.learned == ("*",):
        return section
    kept = [row for row in section.rows if board.rows.keeps(learned=row.learned.verdict if row.learned else "")]
    return replace(section, rows=tuple(kept))


def _of_learned(members: Sequence[Mapping[str, Any]], learned: Mapping[str, Learned], ranking: Ranking) -> Ranking:
    """The ranking, withheld where full fine-tuning, the reference of every method, did not learn itself."""
    reference = [row["config"] for row in members if row["method"] == REFERENCE and row["quantization"] == "none"]
    failed = [learned[c] for c in reference if c in learned and learned[c].verdict != "learned"]
    if not failed:
        return ranking
    why = f"{NOT_LEARNED} ({failed[0].verdict}: {failed[0].why})"
    if not ranking.ranks:
        return replace(ranking, caption=f"{ranking.caption} {why[0].upper()}{why[1:]}.")
    unranked = {**ranking.unranked, **dict.fromkeys(ranking.ranks, NOT_LEARNED)}
    return Ranking(unranked=unranked, caption=f"Unranked: {why}.")


def _words(axis: Quantity) -> str:
    return axis.definition.label + (f" of {axis.stage}" if axis.stage else "")


def _order(board: Board, row: BoardRow) -> tuple[object, ...]:
    """Ranked rows first, best first; then unranked ones with a value; then those without."""
    sort_by = row.cells.get(board.sort) or CellContent()
    sign = -1.0 if METRICS[board.sort].better == "higher" else 1.0
    value = math.inf if sort_by.value is None else sign * sort_by.value
    place = 2 if row.status != "ok" else (1 if row.marks else 0)
    return (place, value, row.status, row.labels["method"], row.labels["quantization"], row.config)


def _axes(board: Board, members: Sequence[Mapping[str, object]]) -> tuple[Quantity, ...]:
    """Of every Pareto axis the first kind that any row of the section has."""
    chosen = []
    for axis in board.pareto:
        having = [q for q in axis.quantities if any(has(row, q.column) for row in members)]
        chosen += having[:1]
    return tuple(chosen) if len(chosen) == len(board.pareto) else ()


def _baseline(board: Board, members: Sequence[dict[str, object]]) -> dict[str, object] | None:
    if board.baseline is None:
        return None
    wanted = (board.baseline.method, board.baseline.quantization)
    found = [row for row in members if (row["method"], row["quantization"]) == wanted and row["status"] == "ok"]
    return found[0] if len(found) == 1 else None  # two that answer to the name: neither is *the* baseline


def _differences(
    board: Board,
    members: Sequence[dict[str, Any]],
    base: dict[str, Any] | None,
    evidence: Evidence,
    by_id: Mapping[str, Record],
) -> dict[str, dict[str, CellContent]]:
    """Config to column key to the difference from the baseline."""
    out: dict[str, dict[str, CellContent]] = {}
    runs = {row["config"]: [by_id[i] for i in row["ok_records"]] for row in members}
    for column in board.columns:
        if column.difference is None or column.quantity is None:
            continue
        name = column.quantity.column
        compared = differences(members, name, base["config"], evidence, runs) if base is not None else {}
        for row in members:
            out.setdefault(row["config"], {})[column.key] = _difference(row, base, name, compared)
    return out


def _difference(
    row: Mapping[str, Any], base: Mapping[str, object] | None, name: str, compared: Mapping[str, TestedEffect]
) -> CellContent:
    if base is None or not has(base, name):
        return CellContent(why="no_baseline")
    if row["config"] == base["config"]:
        return CellContent(text="baseline")
    if not has(row, name):
        return CellContent(why=_value(row, name).why)
    seeds = int(row[f"{name}:n"])
    tested = compared.get(row["config"])
    if tested is None:
        return CellContent(value=row[name] - base[name], seeds=seeds)
    return CellContent(tested.effect, None, tested.low, tested.high, seeds, tested.items, tested.method)


def _variant(row: Mapping[str, Any], by_id: Mapping[str, Record]) -> dict[str, str]:
    """The label of the row's variant; nothing for the plain one."""
    label = by_id[row["records"][0]].cell_view.label("variant")
    return {"variant": label} if label else {}


def _ratios(
    board: Board, members: Sequence[Mapping[str, Any]], by_id: Mapping[str, Record], times: _Times
) -> Iterable[tuple[str, str, CellContent]]:
    """Config, column key and the ratio to the row with the plain variant, for columns that show it."""
    plain = {(row["method"], row["quantization"], row["model"]): row for row in members if not _variant(row, by_id)}
    for column in (c for c in board.columns if c.show == "ratio_to_plain" and c.quantity):
        for row in members:
            label = _variant(row, by_id).get("variant", "")
            base = plain.get((row["method"].removesuffix(f"+{label}"), row["quantization"], row["model"]))
            yield row["config"], column.key, _ratio(column, row, base, times)


def _ratio(column: Column, row: Mapping[str, Any], base: Mapping[str, object] | None, times: _Times) -> CellContent:
    assert column.quantity is not None
    if base is None or base is row:
        return CellContent(text="plain") if base is row else CellContent(why="no_baseline")
    name = column.quantity.column
    of_row, of_base = (times.runs.get(one["config"], []) for one in (row, base))
    found = ratio(of_row, of_base, lambda record: value_of(record, name), identical=times.identical)
    if found is None:
        return CellContent(why=_value(row, name).why or _value(base, name).why)
    return CellContent(found.ratio, None, found.low, found.high, len(row["seeds"]), interval=found.method)


def _value(row: Mapping[str, Any], name: str) -> CellContent:
    """The aggregated quantity ``name`` of a row."""

    value = _number(row, name)
    if value is None:
        why = row.get(f"{name}:why")
        return CellContent(why=why if isinstance(why, str) and why else "not_measured")
    items, low = _number(row, f"{name}:items"), _number(row, f"{name}:low")
    return CellContent(
        value=value,
        sd=_number(row, f"{name}:sd"),
        low=low,
        high=_number(row, f"{name}:high"),
        seeds=int(row[f"{name}:n"]),
        items=None if items is None else int(items),
        interval=str(row.get(f"{name}:interval") or "") if low is not None else "",
    )


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, float) and not math.isnan(value) else None


def _shown(row: Mapping[str, Any], column: Column, versus: Mapping[str, CellContent]) -> CellContent:
    assert column.quantity is not None
    if column.difference or column.show == "ratio_to_plain":
        return versus[column.key]
    shown = _value(row, column.quantity.column)
    if column.minus and shown.value is not None and has(row, column.minus):
        return CellContent(**{**shown.__dict__, "delta": shown.value - row[column.minus]})
    return shown


def _notes(row: Mapping[str, Any], ranking: Ranking, rows: int) -> tuple[str, ...]:
    notes = []
    if len(row["seeds"]) == 1:
        notes.append("one seed: a single run, not ranked")
    notes += [
        f"seed {seed}: {status} at {stage or 'start'}" for seed, status, stage, _ in row["failed"] if row["seeds"]
    ]
    if row["stacks"] > 1:
        notes.append(f"seeds ran on {row['stacks']} different software stacks")
    notes += [MARK_WORDS.get(mark, mark) for mark in row["marks"]]
    notes += row["remarks"]
    if has(row, "cut_items") and row["cut_items"] > 0:
        notes.append(f"{row['cut_items']:g} inputs a seed were longer than the context and were cut")
    why = ranking.unranked.get(row["config"])
    if why and why != ONE_SEED and row["status"] == "ok" and rows > 1:
        notes.append(f"unranked: {why}")
    return tuple(notes)


MARK_WORDS = {
    "imported": "not run here",
    "throttled": "the device was throttled",
    "shared": "a foreign process used the device",
    "simulated": "energy and device state come from a simulated device",
    "halved": "trained in smaller batches than asked for, with more accumulation, because memory ran out",
    "outdated": "a newer version of its task or of the protocol has been run",
}
"""Reasons why a row is shown and not ranked, in words."""


def _heads(board: Board, sections: Sequence[Section]) -> tuple[ColumnHeader, ...]:
    """The columns, without optional ones that no row has a value for."""
    rows = [row for section in sections for row in section.rows]
    return tuple(
        ColumnHeader(column, column.quantity.definition if column.quantity else None)
        for column in board.columns
        if not column.optional or any(row.cells[column.key].value is not None for row in rows)
    )
