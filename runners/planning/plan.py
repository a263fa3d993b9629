"""Status of each cell of a sweep, with the reason: run, done, stale, elsewhere or unsupported.

Planning reads declarations, task files and the store's file names. It imports no model library and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from harness import hardware as hw
from harness.errors import UserError, did_you_mean
from harness.matrix import Cell, Matrix
from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
from harness.record import FINAL_STATUSES, Record, Status
from harness.spec import LoadedSweep
from harness.store.store import Entry, Store, short_fingerprint
from runners.planning.blocks import Slot, in_blocks, timing_cells
from runners.planning.cell_dependencies import Combined, Told, combined, kept, staged
from runners.planning.cost_model import Predictor, TaskLengths, total
from runners.planning.ordering import fitting, in_order, rank
from runners.planning.refusals import Reasons, memoised_reasons
from runners.planning.resolver import Resolver, pattern
from runners.planning.tuning import FAILED, Tuned, tuned
from runners.worker.job import CURVE
from runners.workspace import Workspace

WhyNotRun = Literal["disk", "memory", "budget"]


@dataclass(frozen=True)
class NotRun:
    """A planned cell that this run did not start.

    Attributes:
        kind: ``disk`` or ``memory``: not enough free; ``budget``: not enough time in the run.
        reason: the same in words, with the numbers.
    """

    cell: Cell
    kind: WhyNotRun
    reason: str


@dataclass(frozen=True)
class Plan:
    """The sorted cells of a sweep: values, which a run reads and does not change.

    Attributes:
        run: cells to run now, in order.
        done: cells with a final record made in this environment.
        stale: cells whose only final record was made in another environment (left alone unless asked).
        elsewhere: cells for hardware that this machine is not, with the reason.
        unsupported: cells that cannot run, with the true reason.
        known: ids of the final records that a cell to run had when the plan was made; cells without any are left out.
        ingredients: key of a cell to run that combines others to the cells it combines.
        keep: keys of the cells whose result is kept for such a cell.
        tuning: key of a tuned cell to how its learning rate was chosen.
        later: cells that combine others which have to run first.
        waiting: configurations whose final cells are planned once their tuning trials have run, and cells that
            combine others which have to run first.
        unpinned: task to the Hub data sets it would read here without a commit, and why.
        unpinned_models: Hub model to why its weights may change under its name.
        predict: what is expected of a cell.
        not_run: cells that a time budget is not expected to hold; a run decides by the clock.
        slots: key of a cell to its place in a randomised block; empty under a time budget, which orders by cost.
    """

    sweep: LoadedSweep
    cells: tuple[Cell, ...]
    predict: Predictor
    run: tuple[Cell, ...] = ()
    done: tuple[Cell, ...] = ()
    stale: tuple[Cell, ...] = ()
    elsewhere: tuple[tuple[Cell, str], ...] = ()
    unsupported: tuple[tuple[Cell, str], ...] = ()
    known: Mapping[str, frozenset[str]] = field(default_factory=dict)
    tuning: Mapping[str, dict[str, object]] = field(default_factory=dict)
    ingredients: Mapping[str, tuple[Cell, ...]] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()
    later: tuple[Cell, ...] = ()
    waiting: int = 0
    unpinned: Mapping[str, dict[str, str]] = field(default_factory=dict)
    unpinned_models: Mapping[str, str] = field(default_factory=dict)
    not_run: tuple[NotRun, ...] = ()
    slots: Mapping[str, Slot] = field(default_factory=dict)

    def remarks(self) -> list[tuple[Cell, str]]:
        """Notes on cells to run: parts of a method that never act in a run of that length."""
        found = []
        for cell in self.run:
            identity = cell.method.identity
            remark = METHODS.get(cell.method.name).remark(identity["params"], identity["steps"] or 0)
            if remark is not None and identity["steps"]:
                found.append((cell, remark))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row per cell: its state, why it will not run, and what is expected of it.

        ``predicted_s`` is in seconds, ``predicted_peak_bytes`` in bytes; None where nothing is known.
        """

        def row(cell: Cell, state: str, why: str = "") -> dict[str, Any]:
            return {"cell": cell.label, "state": state, "why": why, **self.predict(cell).as_json(), "key": cell.key}

        return [
            *(row(cell, "run") for cell in self.run),
            *(row(one.cell, "not run", one.reason) for one in self.not_run),
            *(row(cell, "later", "cells that it combines run first") for cell in self.later),
            *(row(cell, "done") for cell in self.done),
            *(row(cell, "stale", "run in another environment") for cell in self.stale),
            *(row(cell, "elsewhere", why) for cell, why in self.elsewhere),
            *(row(cell, "unsupported", why) for cell, why in self.unsupported),
        ]

    def as_json(self) -> dict[str, object]:
        """The shape printed by ``plan --json``."""

        def named(cells: Sequence[Cell]) -> list[dict[str, str]]:
            return [{"key": c.key, "label": c.label} for c in cells]

        def why(cells: Sequence[tuple[Cell, str]]) -> list[dict[str, Any]]:
            return [{"cell": {"key": c.key, "label": c.label}, "why": reason} for c, reason in cells]

        return {
            "cells": len(self.cells),
            "run": [{**one, **self.predict(c).as_json()} for one, c in zip(named(self.run), self.run, strict=True)],
            "not_run": [
                {"cell": {"key": n.cell.key, "label": n.cell.label}, "kind": n.kind, "why": n.reason}
                for n in self.not_run
            ],
            "done": named(self.done),
            "stale": named(self.stale),
            "elsewhere": why(self.elsewhere),
            "unsupported": why(self.unsupported),
            "later": named(self.later),
            "remarks": why(self.remarks()),
            "waiting_for_tuning": self.waiting,
            "unpinned": self.unpinned,
            "unpinned_models": self.unpinned_models,
            "predicted": total(self.predict(cell) for cell in self.run),
        }


