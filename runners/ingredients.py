"""Cells that combine what other cells of the sweep trained: which those are, and when they are there.

A method that combines names a row of the sweep (``of``, a method's label). Its ingredients are that row's cells over
the sweep's seeds or tasks, or on another model (``from``); their keys are part of its own identity. What they saved
is kept in the cache; the combining cell waits until it is all there, and a kept folder that is gone is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.errors import UserError, did_you_mean
from harness.matrix import Cell, Point, make_cell
from harness.methods.catalog import METHODS

Told = dict[str, tuple[Cell, ...]]
"""Key of a combining cell to the cells it combines."""


@dataclass
class Combined:
    """The cells of a sweep once ingredients are named.

    Attributes:
        cells: those that combine carry the keys of their ingredients in their identity.
        told: their ingredients.
        pointless: key of a combining cell to why there is nothing to combine.
        was: key of a combining cell to its key before.
    """

    cells: list[Cell]
    told: Told = field(default_factory=dict)
    pointless: dict[str, str] = field(default_factory=dict)
    was: dict[str, str] = field(default_factory=dict)


def combined(cells: Sequence[Cell], *, tunes: bool, where: str) -> Combined:
    """Name the ingredients of every cell that combines.

    Over seeds there is one result however many seeds the sweep has: the cell of the first seed.

    Raises:
        UserError: a row or model that the sweep does not have; or the sweep tunes, so that a row is not one
            configuration before its trials have run.
    """
    names = {cell.method.name for cell in cells}
    combining = {name for name in names if METHODS.get(name).declaration.combines}
    if not combining:
        return Combined(list(cells))
    if tunes:
        raise UserError(
            f"{', '.join(sorted(combining))} combine the rows of a sweep, and this one tunes its rows",
            where=where,
            fix="Combine in a sweep of its own, with the learning rates that tuning found.",
        )
    methods = {cell.method.label: cell.method for cell in cells}
    models = {label: cell.model for cell in cells for label in (cell.model.label, cell.model.name)}
    seeds = sorted({cell.seed for cell in cells})
    tasks = list({cell.task.label: cell.task for cell in cells}.values())
    found = Combined([])
    for cell in cells:
        if cell.method.name not in combining:
            found.cells.append(cell)
            continue
        params = cell.method.identity["params"]
        row = _named(methods, params["of"], f"{cell.method.label}: of", where)
        if row.name in combining:
            raise UserError(f"{cell.method.label} combines {row.label!r}, which combines others itself", where=where)
        over = params.get("over", "model")
        if over == "seeds" and cell.seed != seeds[0]:
            continue
        chosen: list[tuple[Point, Point, int]]
        if over == "seeds":
            chosen = [(cell.model, cell.task, seed) for seed in seeds]
        elif over == "tasks":
            kind = cell.task.identity["kind"]
            chosen = [(cell.model, task, cell.seed) for task in tasks if task.identity["kind"] == kind]
        else:
            chosen = [(_named(models, params["from"], f"{cell.method.label}: from", where), cell.task, cell.seed)]
        parts = tuple(
            make_cell((model, row, cell.quantization, task, cell.hardware, cell.common), seed)
            for model, task, seed in chosen
        )
        identity = {**cell.method.identity, "ingredients": [part.key for part in parts]}
        point = replace(cell.method, identity=identity)
        made = make_cell((cell.model, point, *cell.points[2:]), cell.seed)
        found.cells.append(made)
        found.told[made.key] = parts
        found.was[made.key] = cell.key
        if len(parts) < 2 and over != "model":
            found.pointless[made.key] = f"the sweep has one of its {over} only: there is nothing to combine"
        elif over == "model" and parts[0].model.canonical == cell.model.canonical:
            found.pointless[made.key] = "this is the model that was trained: there is nowhere to move it"
    return found


def _named(known: dict[str, Point], name: Any, what: str, where: str) -> Point:
    if name not in known:
        given = f"{name!r} is not in this sweep" if name is not None else "is missing"
        fix = did_you_mean(str(name), known) if name is not None else f"Give one of: {', '.join(known)}."
        raise UserError(f"{what}: {given}", where=where, fix=fix)
    return known[name]


def kept_at(cache: Path, cell: Cell) -> Path:
    """Where what a cell saved is kept for those that combine it."""
    return cache / "ingredients" / cell.key


def kept(cache: Path, cell: Cell) -> bool:
    """Whether it is there."""
    return kept_at(cache, cell).is_dir()
