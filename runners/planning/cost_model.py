"""Predicted time and memory of a cell: an estimate from sizes, corrected by past records.

The estimate counts operations and bytes (training: 2 per parameter and token forward, 2 for the gradients of
activations, 2 for those of trained weights; Kaplan et al., arXiv 2001.08361; activations: Korthikanti et al., arXiv
2205.05198, eq. 1 without the attention matrix). Tokens are those of the first rows of the cell's task, where these are
on this machine, and not the longest that the sweep allows. The correction is the median of measured / estimated over
the records of the narrowest group that has any: the cell itself, its other seeds, its method on its model, its model,
its device. ``python -m tests.quality.predictions`` compares estimates with the committed records.

One figure is no estimate: :attr:`Prediction.least_bytes` counts only what must be there at once. A cell whose least
does not fit its device is refused before it starts; everything else is left to the run to find out.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import hardware as hw
from harness.errors import UserError
from harness.matrix import Cell
from harness.methods.catalog import METHODS
from harness.models.shape import Shape, shape_of
from harness.record import Record
from harness.spec_axes import SkillUse, named
from harness.store.store import Entry, Store
from tasks.data import count_items, in_file, load_split
from tasks.formats import formats_of, in_format
from tasks.task import Item, SplitName, Task

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_SHARE = 0.01
"""Trained share of the parameters where a method's declaration does not settle it; for the estimate alone."""
HOST_BYTES = 500 * 2**20
"""Resident memory of a worker before it has a model: interpreter and libraries."""
START_S = 1.2
"""Reading the task, loading and checking a small model, saving what was trained."""
FLOPS_PER_S = {"cpu": 30e9, "cuda": 40e12}
"""Operations per second where no record and no stated peak says more: one core, one data-centre GPU."""
STEP_S = {"cpu": 0.012, "cuda": 0.03}
"""A training step whose arithmetic takes no time; a pass that generates a token has a third of it."""
UPDATE_S = {"cpu": 5e-9, "cuda": 4e-11}
"""AdamW's update of a parameter: weight, gradient and two moments are read, three of them written."""
MOMENTS = {"adamw": 2.0, "adamw-8bit": 2.0, "lion": 1.0, "adafactor": 0.0, "sgd": 0.0}
"""Numbers of state per parameter, those of ``adamw-8bit`` of one byte each; Adafactor has a few per row and column."""
DISK_BYTES_PER_S = 1e9
ROWS_READ = 64
"""Rows of a split whose length is taken for the length of all."""
BYTES_PER_TOKEN = 4.2
"""Of English in a tokenizer of 30,000 to 130,000 entries."""
BY_LETTER = ("builtin:", "skeleton:")
"""Models whose tokenizer has a token for each character or byte."""
SKILL_ITEMS = 100
"""Test items of a task that a cell retains (:mod:`runners.worker.stages.retain`)."""
UTILISATION = 0.3
"""Of a stated peak."""
MOST_RECORDS = 200
"""Past records that are read; one per configuration first."""
PEAK = {"cpu": "peak_rss_bytes", "cuda": "cuda_reserved_peak_bytes"}