_Order = tuple[tuple[Cell, ...], tuple[NotRun, ...], dict[str, Slot]]
"""Cells to run in order, cells that a time budget does not hold, and places in randomised blocks."""


@dataclass(frozen=True)
class _Past:
    """Records of earlier runs, and in which environment they count.

    Attributes:
        entries: of the store, by key of the cell.
        here: short fingerprint of the present environment.
        there: the same of each side environment.
        rerun: statuses whose cells run again.
    """

    store: Store | None
    entries: Mapping[str, Sequence[Entry]]
    here: str
    there: Mapping[str, str]
    rerun: Sequence[str]

    def present(self, cell: Cell) -> str:
        """Fingerprint of the environment that the cell would run in now."""
        return self.there.get(QUANTIZERS.get(cell.quantization.name).declaration.environment, self.here)


@dataclass
class _Draft:
    """Lists that :func:`make` sorts cells into; a :class:`Plan` is made of them at the end."""

    waiting: int
    run: list[Cell] = field(default_factory=list)
    done: list[Cell] = field(default_factory=list)
    stale: list[Cell] = field(default_factory=list)
    elsewhere: list[tuple[Cell, str]] = field(default_factory=list)
    unsupported: list[tuple[Cell, str]] = field(default_factory=list)
    known: dict[str, frozenset[str]] = field(default_factory=dict)
    ingredients: Told = field(default_factory=dict)
    keep: set[str] = field(default_factory=set)
    later: list[Cell] = field(default_factory=list)

    def to_run(self, cell: Cell, entries: Mapping[str, Sequence[Entry]]) -> None:
        """Sort a cell among those to run, with the final records that it has by now."""
        self.run.append(cell)
        if held := entries.get(cell.key):
            self.known[cell.key] = frozenset(e.id for e in held if e.status in FINAL_STATUSES)


