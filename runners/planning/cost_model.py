"""Predicted time and memory of a cell: an estimate from sizes, corrected by past records.

The estimate counts operations and bytes (training: 2 per parameter and token forward, 2 for the gradients of
activations, 2 for those of trained weights; Kaplan et al., arXiv 2001.08361; activations: Korthikanti et al., arXiv
2205.05198, eq. 1 without the attention matrix). The correction is the median of measured / estimated over the records
of the narrowest group that has any: the cell itself, its other seeds, its method on its model, its model, its device.

One figure is no estimate: :attr:`Prediction.least_bytes` counts only what must be there at once. A cell whose least
does not fit its device is refused before it starts; everything else is left to the run to find out.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import hardware as hw
from harness.errors import UserError
from harness.matrix import Cell
from harness.methods.catalog import METHODS
from harness.models.shape import Shape, shape_of
from harness.record import Record
from harness.store.store import Entry, Store

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_SHARE = 0.01
"""Trained share of the parameters where a method's declaration does not settle it; for the estimate alone."""
HOST_BYTES = 600 * 2**20
"""Resident memory of a worker before it has a model: interpreter and libraries."""
START_S = 3.0
FLOPS_PER_S = {"cpu": 10e9, "cuda": 40e12}
"""Operations per second where no record and no stated peak says more: one core, one data-centre GPU."""
UTILISATION = 0.3
"""Of a stated peak."""
MOST_RECORDS = 200
"""Past records that are read; one per configuration first."""
PEAK = {"cpu": "peak_rss_bytes", "cuda": "cuda_reserved_peak_bytes"}

Group = tuple[Any, ...]
GROUPS = ("this cell", "its other seeds", "its method on this model", "this model", "this device")


@dataclass(frozen=True)
class Prediction:
    """Prediction for a cell.

    Attributes:
        seconds: wall time of its stages; None where the model's size is not known and no record helps.
        peak_bytes: peak memory: resident on a CPU, allocated on a GPU.
        least_bytes: weights, and the gradients and Adam's two states of a method that trains them all; a lower bound.
        basis: where the numbers come from.
    """

    seconds: float | None = None
    peak_bytes: float | None = None
    least_bytes: float | None = None
    basis: str = "the model's size is not known here"

    def as_json(self) -> dict[str, Any]:
        """As ``plan --json`` prints it."""
        return {
            "predicted_s": None if self.seconds is None else round(self.seconds, 2),
            "predicted_peak_bytes": None if self.peak_bytes is None else round(self.peak_bytes),
            "basis": self.basis,
        }


