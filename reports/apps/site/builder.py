"""Records to a folder of static pages. Nothing is fetched, nothing is run, and equal records give equal bytes.

Use: ``build_site([Part("quickstart", board, keys)], Store("results"), Path("site"))``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.errors import UserError
from harness.record import Record
from harness.store.store import Damage, Store
from reports.apps.site import cellpage
from reports.apps.site.answer import card
from reports.apps.site.boarddata import board_data
from reports.apps.site.claimspage import read_claims
from reports.apps.site.history import trends_data, tuning_data
from reports.apps.site.text import line, page_name, script
from reports.board.board import Board, BoardTable, build
from reports.board.formats.text import columns, failure_line, not_run_line
from reports.data.frame import AXES

HERE = Path(__file__).parent
MANIFEST = "site.json"
"""Lists the files of a site, so that a rebuild removes what it wrote before and nothing else."""

SWEEP_PAGES = ("index", "matrix", "compare", "tuning", "trends", "failures", "about")


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
    """

    out: Path
    files: tuple[str, ...]
    boards: int
    rows: int
    cells: int
    damaged: tuple[Damage, ...] = field(default=())


Write = Callable[[str, str | bytes], None]


def build_site(parts: Sequence[Part], store: Store, out: Path, *, claims: Path | None = None) -> Site:
    """Write the site of these sweeps into ``out``.

    Args:
        claims: a report of ``peft-matrix reproduce --json``; without it the page says that none were checked.

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
    pages = _Pages(write, claims=report)
    cells = 0
    for part, table, own in built:
        cells += pages.sweep(part, table, own, store)
    pages.top([(part, table) for part, table, _ in built])
    _replace(out, files)
    rows = sum(len(section.rows) for _, table, _ in built for section in table.sections)
    return Site(out, tuple(sorted(files)), len(built), rows, cells, tuple(damaged))


def write_assets(write: Write) -> None:
    """Our scripts and style sheet, and the two libraries."""
    for path in sorted((HERE / "static").iterdir()):
        if path.suffix in (".css", ".js"):
            write(f"assets/{path.name}", path.read_bytes())
    for name, content in libraries().items():
        write(f"assets/{name}", content)


def _replace(out: Path, files: Mapping[str, bytes]) -> None:
    """Write the files; those of an earlier site in the same folder that are no more go away."""
    manifest = out / MANIFEST
    try:
        if manifest.is_file():
            for path in _listed(manifest):
                (out / path).unlink(missing_ok=True)
        elif out.is_dir() and any(out.iterdir()):
            raise UserError(
                "the folder holds files that are no site of ours", where=str(out), fix="Name a new or an empty folder."
            )
        for path, content in sorted(files.items()):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(content)
        manifest.write_text(json.dumps({"files": sorted(files)}, indent=1) + "\n", encoding="utf-8")
        for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(out)) from error


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

    def __init__(self, write: Write, *, claims: Mapping[str, Any] | None) -> None:
        self._write = write
        self._claims = claims
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def _page(self, path: str, template: str, **values: Any) -> None:
        text = self._templates.get_template(f"{template}.html.j2").render(root="../" * path.count("/"), **values)
        self._write(path, text + "\n")

    def sweep(self, part: Part, table: BoardTable, own: Sequence[tuple[str, Record]], store: Store) -> int:
        """All pages of one sweep; how many of them are cell pages."""
        folder = page_name(part.name)
        names = cell_pages(table)
        shared = {"sweep": line(part.name, 120), "title": line(table.board.title, 200), "claims": self._claims}
        self._write(f"{folder}/data.js", script("board", board_data(table, names)))
        self._write(f"{folder}/tuning.js", script("tuning", tuning_data(table)))
        trends = trends_data(own)
        self._write(f"{folder}/trends.js", script("trends", trends))
        values = {
            "board": table.board,
            "summary": line(table.board.summary, 1000),
            "about": [(name, line(text, 4000)) for name, text in table.about.facts],
            "digest": table.about.digest,
            "columns": [(column.header, column.meaning, column.key) for column in columns(table)],
            "sections": [
                (section.title, section.conditions, section.caption, len(section.rows)) for section in table.sections
            ],
            "failures": failures(table, names),
            "not_run": not_run_line(table),
            "trials": len(table.trials),
            "tuned": len(tuning_data(table)),
            "trends": trends,
            "rows": sum(len(section.rows) for section in table.sections),
            "statuses": statuses(table),
        }
        for page in SWEEP_PAGES:
            template = "board" if page == "index" else page
            self._page(f"{folder}/{page}.html", template, here=page, **shared, **values)
        self._cells(folder, table, own, store, names, shared)
        return len(names)

    def _cells(
        self,
        folder: str,
        table: BoardTable,
        own: Sequence[tuple[str, Record]],
        store: Store,
        names: Mapping[str, str],
        shared: Mapping[str, Any],
    ) -> None:
        by_key: dict[str, list[tuple[str, Record]]] = {}
        for identity, record in own:
            by_key.setdefault(record.key, []).append((identity, record))
        for section in table.sections:
            for row in section.rows:
                group = [(i, table.records[i]) for i in row.records]
                siblings = [
                    {"seed": line(r.cell.get("seed"), 20), "page": names[i], "status": r.outcome.status}
                    for i, r in group
                ]
                for identity, record in group:
                    samples = cellpage.samples_data(record, store)
                    cell = cellpage.describe(
                        record,
                        identity,
                        siblings=siblings,
                        attempts=by_key[record.key],
                        shown_samples=[{k: v for k, v in arm.items() if k != "rows"} for arm in samples],
                    )
                    page = names[identity]
                    link = f"../compare.html#s={section.group}&rows={row.config}"
                    self._page(
                        f"{folder}/cells/{page}.html", "cell", here="cell", cell=cell, page=page, compare=link, **shared
                    )
                    data = {"series": cellpage.series_data(record), "samples": samples}
                    self._write(f"{folder}/cells/{page}.js", script("cell", data))

    def top(self, built: Sequence[tuple[Part, BoardTable]]) -> None:
        """The overview and the claims page."""
        boards = [_overview(part, table) for part, table in built]
        self._page("index.html", "index", here="overview", boards=boards, claims=self._claims, sweep="", title="")
        self._page("claims.html", "claims", here="claims", claims=self._claims, sweep="", title="")


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


def failures(table: BoardTable, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every cell that did not end ``ok``, by status, with its reason and page."""
    found = []
    for failure in table.failures:
        which, _, why = failure_line(failure)
        pages = [
            names[i]
            for i in failure.row.records
            if table.records[i].cell.get("seed") in failure.seeds and table.records[i].outcome.status == failure.status
        ]
        found.append(
            {"which": which, "status": failure.status, "stage": line(failure.stage, 40), "why": why, "pages": pages}
        )
    return sorted(found, key=lambda one: (one["status"], one["why"], one["which"]))


