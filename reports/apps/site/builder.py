"""Records to a folder of static pages. Nothing is fetched, nothing is run, and equal records give equal bytes.

Use: ``build_site([Part("quickstart", board, keys)], Store("results"), Path("site"))``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.digests import digest, digest_file
from harness.errors import UserError
from harness.record import Record
from harness.store.store import Damage, Store
from reports.apps.site import cellpage, rowpage
from reports.apps.site.answer import card
from reports.apps.site.boarddata import board_data, pairs_data
from reports.apps.site.claimspage import read_claims
from reports.apps.site.history import trends_data, tuning_data
from reports.apps.site.text import line, page_name, script
from reports.board.board import Board, BoardTable, build
from reports.board.checks import Smell, referee
from reports.board.formats.files import texts
from reports.board.formats.text import columns, failure_line, not_run_line
from reports.data.frame import AXES
from reports.data.samples import indexed_samples

HERE = Path(__file__).parent
MANIFEST = "site.json"
"""Lists the files of a site, so that a rebuild removes what it wrote before and nothing else. For each cell page it has
digests of what the page was drawn from and of its bytes, so that a rebuild draws only what changed."""

SWEEP_PAGES = ("index", "matrix", "compare", "tuning", "trends", "failures", "about")
DOWNLOADS = (("board.csv", "CSV"), ("board.json", "JSON"), ("board.md", "Markdown"), ("board.tex", "LaTeX"))
BY_DESIGN = "unsupported"


@dataclass(frozen=True)
class Part:
    """One sweep of the site.

    Attributes:
        name: name of the sweep, as its records carry it.
        board: what its table shows.
        keys: keys of the planned cells, so that those without a record are counted; None: not known.
    """

    name: str
    board: Board
    keys: Sequence[str] | None = None


@dataclass(frozen=True)
class Site:
    """Summary of the written files.

    Attributes:
        files: paths below ``out``, sorted.
        boards: how many there are.
        rows: rows over all of them.
        cells: cell pages.
        damaged: records that could not be read and are on no page.
        objections: name of a sweep and what a referee objects to on its board; the board's page lists them.
    """

    out: Path
    files: tuple[str, ...]
    boards: int
    rows: int
    cells: int
    damaged: tuple[Damage, ...] = field(default=())
    objections: tuple[tuple[str, Smell], ...] = field(default=())


Write = Callable[[str, str | bytes], None]


def build_site(
    parts: Sequence[Part],
    store: Store,
    out: Path,
    *,
    claims: Path | None = None,
    methods: Mapping[str, Mapping[str, str]] | None = None,
) -> Site:
    """Write the site of these sweeps into ``out``.

    A cell page of an earlier site in ``out`` is kept where its records, its settings and this program are the same; of
    all files only those whose bytes change are written.

    Args:
        claims: a report of ``peft-matrix reproduce --json``; without it the page says that none were checked.
        methods: registered name to ``summary``, ``paper`` (arXiv id) and ``family``, for the pages of methods.

    Raises:
        UserError: ``out`` holds other files, cannot be written, or the claims report is none.
    """
    records, damaged = store.records()
    named = [(record.id, record) for record in records]
    built = []
    for part in parts:
        own = [(identity, record) for identity, record in named if record.sweep == part.name]
        table = build(part.board, [record for _, record in own], store, planned=part.keys)
        built.append((part, table, own))
    report = read_claims(claims)
    files: dict[str, bytes] = {}

    def write(path: str, content: str | bytes) -> None:
        files[path] = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")

    write_assets(write)
    pages = _Pages(write, claims=report, methods=methods or {}, earlier=_Earlier(out))
    cells = 0
    for part, table, own in built:
        cells += pages.sweep(part, table, own, store)
    pages.top([(part, table) for part, table, _ in built])
    _replace(out, files, pages.inputs)
    rows = sum(len(section.rows) for _, table, _ in built for section in table.sections)
    return Site(out, tuple(sorted(files)), len(built), rows, cells, tuple(damaged), tuple(pages.objections))


def write_assets(write: Write) -> None:
    """The scripts and the style sheet."""
    for path in sorted((HERE / "static").iterdir()):
        if path.suffix in (".css", ".js"):
            write(f"assets/{path.name}", path.read_bytes())


class _Earlier:
    """Cell pages of the site that is in a folder already."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._pages: dict[str, object] = {}
        try:
            found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["pages"]
            self._pages = found if isinstance(found, dict) else {}
        except (OSError, ValueError, KeyError, TypeError):  # no site, or one without digests: every page is drawn
            return

    def page(self, path: str, inputs: str) -> bytes | None:
        """The bytes of a page that was drawn from these inputs; None if it was not, or was changed since."""
        known = self._pages.get(path)
        try:
            if not isinstance(known, list) or known[0] != inputs:
                return None
            data = (self._out / path).read_bytes()
            return data if hashlib.sha256(data).hexdigest() == known[1] else None
        except (OSError, IndexError):
            return None


