"""Cells that combine what other cells of the sweep trained: which those are, and when they are there.

A method that combines names a row of the sweep (``of``, a method's label). Its source cells are that row's cells over
the sweep's seeds or tasks, or on another model (``from``); their keys are part of its key. What they saved
is kept in the cache; the combining cell waits until it is all there, and a kept folder that is gone is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from harness.errors import UserError, did_you_mean, shown
from harness.matrix import Cell, Point, earlier_cells, make_cell, teacher_cells
from harness.methods.base import Method
from harness.methods.catalog import METHODS
from tasks.task import MODEL_KIND

Named = TypeVar("Named")

Told = dict[str, tuple[Cell, ...]]
"""Key of a combining cell to the cells it combines."""


@dataclass
class Combined:
    """The cells of a sweep once ingredients are named.

    Attributes:
        cells: those that combine carry the keys of their ingredients in their identity.
        told: their source cells.
        pointless: key of a combining cell to why there is nothing to combine.
        was: key of a combining cell to its key before.
        waiting: combining cells whose sources tuning has not settled yet; they are not among ``cells``.
    """

    cells: list[Cell]
    told: Told = field(default_factory=dict)
    pointless: dict[str, str] = field(default_factory=dict)
    was: dict[str, str] = field(default_factory=dict)
    waiting: int = 0


def combined(cells: Sequence[Cell], *, tunes: bool, where: str, seeds: Sequence[int] = ()) -> Combined:
    """Name the ingredients of every cell that combines.

    Over seeds there is one result however many seeds the sweep has: the cell of the first seed. Where the sweep tunes,
    the sources are the rows' final cells, at the rates that tuning chose, and what combines them waits until all are
    settled.

    Raises:
        UserError: a row or model that the sweep does not have.
    """
    names = {cell.method.name for cell in cells}
    combining = {name for name in names if METHODS.get(name).declaration.combines}
    if not combining:
        return Combined(list(cells))
    plain = [cell for cell in cells if "role" not in cell.common.identity]
    rows = _SweepPoints(
        methods=_by_task(cells),
        models={label: cell.model for cell in cells for label in (cell.model.label, cell.model.name)},
        tasks=list({cell.task.label: cell.task for cell in cells}.values()),
        seeds=sorted({*seeds, *(cell.seed for cell in plain)}),
        where=where,
    )
    finals = {_place(cell): cell for cell in plain} if tunes else None
    found = Combined([])
    for cell in cells:
        over = cell.method.identity["params"].get("over", "model")
        if cell.method.name not in combining:
            found.cells.append(cell)
        elif over != "seeds" or cell.seed == rows.seeds[0]:
            parts = rows.parts(cell, over, combining)
            if finals is not None:
                if any(_place(part) not in finals for part in parts):
                    found.waiting += 1
                    continue
                parts = tuple(finals[_place(part)] for part in parts)
            identity = {**cell.method.identity, "ingredients": [part.key for part in parts]}
            point = replace(cell.method, identity=identity)
            made = make_cell((cell.model, point, *cell.points[2:]), cell.seed)
            found.cells.append(made)
            found.told[made.key], found.was[made.key] = parts, cell.key
            if len(parts) < 2 and over != "model":
                found.pointless[made.key] = f"the sweep has one of its {over} only: there is nothing to combine"
            elif over == "model" and parts[0].model.canonical == cell.model.canonical:
                found.pointless[made.key] = "this is the model that was trained: it cannot be moved to itself"
    return found


@dataclass(frozen=True)
class _SweepPoints:
    """The points of a sweep by label; methods also by the task's label, because tasks may set their number of steps."""

    methods: dict[str, dict[str, Point]]
    models: dict[str, Point]
    tasks: list[Point]
    seeds: Sequence[int]
    where: str

    def parts(self, cell: Cell, over: str, combining: set[str]) -> tuple[Cell, ...]:
        """The ingredients of one cell.

        Raises:
            UserError: a row or model that the sweep does not have, or a row that combines others itself.
        """
        label, params = cell.method.label, cell.method.identity["params"]
        rows = _named(self.methods, params["of"], f"{label}: of", self.where)
        row = rows.get(cell.task.label) or next(iter(rows.values()))
        if row.name in combining:
            raise UserError(f"{label} combines {row.label!r}, which combines others itself", where=self.where)
        chosen: list[tuple[Point, Point, int]]
        if over == "seeds":
            chosen = [(cell.model, cell.task, seed) for seed in self.seeds]
        elif over == "tasks":
            kind = cell.task.identity["kind"]
            chosen = [(cell.model, task, cell.seed) for task in self.tasks if task.identity["kind"] == kind]
        else:
            chosen = [(_named(self.models, params["from"], f"{label}: from", self.where), cell.task, cell.seed)]
        return tuple(
            make_cell((model, rows.get(task.label, row), cell.quantization, task, *cell.points[4:]), seed)
            for model, task, seed in chosen
        )


