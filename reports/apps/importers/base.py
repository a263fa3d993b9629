"""Shared by the importers: reading a file, naming unmapped fields, and making the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from harness import bounded
from harness.digests import canonical_json, digest, digest_file, slug
from harness.errors import UserError
from harness.record import Outcome, Reading, Record, SamplesRef, Span

AXES = ("model", "method", "quantization", "task")
MAX_BYTES = 256 * 2**20
"""Size of the largest result file that is read."""
LARGEST = 1e100
"""No measured quantity is larger; sums and squares of smaller ones stay finite."""
SETTINGS = ("config", "configs", "run_info", "versions", "n-shot", "n-samples", "task_hashes")
"""Parts of the files that go into the identity of a cell; scores may be NaN, as tools write them, settings may not."""
UNKNOWN_FIELD = "not known to this importer"


Scalar = str | bool | int | float | None


class ForeignFields(BaseModel):
    """Base of the types of foreign files: the fields that an importer reads; others may be there."""

    model_config = ConfigDict(extra="allow", strict=True)


@dataclass(frozen=True)
class Imported:
    """One record out of a foreign file, with the Parquet bytes of its samples if the file has any."""

    record: Record
    samples: bytes | None = None


@dataclass(frozen=True)
class Origin:
    """Source of foreign numbers, and how they were mapped.

    Attributes:
        tool: kind of results, a key of :data:`reports.apps.importers.IMPORTERS`.
        version: the tool's version as the file says, "" if it does not.
        lacks: what the tool does not record, for people.
        unmapped: field of the file -> why no record holds it.
        notes: remarks on single values.
    """

    tool: str
    version: str
    file: Path
    lacks: tuple[str, ...]
    unmapped: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Content:
    """Content of a record, in addition to its origin."""

    cell: dict[str, Any]
    outcome: Outcome
    metrics: dict[str, Reading] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    series: dict[str, tuple[float, ...]] = field(default_factory=dict)
    samples: SamplesRef | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    finished: str = ""


def typed(content: Mapping[str, object], file: type[BaseModel], path: Path) -> None:
    """Check the types of the fields that an importer reads.

    Raises:
        UserError: the first field of another type, by its path in the file.
    """
    bounded.check_shape(content, file, where=str(path))
    for name in SETTINGS:
        try:
            canonical_json(content.get(name))
        except ValueError:
            raise UserError(f"a setting in {name!r} is not a finite number", where=str(path)) from None


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """A JSON object that has the keys ``needed``.

    Raises:
        UserError: not JSON, or another kind of file.
    """
    try:
        content = bounded.read_json(path, most=MAX_BYTES, nan=True)
    except UserError as error:
        raise UserError(f"not a readable JSON file: {error.what}", where=str(path)) from error
    except OSError as error:
        raise UserError(f"not a readable JSON file: {error.strerror or error}", where=str(path)) from error
    absent = [name for name in needed if not isinstance(content, dict) or name not in content]
    if absent:
        raise UserError(
            f"not results of this kind: {', '.join(absent)} is not in it",
            where=str(path),
            fix="Give the kind that wrote the file, or leave the file out.",
        )
    return dict(content)


def fields(value: object, prefix: str = "") -> Iterator[str]:
    """Paths of all leaves of a JSON value, list positions as ``[]``; each path once per occurrence."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from fields(item, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list) and value and isinstance(value[0], (Mapping, list)):
        for item in value:
            yield from fields(item, f"{prefix}[]")
    else:
        yield prefix


def name_unmapped(content: Mapping[str, object], mapped: tuple[str, ...], reasons: Mapping[str, str]) -> dict[str, str]:
    """Every field of a file that no record holds.

    Args:
        content: the file.
        mapped: patterns of fields that went into the record.
        reasons: patterns of fields that were left out on purpose, with the reason.

    Returns:
        Pattern, or path where no pattern knows it, to the reason. A field that a later version of the tool
        adds is named too.
    """
    out: dict[str, str] = {}
    for path in sorted(set(fields(content))):
        shown = path.replace("[]", "")
        matching = [p for p in (*mapped, *reasons) if fnmatchcase(shown, p)]
        best = max(matching, key=lambda p: len(p.replace("*", "")), default=None)  # the most exact one counts
        if best is None:
            out[path] = UNKNOWN_FIELD
        elif best in reasons:
            out[best] = reasons[best]
    return out


def make_record(origin: Origin, content: Content) -> Record:
    """The record of one foreign run.

    The key is the digest of the cell, which names the tool as its protocol: it can meet no key of a cell that
    was run here. Repeated runs of one configuration share a key and form a history by ``finished``.
    """
    cell = {**content.cell, "protocol": origin.tool}
    labels = [slug(str(cell[axis]["label"])) for axis in AXES]
    imported = {
        "from": origin.tool,
        "version": origin.version,
        "file": origin.file.name,
        "sha256": digest_file(origin.file),
        "lacks": list(origin.lacks),
        "unmapped": dict(origin.unmapped),
        "notes": list(origin.notes),
    }
    known = {name: content.environment.get(name) for name in ("packages", "python", "cpu", "gpus")}
    return Record(
        key=digest({"imported": origin.tool, "cell": cell})[:16],
        label=".".join(labels) + f".s{cell['seed']}",
        sweep=f"imported:{origin.tool}",
        cell=cell,
        outcome=content.outcome,
        metrics=content.metrics,
        spans=content.spans,
        series=content.series,
        samples=content.samples,
        environment={**content.environment, "imported": imported},
        fingerprint=digest(known),
        started=content.started,
        finished=content.finished,
    )


def number(value: object) -> float | None:
    """A number below :data:`LARGEST`, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(float(value)) < LARGEST else None