@functools.cache
def _program() -> str:
    """Digest of the code and the templates that pages are drawn with."""
    packages = (HERE.parents[1], HERE.parents[2] / "harness")
    sources = sorted(path for folder in packages for path in folder.rglob("*") if path.suffix in (".py", ".j2"))
    return digest([[path.name, digest_file(path)] for path in sources])


def _replace(out: Path, files: Mapping[str, bytes], inputs: Mapping[str, str]) -> None:
    """Write the files that changed; those of an earlier site in the same folder that are no more go away."""
    manifest = out / MANIFEST
    try:
        if manifest.is_file():
            for path in set(_listed(manifest)) - set(files):
                (out / path).unlink(missing_ok=True)
        elif out.is_dir() and any(out.iterdir()):
            raise UserError(
                "the folder holds files that are no site of ours", where=str(out), fix="Name a new or an empty folder."
            )
        for path, content in sorted(files.items()):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            if not ((out / path).is_file() and (out / path).read_bytes() == content):
                (out / path).unlink(missing_ok=True)  # a link is replaced, not written through
                (out / path).write_bytes(content)
        pages = {path: [inputs[path], hashlib.sha256(files[path]).hexdigest()] for path in sorted(inputs)}
        manifest.write_text(json.dumps({"files": sorted(files), "pages": pages}, indent=1) + "\n", encoding="utf-8")
        for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                shutil.rmtree(folder)
    except OSError as error:
        what = f"the site cannot be written: {error.strerror or error}"
        raise UserError(what, where=str(out), fix="Name another folder: --out DIR.") from error


def _listed(manifest: Path) -> list[str]:
    """Files of an earlier site; only names below its folder count."""
    try:
        names = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("not a list of a site's files", where=str(manifest), fix="Name a new folder.") from error
    root = manifest.parent.resolve()
    return [name for name in names if isinstance(name, str) and (root / name).resolve().is_relative_to(root)]