def make(
    sweep: LoadedSweep,
    workspace: Workspace,
    *,
    store: Store | None,
    machine: hw.Machine,
    fingerprint: str,
    outside: Mapping[str, str] | None = None,
    only: str | None = None,
    rerun: Sequence[str] = (),
    hours: float | None = None,
    slots: int = 1,
) -> Plan:
    """Sort the cells of ``sweep``.

    Args:
        store: where finished cells are looked up; None plans as if nothing had run.
        fingerprint: digest of the present environment (:func:`harness.provenance.fingerprint`).
        outside: the same of each side environment, by name (:func:`runners.environments.fingerprints`).
        only: shell-style pattern over cell labels and keys; other cells are left out of the plan.
        rerun: statuses, or ``stale`` or ``all``, whose cells are run again.
        hours: time budget; cells that are not expected to fit are in ``not_run``.
        slots: cells at once, for that expectation.

    Raises:
        UserError: a name in the sweep or a status in ``rerun`` that is not known; ``only`` matches nothing.
    """
    check_rerun(rerun)
    profiles = hw.load_profiles(workspace.roots)
    resolver = Resolver(sweep, workspace, machine)
    matrix = resolver.matrix(profiles)
    past = _Past(
        store,
        store.entries() if store is not None else {},
        here=short_fingerprint(fingerprint),
        there={name: short_fingerprint(digest) for name, digest in (outside or {}).items()},
        rerun=rerun,
    )
    predict = Predictor(profiles, machine, TaskLengths(resolver.task, workspace.data_root))
    reasons = memoised_reasons(profiles, machine, workspace.cache, predict)
    wanted = _tuned(sweep, matrix, reasons, store, past.entries)
    cells, parts = _cells(sweep, matrix, wanted, reasons, only)
    draft = _Draft(wanted.waiting + parts.waiting)
    for cell in cells:
        left_out = _left_out(cell, matrix, parts, wanted)
        if left_out is not None:
            draft.unsupported.append((cell, left_out))
        else:
            _sort(draft, cell, reasons(cell), past)
    _combining(draft, parts, past.entries, workspace.cache)
    if store is not None:
        predict.learn(store, cells, past.entries)
    return _finished(draft, resolver, cells, wanted, predict, _ordered(sweep, draft.run, predict, hours, slots))


def _cells(
    sweep: LoadedSweep, matrix: Matrix, wanted: Tuned, reasons: Reasons, only: str | None
) -> tuple[list[Cell], Combined]:
    """The cells of the plan and their sources: those wanted, their repeated runs, and the stages before them."""
    parts = combined(
        wanted.cells, tunes=sweep.spec.tune is not None, where=sweep.source, seeds=sorted(sweep.spec.seeds)
    )
    further = _timing(sweep, parts, {*matrix.excluded, *wanted.hopeless}, reasons)
    cells = select([*parts.cells, *further], only)
    stages = staged(cells)
    rows = {cell.key for cell in cells}  # a row of the sweep may be a stage as well, and keeps its label
    trained_first = {part.key: part for told in stages.values() for part in told if part.key not in rows}
    return [*cells, *trained_first.values()], replace(parts, told={**parts.told, **stages})


def _left_out(cell: Cell, matrix: Matrix, parts: Combined, wanted: Tuned) -> str | None:
    """Reason why the sweep or its tuning leaves a cell out, whatever the machine can run."""
    excluded = matrix.excluded.get(parts.was.get(cell.key, cell.key))
    return f"excluded by the sweep: {excluded}" if excluded is not None else wanted.hopeless.get(cell.key)


def _sort(draft: _Draft, cell: Cell, reasons: tuple[str | None, str | None], past: _Past) -> None:
    """Put a cell on the list of the draft that its records and this machine ask for."""
    elsewhere, why = reasons
    held = past.entries.get(cell.key, ())
    known = [e for e in held if e.status in FINAL_STATUSES and e.status != "unsupported"]
    present = past.present(cell)
    if known and not _asked_again(known, present, past.rerun):
        (draft.done if any(e.fingerprint == present for e in known) else draft.stale).append(cell)
    elif elsewhere is not None:
        draft.elsewhere.append((cell, elsewhere))
    elif why is not None:
        draft.unsupported.append((cell, why))
    elif past.store is not None and held and _refused_by_worker(past.store, held, present, past.rerun):
        draft.done.append(cell)
    else:
        draft.to_run(cell, past.entries)