def _place(cell: Cell) -> tuple[str, str, str, str, str, int]:
    """Where a cell is in the matrix, whatever learning rate and parameters tuning chose for it."""
    labels = (cell.method.label, cell.task.label)
    return (cell.model.canonical, *labels, cell.quantization.canonical, cell.hardware.canonical, cell.seed)


def _by_task(cells: Sequence[Cell]) -> dict[str, dict[str, Point]]:
    found: dict[str, dict[str, Point]] = {}
    for cell in cells:
        found.setdefault(cell.method.label, {})[cell.task.label] = cell.method
    return found


def _named(known: dict[str, Named], name: object, what: str, where: str) -> Named:
    if not isinstance(name, str) or name not in known:
        given = f"{shown(name)} is not in this sweep" if name is not None else "is missing"
        fix = did_you_mean(str(name), known) if name is not None else f"Give one of: {', '.join(known)}."
        raise UserError(f"{what}: {given}", where=where, fix=fix)
    return known[name]


def staged(cells: Sequence[Cell]) -> Told:
    """Key of every cell that starts from earlier stages, or asks a model that is trained first, to the cells that train
    those; and the same of these cells."""
    found: Told = {}
    for cell in cells:
        if parts := (*earlier_cells(cell), *teacher_cells(cell).values()):
            found |= {cell.key: parts, **staged(parts)}
    return found


def why_not_staged(cell: Cell, kind: str, base: str) -> str | None:
    """Why the cell cannot start from what its earlier stages train, or None.

    Args:
        kind: what the model is used for.
        base: base kind under the methods.
    """
    stages = cell.on("stages")
    if stages is None:
        return None
    method, trains = METHODS.get(cell.method.name), stages.identity.get("trains", True)
    if not trains and cell.quantization.identity["moment"] != "before_training":
        return "what was quantized after the merge is not kept, so that it is scored on its own task alone"
    if method.declaration.combines:
        return f"{cell.method.name} combines what whole cells trained, and such cells have no earlier stages"
    for number, one in enumerate(stages.earlier, 1):
        earlier = METHODS.get(one.method.name)
        params, name = one.method.identity["params"], f"earlier stage {number} ({one.method.name})"
        last = stages.earlier[number].method if number < len(stages.earlier) else cell.method
        if not earlier.declaration.trains:
            return f"{name} does not train"
        if one.task is not None and MODEL_KIND[one.task.identity["kind"]] != kind:
            return f"{name} trains a {MODEL_KIND[one.task.identity['kind']]} model, and the cell a {kind} model"
        merges = one.handover == "merged" and not earlier.declared(params).in_place
        if merges and (refusal := earlier.check_merge(base, params)):
            return f"{name} cannot be handed over merged: {refusal}"
        if one.handover == "unmerged":
            if (last.name, last.identity["params"]) != (one.method.name, params):
                return f"{name} is handed over unmerged, and what follows ({last.name}) does not train the same adapter"
            goes_on = trains or number < len(stages.earlier)
            if goes_on and (earlier.calibrate is not Method.calibrate or earlier.search is not Method.search):
                return f"{name} is initialised from data, which would begin the adapter again: hand it over merged"
    return None


def kept_at(cache: Path, cell: Cell) -> Path:
    """Path of a cell's saved adapter for the cells that combine it."""
    return cache / "ingredients" / cell.key


def kept(cache: Path, cell: Cell) -> bool:
    """True if the saved adapter is in the cache."""
    return kept_at(cache, cell).is_dir()
