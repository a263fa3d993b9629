"""All formats of a board, as files."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from reports.board import BoardTable
from reports.figures import figure_files
from reports.render import csv, html, json, latex, markdown


def write_all(table: BoardTable, out_dir: Path) -> list[Path]:
    """Write every format and figure; equal tables give equal bytes.

    Raises:
        UserError: the folder cannot be written.
    """
    figures = figure_files(table)
    files: dict[str, bytes] = {
        "board.md": markdown.render(table).encode(),
        "board.csv": csv.render(table).encode(),
        "board.json": json.render(table).encode(),
        "board.tex": latex.render(table).encode(),
        "board.html": html.render(table, figures).encode(),
        **figures,
    }
    written = []
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = out_dir / name
            path.write_bytes(content)
            written.append(path)
    except OSError as error:
        raise UserError(
            f"the board cannot be written: {error.strerror or error}", where=str(out_dir), fix="Use another folder."
        ) from error
    return written
