"""A board file (YAML) as a frozen value: which rows, which columns, what is compared with what."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from harness.errors import UserError, did_you_mean
from harness.meters.catalog import is_metric
from harness.metrics import METRICS, MetricDef
from harness.yamlfile import FileModel, by_name, load_model
from reports.data.learned import VERDICTS

BUILT_IN = Path(__file__).parents[1] / "boards"

Show = Literal["mean", "mean_sd", "mean_interval", "ratio_to_plain"]
FieldName = Literal[
    "rank", "method", "quantization", "model", "task", "hardware", "variant", "seeds", "status", "learned"
]
GroupField = Literal["model", "task", "quantization", "hardware"]


def _known_metric(name: str) -> str:
    if not is_metric(name):
        raise ValueError(f"unknown metric {name!r}. {did_you_mean(name, METRICS)}")
    return name


class RowFilter(FileModel):
    """Shell-style patterns; a row stays if all match. Each may be one pattern or a list of them.

    Attributes:
        learned: verdict of the row: ``learned``, ``no evidence``, ``worse`` or ``degenerate``; "" for rows that do not
            train.
    """

    model: tuple[str, ...] = ("*",)
    method: tuple[str, ...] = ("*",)
    quantization: tuple[str, ...] = ("*",)
    task: tuple[str, ...] = ("*",)
    hardware: tuple[str, ...] = ("*",)
    sweep: tuple[str, ...] = ("*",)
    learned: tuple[str, ...] = ("*",)

    @field_validator("*", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    def of_verdicts(self, patterns: Sequence[str]) -> RowFilter:
        """The same filter, for rows with these verdicts alone.

        Raises:
            UserError: a pattern that no verdict matches.
        """
        for pattern in patterns:
            if not any(fnmatchcase(verdict, pattern) for verdict in VERDICTS):
                raise UserError(f"no verdict matches {pattern!r}", fix=f"Verdicts are: {', '.join(VERDICTS)}.")
        return self.model_copy(update={"learned": tuple(patterns)})

    def keeps(self, **labels: str) -> bool:
        """True if a row with these labels stays."""
        return all(any(fnmatchcase(text, pattern) for pattern in getattr(self, axis)) for axis, text in labels.items())


class Quantity(FileModel):
    """A metric of the whole cell, or of one stage."""

    metric: str
    stage: str | None = None

    _metric = field_validator("metric")(_known_metric)

    @property
    def definition(self) -> MetricDef:
        """Metrics of the board."""
        return METRICS[self.metric]

    @functools.cached_property
    def column(self) -> str:
        """Its name in the frame: ``metric`` or ``stage.metric``."""
        return f"{self.stage}.{self.metric}" if self.stage else self.metric


@functools.cache
def _quantity(metric: str, stage: str | None) -> Quantity:
    return Quantity(metric=metric, stage=stage)


class Column(FileModel):
    """One column: a quantity, a difference to the baseline, or a field of the row.

    Attributes:
        metric: a quantity, shown as ``show`` says. ``ratio_to_plain``: over that of the row that differs in nothing but
            the variant, which is the plain one; within randomised blocks where both ran in them.
        minus: also show the difference: value minus this other metric of the same row.
        difference: a quantity minus the baseline row's, with its paired interval where samples allow.
        field: rank, label or status of the row.
        optional: left out of the board while no row has a value (another memory kind, no energy meter).
    """

    metric: str | None = None
    stage: str | None = None
    show: Show = "mean"
    minus: str | None = None
    difference: str | None = None
    field: FieldName | None = None
    label: str | None = None
    optional: bool = False

    @field_validator("metric", "minus", "difference")
    @classmethod
    def _metrics(cls, value: str | None) -> str | None:
        return value if value is None else _known_metric(value)

    @model_validator(mode="after")
    def _one_of_them(self) -> Column:
        if sum(x is not None for x in (self.metric, self.difference, self.field)) != 1:
            raise ValueError("a column is one of 'metric', 'difference', 'field'")
        return self

    @functools.cached_property
    def quantity(self) -> Quantity | None:
        """The quantity behind the column, None for a field."""
        name = self.metric or self.difference
        return _quantity(name, self.stage) if name else None

    @functools.cached_property
    def key(self) -> str:
        """Unique name of the column in machine-readable output."""
        if self.field:
            return self.field
        assert self.quantity is not None
        if self.difference:
            return f"{self.quantity.column}.vs_baseline"
        return f"{self.quantity.column}.vs_plain" if self.show == "ratio_to_plain" else self.quantity.column


class Axis(FileModel):
    """One axis of the Pareto front. Of several kinds a group uses the first of which it has values."""

    metric: tuple[str, ...] = Field(min_length=1)
    stage: str | None = None

    @field_validator("metric", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("metric")
    @classmethod
    def _directed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if METRICS[_known_metric(name)].better == "neither":
                raise ValueError(f"{name!r} has no better direction and cannot be a Pareto axis")
        return value

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """The kinds, in order of preference."""
        return tuple(Quantity(metric=name, stage=self.stage) for name in self.metric)


class Baseline(FileModel):
    """The row that others are compared with, inside each section."""

    method: str
    quantization: str = "none"


class Board(FileModel):
    """A board file.

    Attributes:
        rows: which configurations are shown.
        group_by: labels that each get a separate table.
        rank: the metric ranked by paired tests on stored samples.
        pareto: two or more axes; rows on their front are marked.
        sort: metric that orders the rows, best first.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    summary: str = ""
    rows: RowFilter = RowFilter()
    group_by: tuple[GroupField, ...] = ("model", "task")
    columns: tuple[Column, ...] = Field(min_length=1)
    rank: Literal["accuracy", "merged_accuracy", "retained_accuracy"] = "accuracy"
    baseline: Baseline | None = None
    pareto: tuple[Axis, ...] = ()
    sort: str = "accuracy"

    _sort = field_validator("sort")(_known_metric)

    @model_validator(mode="after")
    def _consistent(self) -> Board:
        keys = [column.key for column in self.columns]
        double = sorted({key for key in keys if keys.count(key) > 1})
        if double:
            raise ValueError(f"the column {', '.join(double)} is listed twice")
        if len(self.pareto) == 1:
            raise ValueError("a Pareto front needs two axes or more")
        if self.baseline is None and any(column.difference for column in self.columns):
            raise ValueError("a 'difference' column needs a 'baseline'")
        return self

    @property
    def quantities(self) -> frozenset[str]:
        """Columns of a frame that the board shows, ranks or orders by."""
        shown = {name for c in self.columns for name in (c.quantity.column if c.quantity else None, c.minus) if name}
        axes = {quantity.column for axis in self.pareto for quantity in axis.quantities}
        return frozenset({*shown, *axes, self.rank, self.sort})

    def titled(self, sweep: str, summary: str = "") -> Board:
        """The board with the sweep's name and its summary, or else the board's own title, as title."""
        words = summary.strip().rstrip(".") or self.title
        return self.model_copy(update={"title": ": ".join(filter(None, (sweep, words)))})


def find_boards(workspaces: list[Path]) -> dict[str, Path]:
    """Board name to file; a workspace's ``reports/boards/`` comes before the built-in folder."""
    return by_name([*(w / "reports" / "boards" for w in workspaces), BUILT_IN])


def load_board(name: str, workspaces: list[Path], *, where: str = "") -> Board:
    """The board called ``name``; its file is ``<name>.yaml``.

    Raises:
        UserError: no such board (did-you-mean), or a mistake in its file (file, line, key).
    """
    known = find_boards(workspaces)
    if name not in known:
        raise UserError(f"unknown board {name!r}", where=where, fix=did_you_mean(name, known))
    board, _ = load_model(known[name], Board)
    if board.name != name:
        raise UserError(
            f"the board calls itself {board.name!r}",
            where=str(known[name]),
            fix=f"Name the file {board.name}.yaml or the board {name!r}.",
        )
    return board