def _finished(
    draft: _Draft, resolver: Resolver, cells: Sequence[Cell], wanted: Tuned, predict: Predictor, order: _Order
) -> Plan:
    """The plan of a draft whose cells are all sorted."""
    run, not_run, places = order
    return Plan(
        sweep=resolver.sweep,
        cells=tuple(cells),
        predict=predict,
        run=run,
        done=tuple(draft.done),
        stale=tuple(draft.stale),
        elsewhere=tuple(draft.elsewhere),
        unsupported=tuple(draft.unsupported),
        known=draft.known,
        tuning=wanted.tuning,
        ingredients=draft.ingredients,
        keep=frozenset(draft.keep),
        later=tuple(draft.later),
        waiting=draft.waiting,
        unpinned=resolver.unpinned(),
        unpinned_models=resolver.unpinned_models(),
        not_run=not_run,
        slots=places,
    )


def _timing(
    sweep: LoadedSweep,
    parts: Combined,
    left_out: set[str],
    reasons: Reasons,
) -> list[Cell]:
    """Repeated runs of the cells that can run here; a cell that starts from others is not repeated.

    Raises:
        UserError: the rule for identical arms matches no cell.
    """
    timing = sweep.spec.timing
    if timing is None:
        return []
    results = [
        cell
        for cell in parts.cells
        if "role" not in cell.common.identity
        and cell.on("stages") is None
        and cell.key not in left_out | parts.told.keys()
    ]
    can_run = [cell for cell in results if reasons(cell) == (None, None)]
    rule = pattern(timing.identical) if timing.identical is not None else None
    if (
        timing.identical is not None
        and rule is not None
        and parts.cells
        and not any(rule.matches(cell) for cell in parts.cells)
    ):
        raise UserError(
            f"timing: the rule 'identical' ({timing.identical.model_dump(exclude_defaults=True)}) matches no cell",
            where=sweep.where("timing", "identical"),
            fix=f"Cells are called, for example, {parts.cells[0].label!r}.",
        )
    return timing_cells(
        can_run,
        replicates=timing.replicates,
        first_seed=sweep.spec.seeds[0],
        identical=lambda cell: rule is not None and rule.matches(cell),
    )


def _ordered(sweep: LoadedSweep, cells: Sequence[Cell], predict: Predictor, hours: float | None, slots: int) -> _Order:
    """Cells to run in order, those that a time budget is not expected to hold, and places in randomised blocks."""
    rules, seeds = sweep.spec.priority, sweep.spec.seeds
    if hours is None:
        ranks = {cell.key: rank(cell, rules) for cell in cells} if rules else None
        blocks, places = in_blocks(cells, name=sweep.spec.name, seeds=seeds, rank=ranks)
        return tuple(blocks), (), places
    inside, over = fitting(
        in_order(cells, rules, seeds=seeds, predicted=predict), predict, seconds=hours * 3600, slots=slots
    )
    why = f"not expected within {hours:g} h on {slots} at once"
    return tuple(inside), tuple(NotRun(cell, "budget", why) for cell in over), {}