class _Pages:
    """Renders pages; the only place that knows their names and templates."""

    def __init__(
        self,
        write: Write,
        *,
        claims: Mapping[str, object] | None,
        methods: Mapping[str, Mapping[str, str]],
        earlier: _Earlier,
    ) -> None:
        self._write = write
        self._claims = claims
        self._methods = methods
        self._entries: list[dict[str, Any]] = []
        self._earlier = earlier
        self.inputs: dict[str, str] = {}
        self.objections: list[tuple[str, Smell]] = []
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def _page(self, path: str, template: str, **values: object) -> None:
        text = self._templates.get_template(f"{template}.html.j2").render(root="../" * path.count("/"), **values)
        self._write(path, text + "\n")

    def sweep(self, part: Part, table: BoardTable, own: Sequence[tuple[str, Record]], store: Store) -> int:
        """All pages of one sweep; how many of them are cell pages."""
        folder = page_name(part.name)
        names = cell_pages(table)
        records = [record for _, record in own]
        tuned, trends = tuning_data(table), trends_data(own)
        grouped = failures(table, names)
        objections = referee(table, store)
        self.objections += [(part.name, one) for one in objections]
        shared = {
            "sweep": line(part.name, 120),
            "title": line(table.board.title, 200),
            "claims": self._claims,
            "tabs": tabs(table, tuned=bool(tuned), trends=bool(trends["cells"]), failed=bool(grouped)),
        }
        self._write(
            f"{folder}/data.js",
            script("board", board_data(table, names, {n: one["family"] for n, one in self._methods.items()})),
        )
        self._write(f"{folder}/pairs.js", script("pairs", pairs_data(table, own, indexed_samples(store, records))))
        self._write(f"{folder}/tuning.js", script("tuning", tuned))
        self._write(f"{folder}/trends.js", script("trends", trends))
        for name, content in texts(table, (), ()).items():
            self._write(f"{folder}/{name}", content)
        values = {
            "board": table.board,
            "summary": line(table.board.summary, 1000),
            "about": [(name, line(text, 4000)) for name, text in table.about.facts],
            "digest": table.about.digest,
            "columns": [(column.header, column.meaning, column.key) for column in columns(table)],
            "sections": [
                (section.title, section.conditions, section.caption, len(section.rows)) for section in table.sections
            ],
            "failures": grouped,
            "downloads": DOWNLOADS,
            "objections": [line(f"{one.where}: {one.what}", 300) for one in objections],
            "regressions": rowpage.regressions(store, part.name) if trends["cells"] else None,
            "not_run": not_run_line(table),
            "trials": len(table.trials),
            "tuned": len(tuned),
            "trends": trends,
            "rows": sum(len(section.rows) for section in table.sections),
            "statuses": statuses(table),
        }
        for page in SWEEP_PAGES:
            template = {"index": "board", "tuning": "curves", "trends": "curves"}.get(page, page)
            self._page(f"{folder}/{page}.html", template, here=page, **shared, **values)
        self._rows(folder, table, names, shared)
        self._cells(folder, table, own, store, names, shared)
        return len(names)

    def _rows(self, folder: str, table: BoardTable, names: Mapping[str, str], shared: Mapping[str, object]) -> None:
        """A page per configuration, with all its seeds, and its line on the page of its method and in the search."""
        shown = columns(table)
        for section in table.sections:
            for row in section.rows:
                found = rowpage.describe(table, section, row, names, shown)
                page = f"{folder}/rows/{page_name(row.config)}.html"
                self._page(page, "group", here="row", **found, **shared)
                entry = rowpage.entry(table, section, row, shown) | {"board": shared["sweep"], "folder": folder}
                self._entries.append(entry)

    def _cells(
        self,
        folder: str,
        table: BoardTable,
        own: Sequence[tuple[str, Record]],
        store: Store,
        names: Mapping[str, str],
        shared: Mapping[str, object],
    ) -> None:
        by_key: dict[str, list[tuple[str, Record]]] = {}
        for identity, record in own:
            by_key.setdefault(record.key, []).append((identity, record))
        common = digest([_program(), json.dumps(shared, sort_keys=True, default=str)])
        for section in table.sections:
            for row in section.rows:
                group = [(i, table.records[i]) for i in row.records]
                siblings = [
                    {"seed": line(r.cell_view.seed, 20), "page": names[i], "status": r.outcome.status} for i, r in group
                ]
                for identity, record in group:
                    page = names[identity]
                    link = f"../compare.html#s={section.group}&rows={row.config}"
                    attempts = sorted(other for other, _ in by_key[record.key])
                    inputs = digest([common, identity, siblings, attempts, page, link])
                    if self._kept((f"{folder}/cells/{page}.html", f"{folder}/cells/{page}.js"), inputs):
                        continue
                    samples = cellpage.samples_data(record, store)
                    cell = cellpage.describe(
                        record,
                        identity,
                        siblings=siblings,
                        attempts=by_key[record.key],
                        shown_samples=[{k: v for k, v in arm.items() if k != "rows"} for arm in samples],
                    )
                    self._page(
                        f"{folder}/cells/{page}.html",
                        "cell",
                        here="cell",
                        cell=cell,
                        page=page,
                        row_page=page_name(row.config),
                        compare=link,
                        **shared,
                    )
                    data = {"series": cellpage.series_data(record), "samples": samples}
                    self._write(f"{folder}/cells/{page}.js", script("cell", data))

    def _kept(self, paths: Sequence[str], inputs: str) -> bool:
        """Whether all these pages were drawn from these inputs before; they are then taken over."""
        self.inputs.update(dict.fromkeys(paths, inputs))
        found = [self._earlier.page(path, inputs) for path in paths]
        for path, content in zip(paths, found, strict=True):
            if content is not None and None not in found:
                self._write(path, content)
        return None not in found

    def top(self, built: Sequence[tuple[Part, BoardTable]]) -> None:
        """The overview with its search, a page per method, and the claims page."""
        shared = {"claims": self._claims, "sweep": "", "title": "", "tabs": ()}
        self._page("index.html", "index", here="overview", boards=[_overview(*one) for one in built], **shared)
        self._page("claims.html", "claims", here="claims", **shared)
        self._write("search.js", script("search", [rowpage.search_line(entry) for entry in self._entries]))
        methods: dict[str, list[dict[str, Any]]] = {}
        for entry in self._entries:
            methods.setdefault(entry["method"], []).append(entry)
        for name, rows in sorted(methods.items()):
            unknown = {"summary": "", "paper": "", "family": ""}
            about = self._methods.get(rows[0]["registered"], unknown)
            values = {"name": name, "rows": rows, "about": about, "boards": len({row["folder"] for row in rows})}
            self._page(f"methods/{rows[0]['method_page']}.html", "group", here="method", **values, **shared)


