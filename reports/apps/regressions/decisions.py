"""Recorded decisions: from here on, this is the baseline. Nothing else moves one."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import yaml
from pydantic import Field, ValidationError

from harness.errors import UserError
from harness.store.store import Store
from harness.yamlfile import FileModel
from reports.apps.regressions.series import Series, SeriesPoint

FILE = "baselines.yaml"


class Decision(FileModel):
    """Values finished before ``since`` no longer count for these cells and this metric."""

    cells: str = "*"
    metric: str = "*"
    since: str = Field(min_length=10)
    why: str = Field(min_length=3)


class Decisions(FileModel):
    """The file ``baselines.yaml`` in the store."""

    decisions: tuple[Decision, ...] = ()


def load(store: Store) -> tuple[Decision, ...]:
    """The decisions in a store; none if there is no file.

    Raises:
        UserError: a mistake in the file.
    """
    data = store.files.read(FILE)
    if data is None:
        return ()
    where = store.files.show(FILE)
    try:
        return Decisions.model_validate(yaml.safe_load(data) or {}).decisions
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"not a list of decisions: {what}", where=where, fix="See docs/nightly.md.") from error


def record(store: Store, *decisions: Decision) -> str:
    """Append decisions and say where; the file is replaced whole, so that it is never half written.

    Raises:
        UserError: a mistake in the file, or it cannot be written.
    """
    kept = Decisions(decisions=(*load(store), *decisions))
    text = "# Recorded moves of baselines: values finished before `since` no longer count.\n" + yaml.safe_dump(
        kept.model_dump(mode="json"), sort_keys=False, allow_unicode=True
    )
    store.put(FILE, text.encode())
    return store.files.show(FILE)


def merge(sources: Sequence[Store], into: Store) -> int:
    """Take over decisions of other stores that this one does not hold yet; returns how many."""
    known = list(load(into))
    new = [d for d in dict.fromkeys(one for source in sources for one in load(source)) if d not in known]
    if new:
        record(into, *new)
    return len(new)


def apply(series: Series, decisions: Sequence[Decision]) -> tuple[SeriesPoint, ...]:
    """The points that still count."""
    return tuple(p for p in series.points if not covered(series.label, series.metric, p.finished, decisions))


def covered(label: str, metric: str, finished: str, decisions: Sequence[Decision]) -> bool:
    """True if a decision excludes what was finished then; the metric of an outcome is ``status``."""
    return any(finished < d.since and fnmatchcase(label, d.cells) and fnmatchcase(metric, d.metric) for d in decisions)