def _overview(part: Part, table: BoardTable) -> dict[str, Any]:
    axes = {axis: len({row.labels[axis] for s in table.sections for row in s.rows}) for axis in AXES}
    return {
        "name": line(part.name, 120),
        "folder": page_name(part.name),
        "title": line(table.board.title, 200),
        "cards": [card(table, section, {}) for section in table.sections],
        "statuses": statuses(table),
        "axes": [(axis, number) for axis, number in axes.items() if number],
    }


_EXPORT = re.compile(r"export\{([^{}]*)\};")
_DEFAULT = re.compile(r"(?:^|,)\s*([\w$]+) as default\b")


def libraries() -> dict[str, bytes]:
    """File name below ``assets/`` to content: scripts, the grid's style sheet and the licences.

    Raises:
        UserError: a package is not installed, or holds something else than expected.
    """
    return {
        "plotly.js": _resource("plotly", "package_data/plotly.min.js"),
        "datatables.js": as_classic_script(_resource("itables", "html/dt_bundle.js").decode()).encode(),
        "datatables.css": _resource("itables", "html/dt_bundle.css"),
        "plotly-LICENSE.txt": _licence("plotly"),
        "itables-LICENSE.txt": _licence("itables"),
    }


def as_classic_script(module: str) -> str:
    """An ES module without imports as a classic script that sets ``globalThis.DataTable``.

    A page opened from ``file://`` may not load modules, since its origin is opaque.

    Raises:
        UserError: the module does not end in one export list with a default.
    """
    exports = _EXPORT.findall(module)
    default = _DEFAULT.search(exports[0]) if len(exports) == 1 else None
    if default is None:
        raise UserError(
            "its bundle of DataTables is not the module that was expected",
            where="package itables",
            fix="Install the version that constraints.txt names.",
        )
    name = default[1]
    body = _EXPORT.sub(lambda _: f"globalThis.DataTable={name};", module)
    return f'(()=>{{"use strict";\n{body}\n}})();\n'


def _resource(package: str, path: str) -> bytes:
    try:
        return files(package).joinpath(path).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"the page needs {path} of the package {package}, which is not there",
            fix=f"Install it: pip install {package}",
        ) from error


def _licence(package: str) -> bytes:
    for path in metadata.files(package) or ():
        if path.name.startswith("LICENSE") and "dist-info" in str(path):
            return path.read_binary()
    raise UserError("its licence text is not in its package", where=f"package {package}")
