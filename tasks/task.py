"""A task: what is learned and what is scored. One YAML file each, in ``tasks/definitions`` or a workspace."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from harness.errors import UserError, did_you_mean
from harness.item import Item as Item
from harness.yamlfile import FileModel, Later, Loc, by_name, line_of, load_model
from tasks import template
from tasks.generators import GENERATORS
from tasks.parsers import PARSERS
from tasks.preferences import ANSWERED, Layout

BUILT_IN = Path(__file__).parent / "definitions"

Kind = Literal["generation", "sequence-classification", "multiple-choice", "language-modelling", "preference"]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

Format = Literal["finetune", "cloze", "letter"]
FORMATS: tuple[Format, ...] = get_args(Format)

METRICS_OF_KIND: dict[Kind, tuple[str, ...]] = {
    "generation": (
        "accuracy",
        "answer_nll",
        "bleu",
        "chrf",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "exact_match",
        "token_f1",
        "pass_at_1",
        "pass_at_10",
        "pass_at_100",
    ),
    "sequence-classification": ("accuracy", "answer_nll", "macro_f1", "matthews"),
    "multiple-choice": ("accuracy", "accuracy_norm", "answer_nll"),
    "language-modelling": ("bits_per_byte", "perplexity"),
    "preference": (
        "accuracy",
        "accuracy_norm",
        "answer_nll",
        "reward_accuracy",
        "reward_margin",
        "reference_kl",
        "length_bias",
    ),
}
"""Metrics that :func:`tasks.scoring.summarise` computes for each kind of task."""

MODEL_KIND: dict[Kind, str] = {
    "generation": "causal-lm",
    "multiple-choice": "causal-lm",
    "language-modelling": "causal-lm",
    "preference": "causal-lm",
    "sequence-classification": "sequence-classification",
}
"""Required model kind for each kind of task."""

OVERLAP = frozenset({"bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "exact_match", "token_f1"})
"""Metrics that compare a completion with the reference, word by word or letter by letter."""

COMPLETION = "\0"
"""Position of the completion in :attr:`Item.program`."""


class DerivedColumn(FileModel):
    """A field made from others.

    Attributes:
        from_: template over the row, or with ``each`` the path of a list.
        values: what the text is replaced by; a text without a replacement is an error.
        each: template over ``{n}`` (from 1) and ``{value}``, applied to every element of the list.
        join: separator between the elements.
    """

    from_: str = Field(alias="from")
    values: dict[str, str] = Field(default_factory=dict)
    each: str = ""
    join: str = " "


class HubSource(FileModel):
    """A data set on the Hub, pinned.

    Attributes:
        config: one configuration, or several whose rows follow one another.
        revision: a commit; anything else may move.
        unpinned: why the revision is no commit; a definition of the library has one or the other.
        splits: our name of a source split to the Hub's, which may be a slice such as ``train[:90%]``.
        columns: fields added to every row, in order, each a template over the fields before it. They give Hub
            rows the columns that files under a data root have, so that a task needs one prompt only.
    """

    id: str
    config: str | tuple[str, ...] | None = None
    revision: str | None = None
    unpinned: str = ""
    splits: dict[str, str] = Field(default_factory=dict)
    columns: dict[str, str | DerivedColumn] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _pinned_or_not(self) -> HubSource:
        if self.pinned and self.unpinned:
            raise ValueError("a 'revision' that is a commit pins the rows; 'unpinned' says why there is none")
        return self

    @property
    def pinned(self) -> bool:
        """True if the revision is a commit, and not a branch or a tag that may move."""
        return bool(re.fullmatch(r"[0-9a-f]{40}", self.revision or ""))


class Source(FileModel):
    """Source of rows: local files, a data root, the Hub (in this order), or a generator.

    Attributes:
        files: source split to a path relative to the YAML: JSON Lines, JSON, CSV, TSV or Parquet, by its ending.
        columns: fields added to every row of a file, in order, each a template over the fields before it: a file's own
            column names become those that the prompt uses. (Rows of the Hub have theirs under ``hub``.)
        data_root: folder below a data root; where it holds ``<split>.jsonl``, that overrides the Hub.
        generator: registered name of a generator.
        params: the generator's parameters.
    """

    files: dict[str, str] = Field(default_factory=dict)
    columns: dict[str, str | DerivedColumn] = Field(default_factory=dict)
    data_root: str | None = None
    hub: HubSource | None = None
    generator: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if not (self.data_root or self.hub or self.files or self.generator):
            raise ValueError("a source needs one of data_root, hub, files, generator")
        if self.generator and (self.data_root or self.hub or self.files):
            raise ValueError("a generator cannot be mixed with files, data_root or hub")
        if self.columns and not (self.files or self.data_root):
            raise ValueError("columns are made from those of files; for rows of the Hub they are written under 'hub'")
        if self.params and not self.generator:
            raise ValueError("params are a generator's; this source has none")
        return self


class SplitRule(FileModel):
    """Selection of rows of a source split for one split of the task.

    Attributes:
        from_: the source split.
        source: the source of this split, where it is not the task's.
        hold_out: take so many rows, chosen by ``seed``, and keep them from every other split drawn from here.
        max_rows: at most so many rows, chosen by ``seed``; for a generator, how many there are.
    """

    from_: str = Field(alias="from")
    source: Source | None = None
    hold_out: int | None = Field(default=None, gt=0)
    max_rows: int | None = Field(default=None, gt=0)
    seed: int = 0

    def shares_rows(self, other: SplitRule) -> bool:
        """True if both are drawn from the same source split."""
        return self.from_ == other.from_ and self.source == other.source


class ChoicesInText(FileModel):
    """Options named at the end of a text field: ``... Answer format: answer1/answer2``."""

    field: str
    after: str
    separator: str = "/"


class ListedOptions(FileModel):
    """Format of the options in a prompt that are answered with a letter or a number, so that they can be reordered.

    Attributes:
        marker: precedes every option, with ``{n}`` (from 1) or ``{option}``, which is the answer.
        before: what follows the last option; empty: nothing does.
    """

    marker: str = Field(pattern=r"\{(n|option)\}")
    before: str = ""


class RawQuestion(FileModel):
    """Position of the question and the option texts in a multiple-choice row, for the formats that a model can read
    without training (:mod:`tasks.formats`).

    Attributes:
        question: template of the text with the question in it.
        after: the text before the question.
        before: the text after the question and its options.
        marker: precedes every option in that text, with ``{n}`` (from 1).
        options: without a marker: a field with a list of texts, or a template for each.
        cloze: template of the prompt that the option texts are scored after; ``{question}`` is the question read.
        blank: position of an option in the question; the text after it is then scored.
    """

    question: str
    after: str = ""
    before: str = ""
    marker: str = Field(default="", pattern=r"^$|\{n\}")
    options: str | tuple[str, ...] = ""
    cloze: str = "Question: {question}\nAnswer:"
    blank: str = ""

    @model_validator(mode="after")
    def _options_are_somewhere(self) -> RawQuestion:
        if bool(self.marker) == bool(self.options):
            raise ValueError("raw needs either 'marker' or 'options'")
        for text in (self.question, self.cloze, *(self.options if isinstance(self.options, tuple) else ())):
            template.check(text)
        return self


class TaskDefinition(FileModel):
    """A task file.

    Attributes:
        prompt: template over the row's fields (``"{question}\\n"``); for classification, the text. A generator
            writes prompts and answers itself.
        answer: template of the right answer (generation), or of the right option's text (multiple choice).
        delimiter: separates the prompt and the answer, and so precedes every option.
        train_answer: template of the answer that is trained on, where another one is scored: a worked solution beside
            its result (generation).
        label: field with the class or the right option: its index or its name.
        labels: the classes' names (classification).
        layout: how a row states a preference, or the question and answer of a generation task
            (:mod:`tasks.preferences`); a ``prompt`` template then has the field ``{prompt}``. With ``options`` the task
            is written as a multiple-choice one.
        judged: a row of a preference task holds one answer that is good or bad, and no pair.
        conversation: column with a list of turns, ``{role, content}`` or ShareGPT's ``{from, value}``, in the place of
            ``prompt`` and ``answer`` (generation): the last turn is the answer, those before it are the prompt.
        skip: column to the value that marks rows to leave out (for example unlabelled ones).
        choices: the options (multiple choice): a field that is a list, the options themselves, or their position in a
            text.
        options: how the prompt lists the options; None: it does not, and their order cannot matter.
        raw: where the bare question and the options' texts are; with it the task can be asked in every format.
        prompts: alternatives to ``prompt``, for sweeps that measure the effect of the prompt.
        parser: named answer parser applied to generations (:mod:`tasks.parsers`).
        stop: texts that end a completion; none of them is part of it.
        program: template of the program that judges a completion, with ``{completion}`` where it goes: the
            completion is right if the program ends without an error. Run only where the sweep says so.
        metrics: what the task is judged by, the ranked one first. Without ``accuracy`` completions are not
            judged right or wrong.
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
    prompt: str = ""
    answer: str = ""
    train_answer: Annotated[str, Later()] = ""
    delimiter: str = ""
    label: str = ""
    labels: tuple[str, ...] = ()
    layout: Annotated[Layout | None, Later()] = None
    judged: Annotated[bool, Later()] = False
    conversation: Annotated[str, Later()] = ""
    skip: dict[str, int | str] = Field(default_factory=dict)
    choices: str | tuple[str, ...] | ChoicesInText = ""
    options: ListedOptions | None = None
    raw: RawQuestion | None = None
    prompts: tuple[str, ...] = ()
    parser: str = "exact"
    stop: Annotated[tuple[str, ...], Later()] = ()
    program: Annotated[str, Later()] = ""
    max_new_tokens: int = Field(default=32, gt=0)
    metrics: tuple[str, ...] = Field(default=("accuracy",), min_length=1)
    retain: tuple[str, ...] = ()
    notes: str = ""

    @model_validator(mode="before")
    @classmethod
    def _text_is_judged_by_bytes(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("kind") == "language-modelling":
            return {"metrics": ("bits_per_byte", "perplexity"), **value}
        return value

    @field_validator("prompt", "answer", "train_answer", "program")
    @classmethod
    def _is_template(cls, value: str) -> str:
        template.check(value)
        return value

    @model_validator(mode="after")
    def _complete(self) -> TaskDefinition:
        if "train" not in self.splits or "test" not in self.splits:
            raise ValueError("splits need at least 'train' and 'test'")
        if self.source.generator:
            if self.kind not in ("generation", "preference") or self.prompt or self.answer or self.layout:
                raise ValueError(
                    "a generator's task is of kind generation or preference and has no 'prompt', 'answer' and 'layout'"
                )
        elif self.kind == "language-modelling":
            if self.prompt or not self.answer:
                raise ValueError("a language-modelling task has its text in 'answer' and no 'prompt'")
        elif self.conversation:
            if self.prompt or self.answer or self.delimiter or self.kind != "generation":
                raise ValueError(
                    "'conversation' holds questions and answers of a generation task, which then has no 'prompt', "
                    "'answer' and 'delimiter'"
                )
        elif self.kind == "generation" and self.layout:
            if self.answer or self.layout not in ANSWERED:
                raise ValueError(f"a generation task has the layout {', '.join(ANSWERED)}, and then no 'answer'")
        elif not self.prompt:
            raise ValueError("a task needs 'prompt'")
        elif self.kind == "generation" and not self.answer:
            raise ValueError("a generation task needs 'answer'")
        if self.kind == "sequence-classification" and not (self.label and len(self.labels) > 1):
            raise ValueError("a sequence-classification task needs 'label' (the field) and 'labels' (the names)")
        lists_options = self.kind == "multiple-choice" or self.layout == "options"
        if lists_options and not (self.choices and bool(self.answer) != bool(self.label)):
            raise ValueError(f"a {self.kind} task with options needs 'choices' and either 'answer' or 'label'")
        if self.kind == "preference" and self.layout is None and not self.source.generator:
            raise ValueError("a preference task needs 'layout'")
        if self.layout is not None and self.kind not in ("preference", "generation"):
            raise ValueError(f"a {self.kind} task has no 'layout'")
        if self.train_answer and not (self.kind == "generation" and self.answer):
            raise ValueError("'train_answer' is written beside the 'answer' of a generation task")
        unknown = [m for m in self.metrics if m not in METRICS_OF_KIND[self.kind]]
        if unknown:
            fix = did_you_mean(unknown[0], METRICS_OF_KIND[self.kind])
            raise ValueError(f"a {self.kind} task has no metric {unknown[0]!r}. {fix}")
        if bool(self.program) != any(m.startswith("pass_at_") for m in self.metrics):
            raise ValueError("'program' and the metrics pass_at_1, pass_at_10, pass_at_100 need each other")
        if self.program and ("accuracy" in self.metrics or "{completion}" not in self.program):
            raise ValueError("a 'program' holds {completion}, and its task is judged by it and not by 'accuracy'")
        return self

    @model_validator(mode="after")
    def _asked_in_other_ways(self) -> TaskDefinition:
        if (self.options is not None or self.raw is not None) and self.kind != "multiple-choice":
            raise ValueError("'options' and 'raw' say how a multiple-choice row holds them")
        if self.prompts and not self.prompt:
            raise ValueError("'prompts' are alternatives to 'prompt', which this task does not have")
        if len({self.prompt, *self.prompts}) != 1 + len(self.prompts):
            raise ValueError("'prompt' and 'prompts' must all be different")
        for prompt in self.prompts:
            template.check(prompt)
        return self

    @model_validator(mode="after")
    def _splits_are_disjoint(self) -> TaskDefinition:
        for name, rule in self.splits.items():
            if rule.source is not None and rule.source.generator:
                raise ValueError(f"splits.{name}: a split's own source cannot be a generator")
            generated = self.source.generator and rule.source is None
            if generated and (rule.from_ not in SPLITS or rule.max_rows is None or rule.hold_out is not None):
                raise ValueError(
                    f"splits.{name}: a generator's split is from train, validation or test, needs max_rows and cannot "
                    "have hold_out"
                )
            takers = [n for n, r in self.splits.items() if r.hold_out is None and r.shares_rows(rule)]
            if len(takers) > 1:
                raise ValueError(f"splits {' and '.join(takers)} would hold the same rows; give one of them hold_out")
        return self

    @property
    def judges_completions(self) -> bool:
        """True if an answer is right or wrong by the parser, and not only more or less likely."""
        return "accuracy" in self.metrics

    @property
    def wants_completions(self) -> bool:
        """True if the model has to generate text before it can be scored."""
        return self.judges_completions or bool(self.program) or bool(OVERLAP & set(self.metrics))

    @property
    def unpinned(self) -> dict[str, str]:
        """Hub data sets whose revision is no commit, and why: their rows may change under the same name."""
        hubs = [s.hub for s in (self.source, *(r.source for r in self.splits.values() if r.source)) if s.hub]
        return {hub.id: hub.unpinned or "its revision is no commit" for hub in hubs if not hub.pinned}


@dataclass(frozen=True)
class Task:
    """A task definition, the file it was read from, and the format its questions are asked in."""

    definition: TaskDefinition
    path: Path
    format: Format = "finetune"

    @property
    def delimiter(self) -> str:
        """The text between a prompt and every option."""
        return self.definition.delimiter if self.format == "finetune" else " "

    @property
    def options(self) -> ListedOptions | None:
        """Format of the options in the prompt; None: not listed, and their order cannot matter."""
        if self.format == "letter":
            return ListedOptions(marker="\n{option}. ", before="\nAnswer:")
        return self.definition.options if self.format == "finetune" else None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Alternatives to the prompt."""
        return self.definition.prompts if self.format == "finetune" else ()


def find_tasks(workspaces: list[Path]) -> dict[str, Path]:
    """Task name to file; a workspace's ``tasks/`` (or ``tasks/definitions/``) comes before the built-in one."""
    return by_name([*(f for w in workspaces for f in (w / "tasks", w / "tasks" / "definitions")), BUILT_IN])


def load_task(name: str, workspaces: list[Path], *, where: str = "") -> Task:
    """The task called ``name``; its file is ``<name>.yaml``.

    Raises:
        UserError: no such task (did-you-mean), or a mistake in its file (file, line, key): a parser, a generator
            or a task to retain that does not exist included.
    """
    known = find_tasks(workspaces)
    if name not in known:
        raise UserError(f"unknown task {name!r}", where=where, fix=did_you_mean(name, known))
    path = known[name]
    definition, lines = load_model(path, TaskDefinition)
    if definition.name != name:
        raise UserError(
            f"the task calls itself {definition.name!r}",
            where=str(path),
            fix=f"Name the file {definition.name}.yaml or the task {name!r}.",
        )
    _check_names(definition, known, path, lines)
    return Task(definition=definition, path=path)


def _check_names(definition: TaskDefinition, known: dict[str, Path], path: Path, lines: dict[Loc, int]) -> None:
    def where(*loc: int | str) -> str:
        return f"{path}, line {line_of(lines, loc)}, key '{'.'.join(map(str, loc))}'"

    PARSERS.get(definition.parser, where=where("parser"))
    if definition.source.generator:
        GENERATORS.get(definition.source.generator, where=where("source", "generator"))
    for index, other in enumerate(definition.retain):
        if other not in known:
            raise UserError(f"unknown task {other!r}", where=where("retain", index), fix=did_you_mean(other, known))
