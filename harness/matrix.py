"""Axes to cells. A cell is a value: its key is the digest of everything that can change a number, and no more.

Labels, paths, timeouts, worker counts and the order of axes are *not* part of a key; two sweeps that ask for
the same cell share its record.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from harness.digests import canonical_json, digest_text, slug

KEY_VERSION = 1
KEY_CHARACTERS = 16
TIMING_ROLE = "timing"
"""Role of a cell that runs again for its time alone (``timing`` of a sweep)."""

DEFAULTS = {"objective": "sft", "recipe": "plain", "stages": "none", "variant": "plain", "parallel": "none"}
"""The axes that came after records were made, in their order, and the value that is no part of a key."""
LATER_AXES = tuple(DEFAULTS)


REPLACED = {
    "training": ("batch_size", "gradient_accumulation", "max_length", "gradient_checkpointing", "optimizer"),
    "model": ("attention", "dtype"),
}
"""Settings of a cell that a variant may replace, by the part of the cell they are in."""


def in_effect(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell (:meth:`Cell.as_dict`) with its variant's settings in the place of the sweep's and the model's."""
    switches = cell.get("variant") or {}
    parts = {part: {k: switches[k] for k in names if k in switches} for part, names in REPLACED.items()}
    return {**cell, **{part: {**cell[part], **found} for part, found in parts.items() if found and part in cell}}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one axis.

    Attributes:
        axis: ``model``, ``method``, ``quantization``, ``task``, ``hardware``, ``common``, or a further axis.
        name: registered name (or model id).
        label: what people read; never part of the identity.
        identity: plain JSON of everything about this value that can change a number.
        others: place of a second model in the cell (``objective.teacher``) to its id on this machine; no part of the
            identity, which holds its digest.
        earlier: of the axis ``stages``: what is trained first, in order.
        trained: place of a second model that is trained before it is asked, to its model, quantization and training.
    """

    axis: str
    name: str
    label: str
    identity: Mapping[str, Any]
    others: Mapping[str, str] = field(default_factory=dict)
    earlier: tuple[EarlierPoints, ...] = ()
    trained: Mapping[str, tuple[Point, Point, EarlierPoints]] = field(default_factory=dict)
    canonical: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "canonical", canonical_json(dict(self.identity)))


@dataclass(frozen=True, slots=True)
class EarlierPoints:
    """One earlier training of a cell, resolved; with the cell's own model, quantization and seed it is a cell itself.

    Attributes:
        method: at its own learning rate and steps.
        further: its objective and recipe where they are not the default, and the stages before it.
        task: None: that of the cell.
        common: what all cells of the sweep share.
        handover: ``merged`` or ``unmerged``.
    """

    method: Point
    further: tuple[Point, ...]
    task: Point | None
    common: Point
    handover: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the matrix.

    Attributes:
        common: what all cells of a sweep share: training budget, evaluation, probes, threads, protocol.
        further: values of the axes that came later (:data:`LATER_AXES`), those at their default left out.
        key: digest of the identity, 16 hexadecimal characters.
    """

    model: Point
    method: Point
    quantization: Point
    task: Point
    hardware: Point
    common: Point
    seed: int
    key: str
    further: tuple[Point, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """The axis values in their fixed order."""
        return (
            self.model,
            self.method,
            self.quantization,
            self.task,
            self.hardware,
            self.common,
            *self.further,
        )

    def on(self, axis: str) -> Point | None:
        """The value of a later axis; None where it is the default."""
        return next((p for p in self.further if p.axis == axis), None)

    @property
    def switches(self) -> Mapping[str, object]:
        """Switches of the cell's variant; ``{}`` for the plain one."""
        point = self.on("variant")
        return point.identity if point is not None else {}

    @property
    def ranks(self) -> int:
        """Processes that train it, one device each; 1 where it has no parallel strategy."""
        point = self.on("parallel")
        return int(point.identity["world_size"]) if point is not None else 1

    @property
    def training(self) -> dict[str, Any]:
        """The training settings in effect: the sweep's, with those that the variant replaces."""
        cell = {"training": self.common.identity["training"], "variant": self.switches}
        training: dict[str, object] = in_effect(cell)["training"]
        return training

    @property
    def loading(self) -> dict[str, Any]:
        """The model's dtype and attention in effect."""
        model = {name: self.model.identity[name] for name in REPLACED["model"]}
        return {**model, **{name: self.switches[name] for name in model if name in self.switches}}

    @property
    def trained_as(self) -> str:
        """The method with the values of the later axes, as a row of a board is called: ``lora+dpo``."""
        return "+".join((self.method.label, *(p.label for p in self.further)))

    @property
    def label(self) -> str:
        """Readable name, for people and for selecting on the command line."""
        parts = (self.model.label, self.trained_as, self.quantization.label, self.task.label)
        tail = f".{slug(self.hardware.label)}" if self.hardware.label != "any" else ""
        role = self.common.identity.get("role")
        if role == TIMING_ROLE:
            tail += f".timing{self.common.identity.get('replicate', 0)}"
            tail += "b" if self.common.identity.get("arm") else ""
        elif role:
            tail += f".{role}-lr{self.method.identity.get('learning_rate'):.3g}"
        return ".".join(slug(p) for p in parts) + f"{tail}.s{self.seed}"

    def as_dict(self) -> dict[str, object]:
        """The whole identity as plain JSON, plus the labels: what is stored in a record."""
        out: dict[str, Any] = {p.axis: {"label": p.label, **p.identity} for p in self.points if p is not self.common}
        out["method"]["label"] = self.trained_as
        return {**out, **self.common.identity, "seed": self.seed, "key_version": KEY_VERSION}


def make_cell(points: Sequence[Point], seed: int) -> Cell:
    """A cell from its axis values (model, method, quantization, task, hardware, common, further ones) and seed."""
    model, method, quantization, task, hardware, common, *further = points
    lines = [p.canonical for p in points[:6]] + [f"{p.axis}={p.canonical}" for p in further]
    text = f"{KEY_VERSION}\n{seed}\n" + "\n".join(lines)
    key = digest_text(text)[:KEY_CHARACTERS]
    return Cell(model, method, quantization, task, hardware, common, seed, key, tuple(further))


@dataclass(frozen=True)
class Axes:
    """The resolved axes of a sweep.

    Attributes:
        methods_by_task: the methods again, by label of the task, for tasks that set their number of steps.
        later: values of the axes that came later, by axis (:data:`LATER_AXES`); None is the default, which no key
            knows of.
        untrained: names of methods that neither train nor combine what was trained: later axes do not concern them.
    """

    models: Sequence[Point]
    methods: Sequence[Point]
    quantization: Sequence[Point]
    tasks: Sequence[Point]
    hardware: Sequence[Point]
    seeds: Sequence[int]
    common: Point
    methods_by_task: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    later: Mapping[str, Sequence[Point | None]] = field(default_factory=dict)
    untrained: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pattern:
    """Shell-style patterns over names or labels; ``seed`` None matches every seed."""

    model: str = "*"
    method: str = "*"
    quantization: str = "*"
    task: str = "*"
    hardware: str = "*"
    seed: int | None = None
    why: str = ""
    later: Mapping[str, str] = field(default_factory=dict)

    def matches(self, cell: Cell) -> bool:
        """True if every given pattern matches the cell."""
        return (self.seed is None or self.seed == cell.seed) and all(
            pattern == "*" or fnmatchcase(point.label, pattern) or fnmatchcase(point.name, pattern)
            for pattern, point in (
                (self.model, cell.model),
                (self.method, cell.method),
                (self.quantization, cell.quantization),
                (self.task, cell.task),
                (self.hardware, cell.hardware),
                *(
                    (pattern, cell.on(axis) or Point(axis, DEFAULTS[axis], DEFAULTS[axis], {}))
                    for axis, pattern in self.later.items()
                ),
            )
        )


@dataclass(frozen=True)
class Matrix:
    """All cells of a sweep in order, without doubles, and why some are excluded (by key)."""

    cells: list[Cell]
    excluded: dict[str, str]


def expand(axes: Axes, *, exclude: Sequence[Pattern] = (), include: Iterable[Cell] = ()) -> Matrix:
    """The product of the axes, seeds outermost so that methods are interleaved in time, then the extra cells.

    Slow drift of a machine then falls on all methods alike. A cell met twice is kept once.
    """
    cells: dict[str, Cell] = {}
    excluded: dict[str, str] = {}
    for cell in _product(axes):
        cells.setdefault(cell.key, cell)
        if exclude and cell.key not in excluded:
            why = next((p.why for p in exclude if p.matches(cell)), None)
            if why is not None:
                excluded[cell.key] = why
    for cell in include:
        cells.setdefault(cell.key, cell)
        excluded.pop(cell.key, None)
    return Matrix(cells=list(cells.values()), excluded=excluded)


def scored_on(cell: Cell, task: Point) -> Cell:
    """The cell that scores another task's test split with what ``cell`` trained; itself on that task if it does not."""
    points = (cell.model, cell.method, cell.quantization, task, cell.hardware, cell.common)
    if cell.method.identity["learning_rate"] is None:
        return make_cell(points, cell.seed)
    before = cell.on("stages")
    stage = {
        "method": dict(cell.method.identity),
        **{p.axis: dict(p.identity) for p in cell.further if p is not before},
        "task": dict(cell.task.identity),
        "handover": "unmerged",
    }
    identity = {"earlier": [*(before.identity["earlier"] if before is not None else ()), stage], "trains": False}
    earlier = EarlierPoints(cell.method, cell.further, cell.task, cell.common, "unmerged")
    label = "+".join((*(p.label for p in cell.further), f"trained on {cell.task.label}"))
    point = Point(
        "stages",
        "trained elsewhere",
        label,
        identity,
        earlier=(*(before.earlier if before is not None else ()), earlier),
    )
    return make_cell((*points, point), cell.seed)


def earlier_cells(cell: Cell) -> tuple[Cell, ...]:
    """The cells that train what this one starts from, the first one first; none where it starts from the model."""
    stages = cell.on("stages")
    return tuple(
        make_cell(
            (cell.model, one.method, cell.quantization, one.task or cell.task, cell.hardware, one.common, *one.further),
            cell.seed,
        )
        for one in (stages.earlier if stages is not None else ())
    )


def teacher_cells(cell: Cell) -> dict[str, Cell]:
    """The cells that train the second models of this one, by their place."""
    return {
        place: make_cell(
            (model, one.method, quantization, one.task or cell.task, cell.hardware, one.common, *one.further), cell.seed
        )
        for point in cell.further
        for place, (model, quantization, one) in point.trained.items()
    }


def _product(axes: Axes) -> Iterator[Cell]:
    rated: dict[tuple[int, float], Point] = {}
    for seed in axes.seeds:
        for hardware, model, task, quantization in product(axes.hardware, axes.models, axes.tasks, axes.quantization):
            for method in axes.methods_by_task.get(task.label, axes.methods):
                for values in product(*(axes.later.get(axis, (None,)) for axis in LATER_AXES)):
                    further = [v for v in values if v is not None and method.name not in axes.untrained]
                    rate = at_rate(method, further, rated)
                    yield make_cell((model, rate, quantization, task, hardware, axes.common, *further), seed)


def at_rate(method: Point, further: Sequence[Point], made: dict[tuple[int, float], Point]) -> Point:
    """The method at its learning rate times the factors of the later axes; the same object for the same values."""
    rate = method.identity.get("learning_rate")
    factor = math.prod(point.identity.get("lr_factor", 1.0) for point in further)
    if rate is None or factor == 1:
        return method
    key = (id(method), factor)
    if key not in made:
        identity = {**method.identity, "learning_rate": float(f"{rate * factor:.4g}")}
        made[key] = replace(method, identity=identity)
    return made[key]