class Predictor:
    """Predictions for the cells of a plan, once per configuration; seeds differ in nothing that is predicted.

    Args:
        profiles: hardware profiles by name.
        machine: what the plan is made for.

    Attributes:
        damaged: past records that could not be read, in words.
    """

    def __init__(self, profiles: Mapping[str, hw.HardwareProfile], machine: hw.Machine) -> None:
        self._profiles = profiles
        self._machine = machine
        self._analytic: dict[Group, Prediction] = {}
        self._known: dict[Group, Prediction] = {}
        self._seconds: dict[Group, list[float]] = defaultdict(list)
        self._bytes: dict[Group, list[float]] = defaultdict(list)
        self._measured_keys: set[str] = set()
        self._unread: tuple[Store, Iterable[Cell], Mapping[str, Sequence[Entry]]] | None = None
        self.damaged: list[str] = []

    def learn(self, store: Store, cells: Iterable[Cell], entries: Mapping[str, Sequence[Entry]]) -> None:
        """Let past records of these cells correct the estimates. They are read when something is first predicted."""
        self._unread = (store, cells, entries)

    def _read(self) -> None:
        """Read at most :data:`MOST_RECORDS`; what is damaged is named in :attr:`damaged`."""
        if self._unread is None:
            return
        (store, cells, entries), self._unread = self._unread, None
        first: list[tuple[Cell, Entry]] = []
        further: list[tuple[Cell, Entry]] = []
        seen: set[Group] = set()
        for cell in cells if entries else ():
            found = next((e for e in reversed(entries.get(cell.key, ())) if e.status == "ok"), None)
            if found is not None:
                (further if _configuration(cell) in seen else first).append((cell, found))
                seen.add(_configuration(cell))
        for cell, entry in [*first, *further][:MOST_RECORDS]:
            try:
                self._take(cell, store.load(entry))
            except UserError as error:  # it teaches nothing, and says so
                self.damaged.append(str(error))

    def _take(self, cell: Cell, record: Record) -> None:
        estimate = self.analytic(cell)
        seconds, peak = measured_s(record), measured_peak_bytes(record, device_of(cell))
        self._measured_keys.add(cell.key)
        for group in _groups(cell):
            if seconds and estimate.seconds:
                self._seconds[group].append(seconds / estimate.seconds)
            if peak and estimate.peak_bytes:
                self._bytes[group].append(peak / estimate.peak_bytes)

    def __call__(self, cell: Cell) -> Prediction:
        """Prediction for this cell."""
        self._read()
        own = (cell.key,) if cell.key in self._measured_keys else _configuration(cell)
        if own not in self._known:
            self._known[own] = self._corrected(cell)
        return self._known[own]

    def _corrected(self, cell: Cell) -> Prediction:
        estimate = self.analytic(cell)
        if estimate.seconds is None or estimate.peak_bytes is None:
            return estimate
        for name, group in zip(GROUPS, _groups(cell), strict=True):
            if group in self._seconds:
                ratios, memory = self._seconds[group], self._bytes.get(group)
                return Prediction(
                    estimate.seconds * statistics.median(ratios),
                    estimate.peak_bytes * statistics.median(memory) if memory else estimate.peak_bytes,
                    estimate.least_bytes,
                    f"estimate corrected by {len(ratios)} records of {name}",
                )
        return estimate

    def analytic(self, cell: Cell) -> Prediction:
        """The estimate from sizes alone."""
        group = _configuration(cell)
        if group not in self._analytic:
            shape = shape_of(cell.model.name, cell.model.identity.get("revision"))
            self._analytic[group] = self._estimate(cell, shape) if shape is not None else Prediction()
        return self._analytic[group]

    def _estimate(self, cell: Cell, shape: Shape) -> Prediction:
        method, training = cell.method.identity, cell.training
        declaration = METHODS.get(cell.method.name).declaration
        quantization = cell.quantization.identity
        width = DTYPE_BYTES[cell.loading["dtype"]]
        bits = quantization["bits"] if quantization["moment"] == "before_training" else 8.0 * width
        weights = shape.parameters * min(bits / 8, width)
        sure = (declaration.trained_fraction or 0.0) if declaration.trains else 0.0
        share = sure or (ADAPTER_SHARE if declaration.trains else 0.0)
        training_state = shape.parameters * width * 3  # gradients and two moments
        length = training["max_length"]
        micro = training["batch_size"] * length if declaration.trains else 0
        activations = micro * shape.layers * shape.hidden * 17 * width + 2 * 4 * micro * shape.vocabulary
        host = HOST_BYTES if device_of(cell) == "cpu" else 0
        trained = (method["steps"] or 0) * micro * training["gradient_accumulation"]
        scored = _items(cell) * length * (2 if declaration.trains else 1)
        operations = shape.parameters * (trained * (4 + 2 * share) + scored * 2)
        return Prediction(
            seconds=START_S + operations / self._speed(cell),
            peak_bytes=host + weights + share * training_state + activations,
            least_bytes=weights + sure * training_state,
            basis="estimate from sizes",
        )

    def _speed(self, cell: Cell) -> float:
        device = device_of(cell)
        peaks = self._profiles[cell.hardware.name].peak_tflops or {}
        peak = peaks.get(cell.loading["dtype"])
        if device == "cuda" and peak is not None:
            return peak * 1e12 * UTILISATION
        return FLOPS_PER_S[device] * (cell.common.identity["threads"] if device == "cpu" else 1)

    def does_not_fit(self, cell: Cell) -> str | None:
        """Reason why the cell cannot fit its device, by the memory that is needed at once; None if it may fit."""
        least = self.analytic(cell).least_bytes
        if least is None:
            return None
        profile = self._profiles[cell.hardware.name]
        if device_of(cell) == "cpu":
            has, what = self._machine.memory_bytes, "this machine"
        else:
            has = max((gpu.memory_bytes for gpu in hw.gpus_for(profile, self._machine)), default=0)
            what = "the largest GPU"
            if profile.memory_limit_gib is not None:
                has, what = round(profile.memory_limit_gib * hw.GIB), f"the cap of {profile.name}"
        if not has or least <= has:
            return None
        return (
            f"does not fit: weights and training state alone take {least / hw.GIB:.1f} GiB, {what} has "
            f"{has / hw.GIB:.1f} GiB"
        )


def total(predictions: Iterable[Prediction]) -> dict[str, Any]:
    """The sum of the seconds, the highest peak, and how many cells have no prediction."""
    made = list(predictions)
    known = [p.seconds for p in made if p.seconds is not None]
    peaks = [p.peak_bytes for p in made if p.peak_bytes is not None]
    return {
        "seconds": round(sum(known), 1),
        "peak_bytes": round(max(peaks)) if peaks else None,
        "cells_without": len(made) - len(known),
    }


def measured_s(record: Record) -> float | None:
    """Total time of the stages of a record, seconds, without those of earlier cells; None if a clock failed."""
    spans = [span.seconds for span in record.spans if not span.stage.startswith(span.EARLIER)]
    known = [s for s in spans if s is not None]
    return sum(known) if known and len(known) == len(spans) else None


def measured_peak_bytes(record: Record, device: str) -> float | None:
    """The highest peak over the stages of a record, of the kind of memory that is predicted."""
    readings = (r.value for span in record.spans for r in span.readings if r.quantity == PEAK[device])
    return max((value for value in readings if value is not None), default=None)


def device_of(cell: Cell) -> str:
    """``cpu`` or ``cuda``: where a cell runs. ``any`` was resolved when the cell was made."""
    return str(cell.hardware.identity["device"])


def _configuration(cell: Cell) -> Group:
    """A cell without its seed. The points of a plan live as long as the plan, so their identity names them."""
    return tuple(id(point) for point in cell.points)


def _groups(cell: Cell) -> tuple[Group, ...]:
    """The groups of :data:`GROUPS`, narrowest first."""
    return (
        (cell.key,),
        _configuration(cell),
        (id(cell.model), cell.method.name),
        (id(cell.model),),
        (device_of(cell),),
    )


def _items(cell: Cell) -> int:
    """Items that are scored; where the sweep takes a whole split, a guess of 1000."""
    task = cell.task.identity
    return sum(1000 if task[name] is None else int(task[name]) for name in ("validation_items", "test_items"))
