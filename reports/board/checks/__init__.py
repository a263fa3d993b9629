"""The eight smells of leaderboards (LBOps, arXiv:2407.04065) as checks on a board's files against its records.

missing, unresponsive, confusing, inaccessible, mismatched, misdisplayed, redundant, deprecated. The meaning of a smell
is inferred from its name and the threads it was found in; each check states what it tests. A ninth check, ``unsound``,
asks what a referee asks of the numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.store.store import Store
from reports.board.board import BoardTable
from reports.board.checks import rules
from reports.board.checks.reading import Built, Files, Smell, read_folder
from reports.board.formats.files import texts

__all__ = ["CHECKS", "Smell", "check_folder", "print_found", "referee"]

CHECKS = {
    "missing": rules.missing,
    "unresponsive": rules.unresponsive,
    "confusing": rules.confusing,
    "inaccessible": rules.inaccessible,
    "mismatched": rules.mismatched,
    "misdisplayed": rules.misdisplayed,
    "redundant": rules.redundant,
    "deprecated": rules.deprecated,
    "unsound": rules.unsound,
}
"""Smell to its check."""

MOST_PRINTED = 50


def check_folder(
    folder: Path,
    store: Store,
    *,
    built: Built | None = None,
) -> list[Smell]:
    """Everything that smells in a board's folder.

    Args:
        folder: folder of ``board.json``.
        store: the records it was made from.
        built: the board and its figures, if they were just made; None: they are made again from the records.

    Raises:
        UserError: there is no ``board.json``, or it is none of ours.
    """
    files = read_folder(folder, store, built)
    return [Smell(name, where, what) for name, check in CHECKS.items() for where, what in check(files)]


def referee(table: BoardTable, store: Store) -> list[Smell]:
    """The questions of ``unsound`` to a board in memory, of which no files are written (pages of a site)."""
    content = json.loads(texts(table, (), ())["board.json"])
    files = Files(Path(), store, content, {}, dict(table.records), (), table, (), ())
    return [Smell("unsound", where, what) for where, what in CHECKS["unsound"](files)]


def print_found(found: Sequence[Smell]) -> None:
    """The list, one line each, to standard error."""
    for smell in found[:MOST_PRINTED]:
        print(f"{smell.smell}: {smell.where}: {smell.what}", file=sys.stderr)
    if len(found) > MOST_PRINTED:
        print(f"... and {len(found) - MOST_PRINTED} more", file=sys.stderr)
