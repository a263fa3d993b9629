"""Input of the checks: the files of a folder, and the board as its records give it now."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.record import Record
from harness.store.store import Damage, Store
from reports.board.board import Board, BoardTable, build
from reports.board.figures import Drawing, LeftOut, draw_all

FORMATS = ("board.md", "board.csv", "board.json", "board.tex", "board.html", "lbom.json")


@dataclass(frozen=True)
class Smell:
    """One finding: which smell, in which file or row, and what is wrong."""

    smell: str
    where: str
    what: str


@dataclass(frozen=True)
class Files:
    """A board's folder and the records behind it.

    Attributes:
        content: ``board.json``.
        bill: ``lbom.json``; ``{}`` where it cannot be read.
        records: all readable records of the board's cells that the store holds now.
        table: the board that those records give.
        drawn: its figures; ``left_out`` those without data.
    """

    folder: Path
    store: Store
    content: Mapping[str, Any]
    bill: Mapping[str, Any]
    records: Mapping[str, Record]
    damaged: tuple[Damage, ...]
    table: BoardTable
    drawn: tuple[Drawing, ...]
    left_out: tuple[LeftOut, ...]

    def text(self, name: str) -> str:
        """Content of a file of the folder, "" where there is none."""
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    @cached_property
    def page(self) -> Page:
        """The HTML page, read."""
        return Page(self.text("board.html"))

    @cached_property
    def csv_rows(self) -> list[dict[str, str]]:
        """Lines of the CSV by its header."""
        csv.field_size_limit(10_000_000)
        return list(csv.DictReader(io.StringIO(self.text("board.csv"))))

    @cached_property
    def markdown_tables(self) -> list[list[list[str]]]:
        """Tables of the Markdown: header and rows, each a list of places as text."""
        return markdown_tables(self.text("board.md"))

    @property
    def rows(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Rows of ``board.json`` with the number of their section."""
        return [(number, row) for number, part in enumerate(self.content["sections"]) for row in part["rows"]]


Built = tuple[BoardTable, Sequence[Drawing], Sequence[LeftOut]]
"""A board and its figures."""


def read_folder(folder: Path, store: Store, built: Built | None = None) -> Files:
    """A folder, and the board made again from the store unless it was just ``built``.

    Raises:
        UserError: no readable ``board.json``.
    """
    content = _json(folder / "board.json")
    if not isinstance(content, dict) or not {"board", "sections", "columns", "about"} <= set(content):
        raise UserError(
            "there is no board here", where=str(folder / "board.json"), fix="Draw it first: peft-matrix board SWEEP."
        )
    bill = _json(folder / "lbom.json")
    bill = bill if isinstance(bill, dict) else {}
    planned = (bill.get("cells") or {}).get("planned")
    keys = planned or sorted({one["key"] for one in (bill.get("records") or {}).values()}) or None
    drawn: Sequence[Drawing]
    left_out: Sequence[LeftOut]
    if built is None:
        records, damaged = store.records(keys)
        board = Board.model_validate(content["board"])
        try:
            table = build(board, records, store, planned=planned)
        except UserError as error:  # samples that cannot be read: named, and the rest is still checked
            damaged.append(Damage(error.where, error.what))
            table = build(board, records, planned=planned)
        drawn, left_out = draw_all(table)
        by_id = {record.id: record for record in records}
    else:
        table, drawn, left_out = built
        by_id, damaged = dict(table.records), []
    return Files(folder, store, content, bill, by_id, tuple(damaged), table, tuple(drawn), tuple(left_out))


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# --- Markdown ------------------------------------------------------------------------------------
def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every table: its header and rows without the line of dashes; escapes and footnotes resolved."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
            inside = True
        if not re.fullmatch(r"[|:\- ]+", line):
            tables[-1].append([_unescaped(part) for part in re.split(r"(?<!\\)\|", line)[1:-1]])
    return tables


def _unescaped(text: str) -> str:
    text = re.sub(r"<sup>\d+</sup>", "", text)
    return html.unescape(re.sub(r"\\([\\`*_{}\[\]|~#!])", r"\1", text)).strip()


# --- HTML ----------------------------------------------------------------------------------------
@dataclass
class TableCell:
    """One place of a table of the page: its text and what it is sorted by."""

    sort: str
    text: str = ""


@dataclass
class Line:
    """One row of a table of the page."""

    classes: tuple[str, ...]
    places: list[TableCell] = field(default_factory=list)


class Page(HTMLParser):
    """Addresses, ids, header tips and the board tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.complete = text.rstrip().endswith("</html>")
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tips: list[str] = []
        self.tables: list[list[Line]] = []
        self._in_board = self._in_body = False
        self._place: TableCell | None = None
        self._quiet = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            if name in given:
                self.addresses.append(given[name])
        classes = tuple(given.get("class", "").split())
        if tag == "table" and "board" in classes:
            self._in_board = True
            self.tables.append([])
        elif tag == "tbody":
            self._in_body = self._in_board
        elif tag == "button" and "sort" in classes:
            self.tips.append(given.get("data-tip", ""))
        elif self._in_body and tag == "tr":
            self.tables[-1].append(Line(classes))
        elif self._in_body and tag in ("td", "th") and "data-sort" in given:
            self._place = TableCell(given["data-sort"])
            self.tables[-1][-1].places.append(self._place)
        elif self._place is not None and tag in ("span", "button"):
            beside = bool(set(classes) & {"aside", "chip", "note", "sr"})
            self._quiet += 1 if beside or self._quiet else 0

    def handle_endtag(self, tag: str) -> None:
        """Leave what was entered."""
        if tag == "table":
            self._in_board = self._in_body = False
        elif tag in ("td", "th"):
            self._place, self._quiet = None, 0
        elif tag in ("span", "button") and self._quiet:
            self._quiet -= 1

    def handle_data(self, data: str) -> None:
        """Main text of a table cell, without the lighter text."""
        if self._place is not None and not self._quiet:
            self._place.text = (self._place.text + data).strip()
