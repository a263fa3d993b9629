"""Results of other tools as records: marked as imported, never ranked with ours, with what they lack stated.

Each importer maps quantities with the same meaning, gives a separate name to those with another, and names every field
of the file that it left out, with the reason. Equal files give equal records, so importing twice adds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.errors import UserError, did_you_mean, requirement
from harness.record import Record
from harness.store.packing import append_batch
from harness.store.store import Store
from reports.apps.importers import lm_eval, optimum_benchmark, peft_suite
from reports.apps.importers.base import Imported

IMPORTERS: dict[str, tuple[Callable[[Path], list[Imported]], tuple[str, ...]]] = {
    "peft-method-comparison": (peft_suite.read, ("*.json",)),
    "lm-eval": (lm_eval.read, ("results_*.json",)),
    "optimum-benchmark": (optimum_benchmark.read, ("benchmark.json", "benchmark_report.json")),
}
"""Kind to its reader and the file names it searches for in a folder."""


@dataclass(frozen=True)
class Import:
    """Result of an import.

    Attributes:
        records: all records of the files, new or not.
        added: how many of them the store did not hold.
        unmapped: fields that no record holds -> (reason, number of files).
        lacks: what the records do not say, for people.
    """

    records: tuple[Record, ...]
    added: int
    unmapped: dict[str, tuple[str, int]]
    lacks: tuple[str, ...]


BATCH = 500
"""Records of one import from which they are appended as one segment and not as loose files."""


def import_results(kind: str, paths: Sequence[Path], store: Store) -> Import:
    """Read foreign result files and add them to a store.

    Args:
        kind: a key of :data:`IMPORTERS`.
        paths: files, or folders that are searched.

    Raises:
        UserError: no such kind, no file found, or a file that is not of this kind (nothing is then written).
    """
    if kind not in IMPORTERS:
        raise UserError(f"unknown kind of results {kind!r}", fix=did_you_mean(kind, IMPORTERS))
    read, patterns = IMPORTERS[kind]
    made = []
    for path in _files(kind, paths, patterns):
        try:
            found = read(path)
        except ValidationError as error:  # a record's own types refuse a value, such as an accuracy of 2
            raise UserError(f"no record can hold this: {_first(error)}", where=str(path)) from error
        if not found:
            raise UserError("the file holds no result", where=str(path), fix="Leave it out.")
        made += found
    before = {entry.id for entries in store.entries().values() for entry in entries}
    if len(made) >= BATCH:
        entries = append_batch(store, [(one.record, one.samples) for one in made])
    else:
        entries = [store.append(one.record, one.samples) for one in made]
    added = {entry.id for entry in entries} - before
    reasons: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for one in made:
        named = one.record.environment["imported"]["unmapped"]
        reasons.update(named)
        counts.update(list(named))
    lacks = sorted({lack for one in made for lack in one.record.environment["imported"]["lacks"]})
    unmapped = {name: (reasons[name], counts[name]) for name in sorted(reasons)}
    return Import(tuple(one.record for one in made), len(added), unmapped, tuple(lacks))


def _first(error: ValidationError) -> str:
    return requirement(error.errors()[0])


def _files(kind: str, paths: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    found: set[Path] = set()
    for path in paths:
        if path.is_file():
            found.add(path)
        elif path.is_dir():
            found.update(file for pattern in patterns for file in path.rglob(pattern))
        else:
            raise UserError("no such file or folder", where=str(path), fix="Name result files or folders of them.")
    if not found:
        raise UserError(
            f"no results of {kind} found",
            where=", ".join(str(path) for path in paths),
            fix=f"Files are searched for as {' or '.join(patterns)}.",
        )
    return sorted(found)
