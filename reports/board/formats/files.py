"""All formats of a board, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from json import loads
from pathlib import Path

from harness.errors import UserError
from reports.board import lbom
from reports.board.board import BoardTable
from reports.board.figures import Drawing, LeftOut, draw_all
from reports.board.formats import to_csv, to_html, to_json, to_latex, to_markdown


def contents(table: BoardTable, drawn: Sequence[Drawing], left_out: Sequence[LeftOut]) -> dict[str, bytes]:
    """File name to content of every format, every figure and the bill of materials."""
    files = {
        **texts(table, drawn, left_out),
        "board.html": to_html.render(table, drawn, left_out).encode(),
        **{f"{one.name}.{kind}": data for one in drawn for kind, data in one.files.items()},
    }
    return {**files, "lbom.json": lbom.render(table, {n: d for n, d in files.items() if n != "board.html"}).encode()}


def texts(table: BoardTable, drawn: Sequence[Drawing], left_out: Sequence[LeftOut]) -> dict[str, bytes]:
    """The formats whose bytes depend on the records alone, and not on the machine that draws."""
    return {
        "board.md": to_markdown.render(table, drawn, left_out).encode(),
        "board.csv": to_csv.render(table).encode(),
        "board.json": to_json.render(table, drawn, left_out).encode(),
        "board.tex": to_latex.render(table).encode(),
    }


def write_all(
    table: BoardTable,
    out_dir: Path,
    drawn: Sequence[Drawing] | None = None,
    left_out: Sequence[LeftOut] = (),
    further: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write every format and figure; equal tables give equal bytes.

    Args:
        drawn: the figures, with ``left_out``, if they were drawn before.
        further: additional files to write, by name.

    Raises:
        UserError: the folder cannot be written.
    """
    if drawn is None:
        drawn, left_out = draw_all(table)
    files = {**contents(table, drawn, left_out), **(further or {})}
    written = []
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in _earlier_figures(out_dir) - set(files):
            (out_dir / name).unlink(missing_ok=True)
        for name, content in files.items():
            path = out_dir / name
            path.write_bytes(content)
            written.append(path)
    except OSError as error:
        raise UserError(
            f"the board cannot be written: {error.strerror or error}", where=str(out_dir), fix="Use another folder."
        ) from error
    return written


def _earlier_figures(folder: Path) -> set[str]:
    """Figures of the board in the folder: one without data any more must be removed with the old board."""
    try:
        figures = loads((folder / "board.json").read_text(encoding="utf-8"))["figures"]
        names = {str(one["name"]) for one in figures}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # the file may say anything: only plain names of this very folder are touched
    plain = {name for name in names if name == Path(name).name}
    return {f"{name}.{kind}" for name in plain for kind in ("svg", "png", "pdf")}
