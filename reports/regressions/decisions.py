"""Recorded decisions: from here on, this is the baseline. Nothing else moves one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from harness.errors import UserError
from harness.yamlfile import load_model
from reports.regressions.series import Point, Series

FILE = "baselines.yaml"


class Decision(BaseModel):
    """Values finished before ``since`` no longer count for these cells and this metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: str = "*"
    metric: str = "*"
    since: str = Field(min_length=10)
    why: str = Field(min_length=3)


class Decisions(BaseModel):
    """The file ``baselines.yaml`` beside the records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: tuple[Decision, ...] = ()


def load(folder: Path) -> tuple[Decision, ...]:
    """The decisions kept in a folder; none where there is no file.

    Raises:
        UserError: a mistake in the file.
    """
    path = folder / FILE
    return load_model(path, Decisions)[0].decisions if path.exists() else ()


def record(folder: Path, decision: Decision) -> Path:
    """Append a decision; the file is rewritten whole, so that it is never half written."""
    if not folder.is_dir():
        raise UserError("decisions are kept in a local results folder", where=str(folder))
    kept = Decisions(decisions=(*load(folder), decision))
    text = "# Recorded moves of baselines: values finished before `since` no longer count.\n" + yaml.safe_dump(
        kept.model_dump(mode="json"), sort_keys=False, allow_unicode=True
    )
    path, scratch = folder / FILE, folder / f".{uuid.uuid4().hex[:12]}.tmp"
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
    return path


def apply(series: Series, decisions: Sequence[Decision]) -> tuple[Point, ...]:
    """The points that still count."""
    starts = [d.since for d in decisions if fnmatchcase(series.label, d.cells) and fnmatchcase(series.metric, d.metric)]
    return tuple(p for p in series.points if not starts or p.finished >= max(starts))
