"""A task: what is learned and what is scored. One YAML file each, in ``tasks/definitions`` or a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.errors import UserError, did_you_mean
from harness.yamlfile import load_model

BUILT_IN = Path(__file__).parent / "definitions"

Kind = Literal["generation", "sequence-classification", "multiple-choice", "language-modelling"]
SplitName = Literal["train", "validation", "test"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitRule(_Frozen):
    """Which rows of which source split make up a split of the task.

    ``hold_out`` takes that many rows, chosen by ``seed``, out of the source split and keeps them from every
    other split drawn from the same source split.
    """

    source: str = Field(alias="from")
    hold_out: int | None = Field(default=None, gt=0)
    max_rows: int | None = Field(default=None, gt=0)
    seed: int = 0


class HubSource(_Frozen):
    """A data set on the Hub, pinned."""

    id: str
    config: str | None = None
    revision: str | None = None
    splits: dict[str, str] = Field(default_factory=dict, description="our split name to the Hub's")


class Source(_Frozen):
    """Where rows come from. A data root that holds ``<data_root>/<split>.jsonl`` overrides the Hub."""

    data_root: str | None = None
    hub: HubSource | None = None
    files: dict[str, str] | None = Field(default=None, description="split to JSONL path, relative to the YAML")
    generator: str | None = Field(default=None, description="'module:function', built in or from a workspace")
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if not (self.data_root or self.hub or self.files or self.generator):
            raise ValueError("a source needs one of data_root, hub, files, generator")
        return self


class TaskDefinition(_Frozen):
    """A task file.

    Attributes:
        prompt: template over the row's fields (``"{question}\\n"``); for classification, the text.
        answer: template of the right answer (generation, multiple choice).
        label: field holding the class index (classification).
        choices: field holding the list of options (multiple choice).
        parser: named answer parser applied to generations (:mod:`tasks.scoring`).
        retain: tasks scored before and after adaptation, to see what is forgotten.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: int = Field(ge=1)
    summary: str
    kind: Kind
    licence: str
    citation: str = ""
    source: Source
    splits: dict[SplitName, SplitRule]
    prompt: str
    answer: str = ""
    label: str = ""
    labels: tuple[str, ...] = ()
    choices: str = ""
    parser: str = "exact"
    max_new_tokens: int = Field(default=32, gt=0)
    metrics: tuple[str, ...] = ("accuracy",)
    retain: tuple[str, ...] = ()
    notes: str = ""

    @model_validator(mode="after")
    def _complete(self) -> TaskDefinition:
        if "train" not in self.splits or "test" not in self.splits:
            raise ValueError("splits need at least 'train' and 'test'")
        if self.kind == "sequence-classification" and not (self.label and self.labels):
            raise ValueError("a sequence-classification task needs 'label' (the field) and 'labels' (the names)")
        if self.kind in ("generation", "multiple-choice") and not self.answer:
            raise ValueError(f"a {self.kind} task needs 'answer'")
        return self


@dataclass(frozen=True)
class Item:
    """One example, ready for a model.

    Attributes:
        id: position in the source split; stable, so that items of two cells can be paired.
        prompt: what the model reads (classification: the text).
        answer: the right answer's text (classification: the label's name).
        label: class index or index of the right choice; -1 where there is none.
        choices: the options of a multiple-choice item.
    """

    id: str
    prompt: str
    answer: str
    label: int = -1
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task definition and the file it was read from."""

    definition: TaskDefinition
    path: Path


def find_tasks(workspaces: list[Path]) -> dict[str, Path]:
    """Task name to file; a workspace's ``tasks/`` (or ``tasks/definitions/``) comes before the built-in one."""
    found: dict[str, Path] = {}
    folders = [f for w in workspaces for f in (w / "tasks", w / "tasks" / "definitions")]
    for folder in [*folders, BUILT_IN]:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def load_task(name: str, workspaces: list[Path], *, where: str = "") -> Task:
    """The task called ``name``; its file is ``<name>.yaml``.

    Raises:
        UserError: no such task (did-you-mean), or a mistake in its file (file, line, key).
    """
    known = find_tasks(workspaces)
    if name not in known:
        raise UserError(f"unknown task {name!r}", where=where, fix=did_you_mean(name, known))
    definition, _ = load_model(known[name], TaskDefinition)
    if definition.name != name:
        raise UserError(
            f"the task calls itself {definition.name!r}",
            where=str(known[name]),
            fix=f"Name the file {definition.name}.yaml or the task {name!r}.",
        )
    return Task(definition=definition, path=known[name])
