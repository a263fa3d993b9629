"""Keys that decide which records are comparable: machine, conditions, configuration, exclusion marks.

A *configuration* is everything of a cell but its seed and its labels. *Conditions* are what must be equal before two
rows may be ranked against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from harness.digests import digest
from harness.matrix import TIMING_ROLE, in_effect
from harness.record import CellView, Parts, Record

TIMING_FIELDS = frozenset({"role", "replicate", "arm"})
__all__ = [
    "AXES",
    "TIMING_ROLE",
    "Difference",
    "comparable",
    "configuration",
    "differences",
    "machine",
    "marks",
    "place",
    "remarks",
    "role",
    "settings_of",
]
AXES = ("model", "method", "quantization", "task", "hardware")
SETTINGS = {
    "learning_rate": "of the method; empty where it does not train",
    "steps": "training steps",
    "batch_size": "rows of a micro-batch",
    "gradient_accumulation": "micro-batches of a step",
    "max_length": "tokens; longer rows are cut",
    "schedule": "of the learning rate",
    "train_items": "rows trained on, at most",
    "validation_items": "rows of the validation split, at most; empty: all",
    "test_items": "rows of the test split, at most; empty: all",
    "dtype": "in which the model is loaded",
    "version": "of peft-matrix; else its commit",
}
"""Settings of a cell that every table of records has as columns, with their meanings; see :func:`settings_of`."""

BUDGET = (
    "steps",
    "batch_size",
    "gradient_accumulation",
    "max_length",
    "train_items",
    "validation_items",
    "test_items",
)
"""Settings that say how much a cell trained on and was scored on."""
_COVERED = frozenset({"label", *SETTINGS})
_NOT_SETTINGS = frozenset({"seed", "key_version", *TIMING_FIELDS})


def machine(record: Record) -> dict[str, Any]:
    """The machine as far as it changes time, memory or energy; ``{}`` where the record does not say.

    The host's name is not in it: two hosts with the same processor and accelerators count as one machine.
    """
    if not isinstance(record.environment.get("cpu"), Mapping):
        return {}
    out: dict[str, Any] = {"cpu": record.environment_view.cpu}
    if record.cell_view.part("hardware").get("device") != "cpu":
        out["gpus"] = sorted(_gpu_words(gpu) for gpu in record.environment_view.gpus)
    return out


def _gpu_words(gpu: Mapping[str, object]) -> str:
    if gpu.get("power_limit_w") is None:
        return f"{gpu.get('name')}, power limit not stated"
    return f"{gpu.get('name')}, {gpu['power_limit_w']} W"


def place(record: Record) -> str:
    """Digest of the machine, "" where the record does not say where it ran."""
    if record.indexed is not None:
        return str(record.indexed["machine"])
    known = machine(record)
    return digest(known) if known else ""


def marks(record: Record) -> tuple[str, ...]:
    """Reasons why a row is shown but not ranked: ``imported``, ``simulated``, ``throttled``, ``shared``, ``halved``.

    ``imported`` and ``simulated`` come from a record's environment; ``throttled`` and ``shared`` from the meters of any
    stage; a ``halved`` cell ran out of memory and was trained in smaller batches than asked for.
    """
    if record.indexed is not None:
        return tuple(record.indexed["marks"])
    found = {name for name in ("imported", "simulated") if record.environment.get(name)}
    if Parts(record.environment_view.facts).part("batch").get("out_of_memory"):
        found.add("halved")
    for reading in (*record.metrics.values(), *(r for span in record.spans for r in span.readings)):
        if reading.why_missing == "shared" or (reading.quantity == "foreign_processes" and (reading.value or 0) > 0):
            found.add("shared")
        if reading.quantity == "throttled_fraction" and (reading.value or 0) > 0:
            found.add("throttled")
    return tuple(sorted(found))


def remarks(record: Record) -> tuple[str, ...]:
    """Notes that a reader of a result needs, in words; ``()`` for most."""
    tuning = record.environment_view.facts.get("tuning")
    if isinstance(tuning, Mapping) and tuning.get("lr_at_edge") is True:
        return ("the best learning rate is at the edge of the rates tried",)
    return ()


def role(record: Record) -> str:
    """``result``, or what the record is instead: part of tuning (a trial, or a run at the shared rate)."""
    return record.cell_view.role


def settings_of(record: Record) -> dict[str, Any]:
    """The :data:`SETTINGS` of a record, in effect: a variant's in the place of the sweep's. None: not stated."""
    if record.indexed is not None:
        return {name: record.indexed[name] for name in SETTINGS}
    found = _settings(record.cell)
    environment = record.environment_view
    return {
        **found,
        "train_items": found["train_items"] or _count(environment.facts.get("train_items")),
        "version": _text(environment.packages.get("peft-matrix")) or environment.commit[:12] or None,
    }


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    cell = CellView(content)
    if isinstance(content.get("variant"), Mapping):
        cell = CellView(in_effect({**content, **{name: cell.part(name) for name in ("training", "model")}}))
    method, training, task = cell.part("method"), cell.part("training"), cell.part("task")
    rate = method.get("learning_rate", training.get("learning_rate"))
    steps = method.get("steps") or (training.get("steps") if rate is not None else None)  # what does not train has none
    return {
        "learning_rate": _rate(rate),
        "steps": _count(steps),
        **{name: _count(training.get(name)) for name in ("batch_size", "gradient_accumulation", "max_length")},
        "schedule": _text(training.get("schedule")),
        **{name: _count(task.get(name)) for name in ("train_items", "validation_items", "test_items")},
        "dtype": _text(cell.part("model").get("dtype")),
    }


def _rate(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) < 1e9 else None


def _count(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def comparable(record: Record) -> dict[str, object]:
    """Everything but the machine that must be equal before two rows may be ranked against each other."""
    cell = record.cell_view
    task = {k: v for k, v in cell.part("task").items() if k != "label"}
    shared = {name: record.cell.get(name) for name in ("training", "evaluation", "threads", "protocol")}
    return {"task": task, "hardware": cell.part("hardware").get("label", ""), **shared}


def configuration(record: Record) -> str:
    """Digest of the cell without its seed and its labels, 16 hexadecimal characters.

    A run that repeats a cell for its time has the configuration of that cell.
    """
    if record.indexed is not None:
        return str(record.indexed["config"])
    left_out = {"seed", *(TIMING_FIELDS if role(record) == TIMING_ROLE else ())}
    cell = {
        name: {k: v for k, v in value.items() if k != "label"} if isinstance(value, dict) else value
        for name, value in record.cell.items()
        if name not in left_out
    }
    return digest(cell)[:16]


class Difference(NamedTuple):
    """A setting that two cells do not share."""

    name: str
    a: object
    b: object

    @property
    def of_budget(self) -> bool:
        """True if one of the two trained on more, or was scored on more."""
        return self.name in BUDGET

    def words(self, between: str = " against ") -> str:
        """``steps 12 against 13``."""
        return f"{self.name} {_shown(self.a)}{between}{_shown(self.b)}"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Settings in which two cells differ, the budget first.

    Seeds and labels are no settings. Of an axis on which the two have different names (two methods, say) only the
    budget and the learning rate are told; rate and steps only where both train.
    """
    known, other = _settings(a), _settings(b)
    found = [Difference(name, known[name], other[name]) for name in (*BUDGET, "learning_rate", "schedule", "dtype")]
    trains = known["learning_rate"] is not None and other["learning_rate"] is not None
    told = [d for d in found if d.a != d.b and (trains or d.name not in ("learning_rate", "steps"))]
    sides = [dict(_flat(cell)) for cell in (a, b)]
    first, second = CellView(a), CellView(b)
    others = {
        axis for axis in a if _named(first, axis) != _named(second, axis) and first.label(axis) != second.label(axis)
    }
    for path in dict.fromkeys((*sides[0], *sides[1])):
        axis, _, inner = path.partition(".")
        if inner in _COVERED or axis in others:
            continue
        if sides[0].get(path) != sides[1].get(path):
            told.append(Difference(path, sides[0].get(path), sides[1].get(path)))
    return told


def _named(cell: CellView, axis: str) -> object:
    """Name of a cell's point on an axis: the id of a model."""
    point = cell.part(axis)
    return point.get("name", point.get("id"))


def _flat(cell: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    """Every setting of a cell by its path, ``method.params.r``."""
    for name, value in cell.items():
        if above or name not in _NOT_SETTINGS:
            if isinstance(value, dict) and value:
                yield from _flat(value, f"{above}{name}.")
            else:
                yield f"{above}{name}", value


def _shown(value: object) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