def cell_pages(table: BoardTable) -> dict[str, str]:
    """Record id to the name of its page: the cell's key, so that links stay valid; with a suffix where a key occurs
    twice.
    """
    keys = Counter(record.key for record in table.records.values())
    return {
        identity: page_name(record.key) if keys[record.key] == 1 else f"{page_name(record.key)}-{identity[:8]}"
        for identity, record in sorted(table.records.items())
    }


def statuses(table: BoardTable) -> list[tuple[str, int]]:
    """Number of cells by status."""
    counts = Counter[str](record.outcome.status for record in table.records.values())
    counts["not run"] = table.not_run
    return sorted((status, number) for status, number in counts.items() if number)


def tabs(table: BoardTable, *, tuned: bool, trends: bool, failed: bool) -> list[str]:
    """The pages of a sweep that have something to show."""
    rows = [row for section in table.sections for row in section.rows]
    axes = [len({row.labels[axis] for row in rows}) for axis in ("method", "quantization")]
    there = {
        "matrix": min(axes, default=0) > 1,
        "compare": len(rows) > 1,
        "tuning": tuned,
        "trends": trends,
        "failures": failed or table.not_run > 0,
    }
    return [page for page in SWEEP_PAGES if there.get(page, True)]


def failures(table: BoardTable, names: Mapping[str, str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Every cell that did not end ``ok``, by reason: real failures first, then what cannot work by design."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for failure in table.failures:
        which, _, why = failure_line(failure)
        pages = [
            names[i]
            for i in failure.row.records
            if i in names
            and table.records[i].cell_view.seed in failure.seeds
            and table.records[i].outcome.status == failure.status
        ]
        key = (failure.status, line(failure.stage, 40), why)
        group = groups.setdefault(key, {"status": key[0], "stage": key[1], "why": why, "count": 0, "cells": []})
        group["count"] += len(failure.seeds)
        group["cells"].append((which, pages))
    ordered = sorted(groups.values(), key=lambda one: (-one["count"], one["status"], one["why"]))
    parts = (
        ("Failed", [one for one in ordered if one["status"] != BY_DESIGN]),
        ("Cannot work by design", [one for one in ordered if one["status"] == BY_DESIGN]),
    )
    return [(title, reasons) for title, reasons in parts if reasons]


def _overview(part: Part, table: BoardTable) -> dict[str, object]:
    axes = {axis: len({row.labels[axis] for s in table.sections for row in s.rows}) for axis in AXES}
    shown = columns(table)
    return {
        "name": line(part.name, 120),
        "folder": page_name(part.name),
        "title": line(table.board.title, 200),
        "cards": [
            card(table, section, {row.config: page_name(row.config) for row in section.rows}, shown)
            for section in table.sections
        ],
        "statuses": statuses(table),
        "axes": [(axis, number) for axis, number in axes.items() if number],
    }