def _combining(draft: _Draft, parts: Combined, entries: Mapping[str, Sequence[Entry]], cache: Path) -> None:
    """Of the cells to run that combine others, leave those whose ingredients are there; see to it that they come."""
    refused = {c.key: why for c, why in (*draft.unsupported, *draft.elsewhere)}
    waiting: set[str] = set()
    # a stage before the stages after it: it may wait itself, and is then no cell to run
    open_cells = sorted((c for c in draft.run if c.key in parts.told), key=lambda c: len(parts.told[c.key]))
    while open_cells:
        cell = open_cells.pop(0)
        ingredients = parts.told[cell.key]
        open_ = False
        why = parts.pointless.get(cell.key)
        for part in ingredients:
            ended = {e.status for e in entries.get(part.key, ()) if e.status in FINAL_STATUSES}
            to_run = any(part.key == c.key for c in draft.run)
            if part.key in refused:
                why = why or f"its source cell {part.label} cannot run: {refused[part.key]}"
            elif not to_run and ended and "ok" not in ended:
                why = why or f"its source cell {part.label} ended as {', '.join(sorted(ended))}"
            elif to_run or "ok" not in ended or not kept(cache, part):
                open_ = True
        if why is not None or open_:
            draft.run.remove(cell)
        if why is not None:
            draft.unsupported.append((cell, why))
            refused[cell.key] = why
            continue
        draft.ingredients[cell.key] = ingredients
        draft.keep |= {part.key for part in ingredients}
        if open_:
            draft.waiting += 1
            draft.later.append(cell)
            waiting.add(cell.key)
            for part in ingredients:
                if not kept(cache, part) and part.key not in waiting | {c.key for c in draft.run}:
                    draft.to_run(part, entries)
                    if part.key in parts.told:
                        open_cells.append(part)
                    for sorted_ in (draft.done, draft.stale):
                        sorted_[:] = [c for c in sorted_ if c.key != part.key]


def _tuned(
    sweep: LoadedSweep,
    matrix: Matrix,
    reasons: Reasons,
    store: Store | None,
    entries: Mapping[str, Sequence[Entry]],
) -> Tuned:
    """The cells that are wanted now: those of the matrix, or where the sweep tunes, trials and chosen finals."""
    if sweep.spec.tune is None:
        return Tuned(cells=matrix.cells)

    def tunable(cell: Cell) -> bool:
        trains = cell.method.identity["learning_rate"] is not None
        return trains and cell.key not in matrix.excluded and reasons(cell) == (None, None)

    def record(cell: Cell) -> Record | None:
        final = [entry for entry in entries.get(cell.key, ()) if entry.status in FINAL_STATUSES]
        latest = store.latest(final) if store is not None and final else None
        return store.load(latest) if store is not None and latest is not None else None

    def result(cell: Cell) -> float | None:
        if (found := record(cell)) is None:
            return None
        reading = found.metrics.get("validation_nll")
        return FAILED if reading is None or reading.value is None else reading.value

    def curve(cell: Cell) -> Sequence[float]:
        found = record(cell)
        return found.series.get(CURVE, ()) if found is not None else ()

    return tuned(matrix.cells, sweep.spec.tune, tunable=tunable, result=result, curve=curve)


def select(cells: list[Cell], only: str | None) -> list[Cell]:
    """Cells whose label or key matches the shell-style pattern ``only``.

    Raises:
        UserError: the pattern matches nothing.
    """
    from fnmatch import fnmatchcase

    if only is None:
        return cells
    chosen = [c for c in cells if fnmatchcase(c.label, only) or c.key.startswith(only)]
    if not chosen:
        raise UserError(
            f"no cell matches {only!r}", where="--only", fix=f"Cells are called, for example, {cells[0].label!r}."
        )
    return chosen


def check_rerun(rerun: Sequence[str]) -> None:
    """Raises UserError for a word that selects no cells."""
    known = ("all", "stale", *get_args(Status))
    for word in rerun:
        if word not in known:
            raise UserError(f"unknown status {word!r}", where="--rerun", fix=did_you_mean(word, known))


def _asked_again(known: list[Entry], present: str, rerun: Sequence[str]) -> bool:
    if "all" in rerun or any(e.status in rerun for e in known):
        return True
    return "stale" in rerun and not any(e.fingerprint == present for e in known)


def _refused_by_worker(store: Store, entries: Sequence[Entry], present: str, rerun: Sequence[str]) -> bool:
    """True if a worker of this environment found that the cell cannot run, although no declaration says so.

    An ``unsupported`` record written by the plan itself does not count: the sweep or the machine may have changed.
    """
    if {"all", "unsupported"} & set(rerun):
        return False
    found = [e for e in entries if e.status == "unsupported" and e.fingerprint == present]
    return any(store.load(e).outcome.stage != "plan" for e in found)
