"""Ways to follow a board from outside: an Atom feed of its changes, and a badge.

Both are made from records alone, so equal records give equal bytes. Dates are those of the records; there is no
"now" in a file.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from harness.digests import digest
from harness.metrics import METRICS
from harness.record import Record
from reports.board.board import BoardTable
from reports.board.formats.text import plain, scale
from reports.data.frame import configuration, is_trial

ATOM = "http://www.w3.org/2005/Atom"
EPOCH = "1970-01-01T00:00:00+00:00"
MOST_ENTRIES = 100
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def atom(table: BoardTable, records: Sequence[Record], *, site: str = "") -> str:
    """An Atom feed (RFC 4287) of what was added or changed, newest first.

    The first record of a cell is a new row; a later one changes it, and its entry says from what to what.

    Args:
        table: the board, for its title.
        records: all records of its cells, earlier ones included.
        site: address the board is published at; "" gives entries no links.
    """
    ET.register_namespace("", ATOM)
    feed = ET.Element(f"{{{ATOM}}}feed")
    shown = [record for record in records if not is_trial(record)]
    entries = sorted(_entries(table, shown), key=lambda entry: (entry[0], entry[1]), reverse=True)[:MOST_ENTRIES]
    _add(feed, "id", f"urn:peft-matrix:board:{quote(table.board.name)}:{digest(table.board.title)[:16]}")
    _add(feed, "title", plain(table.board.title, 200))
    _add(feed, "updated", entries[0][0] if entries else EPOCH)
    _add(_add(feed, "author"), "name", "peft-matrix")
    if site:
        _add(feed, "link", href=site, rel="alternate")
    for updated, identity, title, summary in entries:
        entry = _add(feed, "entry")
        _add(entry, "id", f"urn:sha256:{identity}")
        _add(entry, "title", title)
        _add(entry, "updated", updated)
        _add(entry, "summary", summary)
        if site:
            _add(entry, "link", href=f"{site.rstrip('/')}/#{identity[:12]}", rel="alternate")
    ET.indent(feed)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(feed, encoding="unicode") + "\n"


def _entries(table: BoardTable, records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    """(date, record id, title, summary) of every record of a cell on the board."""
    wanted = {record.key for record in table.records.values()}
    histories: dict[str, list[tuple[str, str, Record]]] = {}
    for record in records:
        if record.key in wanted:
            histories.setdefault(record.key, []).append((_date(record.finished), record.id, record))
    out = []
    for history in histories.values():
        history.sort(key=lambda one: one[:2])
        before: Record | None = None
        for date, identity, record in history:
            kind = "New" if before is None else "Changed"
            out.append((date, identity, f"{kind}: {plain(record.label, 120)}", _summary(table, record, before)))
            before = record
    return out


def _summary(table: BoardTable, record: Record, before: Record | None) -> str:
    origin = " Not run here." if record.environment_view.imported else ""
    now = _result(table, record)
    if before is None:
        return f"{now}.{origin}"
    stack = "" if before.fingerprint == record.fingerprint else " The software or machine differs."
    return f"{now}; before: {_result(table, before)}.{stack}{origin}"


def _result(table: BoardTable, record: Record) -> str:
    """Status, and the board's main metric or the reason."""
    if record.outcome.status != "ok":
        stage = f" at {plain(record.outcome.stage, 20)}" if record.outcome.stage else ""
        return f"{record.outcome.status}{stage}: {plain(record.outcome.reason, 300) or 'no reason was recorded'}"
    found = record.metrics.get(table.board.sort)
    if found is None or found.value is None:
        return "ok"
    definition = METRICS[table.board.sort]
    chosen = scale(definition, [found.value])
    return f"{definition.label} {chosen.text(found.value)} {chosen.unit}".rstrip()


def _date(text: str) -> str:
    """A date as RFC 3339 in UTC; the epoch where a record has none."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return EPOCH
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return when.astimezone(UTC).isoformat(timespec="seconds")


def _add(parent: ET.Element, name: str, text: str = "", **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, f"{{{ATOM}}}{name}", attributes)
    if text:
        element.text = _NOT_XML.sub("\ufffd", text)
    return element


def badge(table: BoardTable) -> str:
    """A badge in the JSON that shields.io reads from an endpoint: rows of the board with a result, of all.

    Green where every planned cell has run and ended ok or unsupported, yellow otherwise, grey without rows.
    """
    rows = [row for section in table.sections for row in section.rows]
    ok = sum(row.status == "ok" for row in rows)
    broken = table.not_run or any(row.status not in ("ok", "unsupported") or (row.failed and row.seeds) for row in rows)
    cells = len({configuration(record) for record in table.records.values()})
    content = {
        "schemaVersion": 1,
        "label": f"board {plain(table.board.title.partition(':')[0], 40)}",
        "message": f"{ok} of {cells} rows have results" if rows else "no records",
        "color": "lightgrey" if not rows else ("yellow" if broken else "brightgreen"),
    }
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