DEVICES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of devices that are tried."""

Group = tuple[Any, ...]
GROUPS = ("this cell", "its other seeds", "its method on this model", "this model", "this device")


@dataclass(frozen=True)
class Memory:
    """Parts of the memory that a cell is predicted to hold at its peak.

    Attributes:
        host_bytes: interpreter and libraries, where the memory of the process counts.
        weights_bytes: the base, at the bits it is quantized to before training.
        state_bytes: gradients and Adam's two moments of what is trained.
        activation_bytes: activations and logits of a micro-batch.
        layers: transformer blocks.
        rows: rows of a micro-batch.
    """

    host_bytes: float
    weights_bytes: float
    state_bytes: float
    activation_bytes: float
    layers: int
    rows: int

    def on(self, devices: int) -> float:
        """Bytes on each of ``devices`` that shard weights and state and divide the rows.

        Full sharding as in FSDP and ZeRO stage 3 (1910.02054, section 5.3): a device holds its share of weights and
        state, and gathers the block that runs and the next one. A row is not divided further.
        """
        whole = self.host_bytes + self.weights_bytes + self.state_bytes + self.activation_bytes
        if devices == 1:
            return whole
        gathered = self.weights_bytes * min(2 / self.layers, 1)
        rows = math.ceil(self.rows / devices) / self.rows if self.rows else 0.0
        shared = (self.weights_bytes + self.state_bytes) / devices
        return self.host_bytes + shared + gathered + self.activation_bytes * rows

    def devices(self, capacity_bytes: float) -> int | None:
        """The fewest of :data:`DEVICES` on which it fits; None if it fits on none of these numbers."""
        return next((n for n in DEVICES if self.on(n) <= capacity_bytes), None)


@dataclass(frozen=True)
class Prediction:
    """Prediction for a cell.

    Attributes:
        seconds: wall time of its stages; None where the model's size is not known and no record helps.
        peak_bytes: peak memory: resident on a CPU, allocated on a GPU.
        least_bytes: weights, and the gradients and Adam's two states of a method that trains them all; a lower bound.
        basis: where the numbers come from.
        memory: the parts of the peak, before records correct it.
    """

    seconds: float | None = None
    peak_bytes: float | None = None
    least_bytes: float | None = None
    basis: str = "the model's size is not known here"
    memory: Memory | None = None

    def as_json(self) -> dict[str, object]:
        """As ``plan --json`` prints it."""
        return {
            "predicted_s": None if self.seconds is None else round(self.seconds, 2),
            "predicted_peak_bytes": None if self.peak_bytes is None else round(self.peak_bytes),
            "basis": self.basis,
        }


@dataclass(frozen=True)
class Tokens:
    """Tokens of a cell.

    Attributes:
        longest: the longest training row, at most what the sweep allows.
        padded: a row of a batch of training, padding counted.
        scored: all tokens that are only read: the test items in every form they are asked, validation, retained skills.
        decoded: passes that generate one token for every row of a batch.
        reads_vocabulary: whether training computes the probabilities of the vocabulary.
        known: whether rows were read.
    """

    longest: float
    padded: float
    scored: float
    decoded: float = 0.0
    reads_vocabulary: bool = False
    known: bool = True


@dataclass(frozen=True)
class _RowLengths:
    """Lengths in bytes of the first rows of a split: what is trained on, and what is read to score an item."""

    trained: tuple[float, ...]
    scored: tuple[float, ...]


class TaskLengths:
    """Tokens of the cells of a sweep, from the first rows of their tasks; what is not on this machine is not fetched.

    Args:
        task: a task by name.
        data_root: folder of local data sets.
    """

    def __init__(self, task: Callable[[str], Task], data_root: Path | None) -> None:
        self._task = task
        self._data_root = data_root
        self._rows: dict[tuple[str, str | None, SplitName], _RowLengths | None] = {}
        self._counts: dict[tuple[str, SplitName, int | None], int] = {}

    def __call__(self, cell: Cell) -> Tokens | None:
        """The cell's tokens; None where its rows are not on this machine, or not what the task says."""
        said, training, evaluation = cell.task.identity, cell.training, cell.common.identity["evaluation"]
        name, form = said["name"], said.get("format")
        per_token = 1.0 if cell.model.name.startswith(BY_LETTER) else BYTES_PER_TOKEN
        test = self._read(name, form, "test")
        trains = METHODS.get(cell.method.name).declaration.trains
        train = self._read(name, form, "train") if trains or not said.get("test_only") else test
        if test is None or train is None:
            return None
        most = training["max_length"]
        rows = [min(length / per_token + 1, most) for length in train.trained]
        batch = training["batch_size"]
        tops = [max(rows[i : i + batch]) for i in range(0, len(rows), batch)]
        mean = statistics.fmean(test.scored) / per_token
        n = self._count(name, "test", said["test_items"])
        has_validation = "validation" in self._task(name).definition.splits and not said.get("test_only")
        validation = self._count(name, "validation", said["validation_items"]) if has_validation else 0
        scored = mean * n * self._times_asked(cell) + statistics.fmean(rows) * validation
        if evaluation["retention"]:
            kept = [SkillUse.model_validate(named(skill)) for skill in evaluation.get("retain", ())]
            for skill in (*(SkillUse(name=name) for name in said.get("retain", {})), *kept):
                asked = self._read(skill.name, skill.format, "test")
                scored += 2 * SKILL_ITEMS * statistics.fmean(asked.scored) / per_token if asked is not None else 0
        task = self._task(name).definition
        batches = -(-n // evaluation["batch_size"])
        return Tokens(
            longest=max(rows),
            padded=statistics.fmean(tops),
            scored=scored,
            decoded=batches * task.max_new_tokens * self._times_asked(cell) if task.wants_completions else 0,
            reads_vocabulary=task.kind != "sequence-classification",
        )

    def _times_asked(self, cell: Cell) -> int:
        """How often the test items are scored: again once merged, or in every format where nothing trains."""
        declaration = METHODS.get(cell.method.name).declaration
        if not declaration.trains and cell.task.identity.get("format"):
            return len(formats_of(self._task(cell.task.identity["name"])))
        merged = cell.common.identity["evaluation"]["merged"] and declaration.mergeable != "no"
        return 2 if declaration.trains and merged and not declaration.in_place else 1

    def _read(self, name: str, form: Any, split: SplitName) -> _RowLengths | None:
        at = (name, form, split)
        if at not in self._rows:
            task = in_format(self._task(name), form) if form else self._task(name)
            self._rows[at] = None
            with contextlib.suppress(UserError):  # the run says what is wrong with the data; here it is not known
                if task.definition.source.generator or in_file(task, split, data_root=self._data_root):
                    items = load_split(task, split, data_root=self._data_root, max_items=ROWS_READ, seed=0)
                    self._rows[at] = _RowLengths(
                        tuple(_letters(item) for item in items),
                        tuple(_letters(item) + sum(map(len, item.choices)) for item in items),
                    )
        return self._rows[at]

    def _count(self, name: str, split: SplitName, most: int | None) -> int:
        at = (name, split, most)
        if at not in self._counts:
            self._counts[at] = count_items(self._task(name), split, data_root=self._data_root, max_items=most)
        return self._counts[at]


def _letters(item: Item) -> int:
    """Characters of prompt and answer; of a pair, of both its answers, each behind its prompt."""
    second = len(item.prompt) + len(item.rejected) if item.rejected else 0
    return len(item.prompt) + len(item.answer) + second


class Predictor:
    """Predictions for the cells of a plan, once per configuration; seeds differ in nothing that is predicted.

    Args:
        profiles: hardware profiles by name.
        machine: what the plan is made for.
        lengths: the tokens of a cell's tasks; None takes every row for as long as the sweep allows.

    Attributes:
        damaged: past records that could not be read, in words.
    """

    def __init__(
        self, profiles: Mapping[str, hw.HardwareProfile], machine: hw.Machine, lengths: TaskLengths | None = None
    ) -> None:
        self._profiles = profiles
        self._lengths = lengths
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
        optimizer = str(training.get("optimizer", "adamw"))
        per_moment = 1 if optimizer == "adamw-8bit" else width
        training_state = shape.parameters * (width + per_moment * MOMENTS[optimizer])  # gradients, and their moments
        tokens = self._tokens(cell)
        per_step = training["batch_size"] * training["gradient_accumulation"] if declaration.trains else 0
        micro = training["batch_size"] * tokens.longest if declaration.trains else 0
        # Recomputed, a block keeps its input alone; the one that is recomputed holds the rest for a moment.
        kept = shape.layers + 17 if training["gradient_checkpointing"] else 17 * shape.layers
        activations = micro * shape.hidden * kept * width + 2 * 4 * micro * shape.vocabulary
        host = HOST_BYTES if device_of(cell) == "cpu" else 0
        rows = training["batch_size"] if declaration.trains else 0
        memory = Memory(host, weights, share * training_state, activations, shape.layers, rows)
        device, speed, steps = device_of(cell), self._speed(cell), method["steps"] or 0
        body = max(shape.parameters - shape.vocabulary * shape.hidden, shape.parameters // 10)
        trained = steps * per_step * tokens.padded
        operations = trained * ((4 + 2 * share) * body + 6 * shape.vocabulary * shape.hidden * tokens.reads_vocabulary)
        operations += tokens.scored * 2 * body
        passes = steps * training["gradient_accumulation"] + tokens.decoded / 3
        updates = steps * share * shape.parameters * UPDATE_S[device]
        seconds = START_S + operations / speed + passes * STEP_S[device] + updates + 3 * weights / DISK_BYTES_PER_S
        return Prediction(
            seconds=seconds,
            peak_bytes=memory.on(1),
            least_bytes=weights + sure * training_state,
            basis="estimate from sizes" if tokens.known else "estimate from sizes and the longest rows allowed",
            memory=memory,
        )

    def _tokens(self, cell: Cell) -> Tokens:
        if self._lengths is not None and (found := self._lengths(cell)) is not None:
            return found
        trains = METHODS.get(cell.method.name).declaration.trains
        length = cell.training["max_length"]
        scored = _items(cell) * length * (2 if trains else 1)
        return Tokens(longest=length, padded=length, scored=scored, reads_vocabulary=True, known=False)

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


def fits(predict: Predictor, cells: Iterable[Cell], capacity_bytes: float) -> list[dict[str, object]]:
    """Tell whether cells fit devices of ``capacity_bytes``, from sizes alone; one row per cell without its seed.

    ``devices`` is the fewest on which it fits when weights and training state are sharded (:meth:`Memory.on`), None if
    more than 64 are needed or the model's size is not known. Whether a method trains sharded is not asked here.
    """
    found: dict[Group, dict[str, Any]] = {}
    for cell in cells:
        memory = predict.analytic(cell).memory
        needed = memory.devices(capacity_bytes) if memory is not None else None
        row: dict[str, Any] = {"cell": cell.label, "fits": None if memory is None else needed == 1, "devices": needed}
        for name in ("weights_bytes", "state_bytes", "activation_bytes"):
            row[name] = None if memory is None else round(getattr(memory, name))
        row["peak_bytes"] = None if memory is None else round(memory.on(1))
        row["peak_bytes_sharded"] = None if memory is None or needed is None else round(memory.on(needed))
        found.setdefault(_configuration(cell), row)
    return list(found.values())


def total(predictions: Iterable[Prediction]) -> dict[str, object]:
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
