"""The record: what one cell left behind. Written once, never edited, and enough to rebuild every board.

A record explains itself: every number is a :class:`Reading` with unit, instrument and, where there is no
value, a typed reason. Its ``id`` is the digest of its content, so a damaged record is recognised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.bounded import parse_json
from harness.digests import canonical_json, digest, digest_text
from harness.errors import UserError

SCHEMA_VERSION = 1

PROTOCOL = 1
"""Version of the measuring protocol; part of every cell's key. Records of two versions are never compared."""

Status = Literal["ok", "oom", "timeout", "diverged", "unsupported", "error", "interrupted", "lost"]
FINAL_STATUSES: frozenset[str] = frozenset({"ok", "oom", "timeout", "diverged", "unsupported", "error"})
"""Statuses that the next ``run`` leaves alone; ``interrupted`` and ``lost`` are run again."""

WhyMissing = Literal[
    "not_supported",  # the instrument or the library cannot give it
    "no_device",  # there is no such device
    "no_permission",  # the system refuses
    "mig",  # a partitioned GPU has no separate sensor
    "device_lost",  # the device or its driver went away during the window
    "window_too_short",  # shorter than the sensor needs
    "shared",  # a foreign process used the device
    "too_few",  # not enough samples for this statistic
    "not_applicable",  # the quantity has no meaning for this cell
    "not_measured",  # this sweep did not ask for it
    "stage_not_reached",  # the cell ended earlier
    "target_not_reached",  # training ended before the score met the target
    "length_mismatch",  # the produced length differs from the requested one
    "oom",  # out of memory at this point of a grid
    "failed",  # the instrument raised; see details
]


class UnknownLayout(UserError):
    """A record of a layout this version does not read: not damaged, and not to be touched."""


class Frozen(BaseModel):
    """Base of every stored value: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Reading(Frozen):
    """One measured quantity: a value with its unit and instrument, or a typed reason why there is none."""

    quantity: str
    value: float | None
    unit: str
    source: str
    resolution: float | None = None
    why_missing: WhyMissing | None = None
    n: int | None = None
    spread: float | None = None
    details: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _value_or_reason(self) -> Reading:
        if (self.value is None) == (self.why_missing is None):
            raise ValueError(f"{self.quantity}: give either a value or why_missing, not both and not neither")
        return self


class Span(Frozen):
    """One stage of a cell: its wall time (None if the clock failed) and what each meter read over it.

    Attributes:
        EARLIER: how the names of spans begin that another cell measured: the training this one started from.
    """

    EARLIER: ClassVar[str] = "earlier "

    stage: str
    seconds: float | None
    readings: tuple[Reading, ...] = ()

    def get(self, quantity: str) -> Reading | None:
        """The reading of ``quantity`` in this span, if a meter gave one."""
        return next((r for r in self.readings if r.quantity == quantity), None)


class Outcome(Frozen):
    """End of a cell: its status, the stage it reached, the reason, and the end of its log."""

    status: Status
    stage: str = ""
    reason: str = ""
    check: str = ""
    log_tail: str = ""


class SamplesRef(Frozen):
    """Path and digest of the scored items of a cell (Parquet, stored with the record)."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # it becomes a file name
    rows: int = Field(ge=0)


PARTS = {
    "cell": ("model", "method", "quantization", "task", "hardware", "training", "evaluation"),
    "environment": ("packages", "facts", "imported"),
}
"""Parts of a record that are mappings where they are there at all."""
SHARES = ("accuracy", "merged_accuracy", "retained_accuracy", "base_retained_accuracy")
"""Quantities that are a share of items; intervals are computed from them."""


Scalar = str | int | float | bool | None


class Parts:
    """Mappings inside a mapping, each of them empty where it is not there."""

    def __init__(self, content: Mapping[str, object]) -> None:
        self._content = content

    def part(self, name: str) -> Mapping[str, object]:
        """One part, ``{}`` where there is none."""
        found = self._content.get(name)
        return found if isinstance(found, dict) else {}

    def scalar(self, name: str) -> Scalar:
        """A value that has no parts, None where there is none."""
        found = self._content.get(name)
        return found if isinstance(found, str | int | float) else None


class CellView(Parts):
    """The settings that readers ask a record's cell for, with their types. ``Record.cell`` is the whole cell."""

    @property
    def seed(self) -> Scalar:
        """The seed."""
        return self.scalar("seed")

    @property
    def role(self) -> str:
        """``result``, or what the record is instead: part of tuning, or a repeated run."""
        return str(self._content.get("role", "result"))

    @property
    def protocol(self) -> Scalar:
        """Version of the measuring protocol; the tool's name in an imported record."""
        return self.scalar("protocol")

    @property
    def second_arm(self) -> bool:
        """Whether it is the second of two equal runs of a block."""
        return bool(self._content.get("arm"))

    def label(self, axis: str) -> str:
        """Label of the cell's value on an axis, "" where it has none."""
        return str(self.part(axis).get("label", ""))

    def name(self, axis: str) -> str:
        """Registered name of the cell's value on an axis, "" where it has none."""
        return str(self.part(axis).get("name", ""))

    @property
    def params(self) -> Mapping[str, object]:
        """Parameters of the method."""
        return Parts(self.part("method")).part("params")

    @property
    def learning_rate(self) -> float | None:
        """Of the method; None where it does not train."""
        found = self.part("method").get("learning_rate")
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    @property
    def trained_before(self) -> tuple[Mapping[str, object], ...]:
        """The earlier stages of training, in order."""
        found = self.part("stages").get("earlier")
        return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list | tuple) else ()


class EnvironmentView(Parts):
    """Properties of a record's environment that readers ask for. ``Record.environment`` is all of it."""

    @property
    def facts(self) -> Mapping[str, object]:
        """Findings of the worker: choices of the method, of tuning, of the batch size."""
        return self.part("facts")

    @property
    def packages(self) -> Mapping[str, object]:
        """Package to version."""
        return self.part("packages")

    @property
    def imported(self) -> Mapping[str, object]:
        """Origin of a record that another tool made; empty for one that was made here."""
        return self.part("imported")

    @property
    def commit(self) -> str:
        """Commit of peft-matrix, "" where it is not known."""
        return str(self.part("harness").get("commit") or "")

    @property
    def cpu(self) -> str:
        """Model of the processor, "" where it is not known."""
        return str(self.part("cpu").get("model", ""))

    @property
    def gpus(self) -> list[Mapping[str, object]]:
        """Name, driver and power limit of each GPU. The first records of GPU runs hold UUIDs alone."""
        found = self._content.get("gpus")
        listed = found if isinstance(found, list | tuple) else ()
        return [one if isinstance(one, dict) else {"name": "GPU not described", "uuid": str(one)} for one in listed]


class Record(Frozen):
    """Everything one attempt at one cell left behind.

    Attributes:
        schema_version: layout of this record; older ones are upgraded step by step on loading.
        key: digest of the cell's identity (:mod:`harness.matrix`).
        label: readable name of the cell.
        sweep: name of the sweep that ran it.
        cell: the resolved cell, as the worker saw it.
        metrics: quantity to reading, for the whole cell.
        spans: the stages in order.
        series: values over training steps (``loss``, ``grad_norm``, ``step_ms``), and power over the cell (``power_s``,
            ``power_w``) if a GPU reports it.
        environment: versions, machine, device state.
        fingerprint: digest of the parts of the environment that can change a number.
        supersedes: id of the record this one corrects, if any.
    """

    schema_version: int = SCHEMA_VERSION
    key: str
    label: str
    sweep: str
    cell: dict[str, Any]
    outcome: Outcome
    metrics: dict[str, Reading] = Field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    series: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    samples: SamplesRef | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    fingerprint: str = ""
    attempt: int = 1
    started: str = ""
    finished: str = ""
    supersedes: str | None = None

    @model_validator(mode="after")
    def _can_be_read(self) -> Record:
        """Check the types of a cell's parts, and that shares are within 0 and 1: every reader relies on both."""
        for name, held in (("cell", self.cell), ("environment", self.environment)):
            for key in PARTS[name]:
                if not isinstance(held.get(key), dict | None):
                    raise ValueError(f"{name}.{key} has keys and values, not {ascii(held[key])[:40]}")
        if max(abs(self.attempt), *(abs(n) for n in self._counts())) >= 2**63:
            raise ValueError("an attempt or a number of samples is beyond 64 bits")
        for name in SHARES:
            value = self.metrics[name].value if name in self.metrics else None
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is between 0 and 1, not {value}")
        return self

    def _counts(self) -> list[int]:
        readings = (*self.metrics.values(), *(r for span in self.spans for r in span.readings))
        return [0, *(r.n for r in readings if r.n is not None)]

    def content(self) -> dict[str, Any]:
        """The record as plain JSON values, without its id."""
        return self.model_dump(mode="json")

    @cached_property
    def id(self) -> str:
        """Digest of the content; for a record read from disk, of the content that was written."""
        return digest(self.content())

    @property
    def status(self) -> Status:
        """The cell's outcome."""
        return self.outcome.status

    @property
    def cell_view(self) -> CellView:
        """The cell's settings by name."""
        return CellView(self.cell)

    @property
    def environment_view(self) -> EnvironmentView:
        """The environment by name."""
        return EnvironmentView(self.environment)

    indexed: ClassVar[Mapping[str, Any] | None] = None
    """Results of :mod:`harness.comparability`, where the record comes from an index that holds them."""

    def found(self, name: str) -> Reading | None:
        """The reading of a metric, or of ``stage.metric``."""
        stage, _, metric = name.rpartition(".")
        if not stage:
            return self.metrics.get(metric)
        span = next((span for span in self.spans if span.stage == stage), None)
        return span.get(metric) if span is not None else None

    def value(self, name: str) -> float | None:
        """Value of a metric, or of ``stage.metric``; None where the record has none."""
        reading = self.found(name)
        return None if reading is None else reading.value

    def items(self, name: str) -> int | None:
        """Number behind the value of a metric, None where the record does not say."""
        reading = self.found(name)
        return None if reading is None else reading.n

    @cached_property
    def loss_rose(self) -> bool:
        """Whether the mean training loss of the last tenth of the steps is above that of the first tenth."""
        import numpy as np  # not needed to read or write a record

        loss = self.series.get("loss", ())
        part = max(1, len(loss) // 10)
        return len(loss) > 1 and float(np.mean(loss[-part:])) > float(np.mean(loss[:part]))

    def model_copy(self, *, update: Mapping[str, object] | None = None, deep: bool = False) -> Self:
        """A copy with other values is another record: its id is its own."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "loss_rose"):
            copied.__dict__.pop(name, None)
        return copied

    def to_json(self) -> str:
        """The text stored on disk: one line with the id, then the content as canonical JSON, whose digest the id is.

        Records written before November 2026 have one field a line. They read the same and keep their ids.

        Raises:
            ValueError: the record was read in an older schema; its file is copied byte for byte, never rewritten.
        """
        canonical = canonical_json(self.content())
        identity = digest_text(canonical)
        if self.__dict__.setdefault("id", identity) != identity:  # the cached id: the content is encoded once
            raise ValueError(f"record {self.id[:12]} was upgraded from an older layout: copy its file instead")
        return f'{{"id":"{identity}",{canonical[1:]}\n'

    @classmethod
    def from_json(cls, text: str, *, where: str = "record", id_prefix: str = "") -> Record:
        """Read a stored record; one of an older layout is upgraded (:mod:`harness.record`) and keeps its id.

        Args:
            text: what :meth:`to_json` wrote.
            where: file named in messages.
            id_prefix: what the id must begin with.

        Raises:
            UnknownLayout: written by another version.
            UserError: not JSON, not a record, or content that does not match its id.
        """
        try:
            data = parse_json(text, where=where, large=True)
            stored_id = data.pop("id")
        except UserError as error:
            raise UserError(f"not a readable record: {error.what}", where=where) from error
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"not a readable record ({error})", where=where) from error
        version = data.get("schema_version")
        if not isinstance(version, int):
            raise UserError("not a record: it has no schema_version", where=where)
        if not 1 <= version <= SCHEMA_VERSION:
            raise UnknownLayout(
                f"record layout {version!r} is not known to this version, which reads 1 to {SCHEMA_VERSION}",
                where=where,
                fix="Update peft-matrix, or move the file away.",
            )
        try:
            actual_id = _written_id(text, stored_id) or digest(data)
        except ValueError as error:  # NaN, or text that is not Unicode
            raise UserError(f"not a readable record ({error})", where=where) from error
        if actual_id != stored_id:
            raise UserError("the content does not match its id: the file was changed or cut off", where=where)
        if not actual_id.startswith(id_prefix):
            raise UserError(f"another record than expected: its id does not begin with {id_prefix}", where=where)
        try:
            record = cls.model_validate(upgrade(data, to=SCHEMA_VERSION))
        except ValidationError as error:
            words = _unknown_words(error)
            if words is not None:
                raise UnknownLayout(
                    f"this version does not know {words}", where=where, fix="Update peft-matrix, or move the file away."
                ) from error
            raise UserError(f"not a record: {error}", where=where) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"not a record: {error}", where=where) from error
        record.__dict__["id"] = actual_id  # cached_property: computing the digest is expensive, so fill it now
        return record


class SharedParts:
    """Makes records that are held together share what is equal in them: a quarter of the memory.

    Readings, spans' readings, and the parts of cell and environment are one object where they are equal in value and in
    type, so that no content changes. Nobody writes into a record.
    """

    def __init__(self) -> None:
        self._readings: dict[tuple[object, ...], Reading] = {}
        self._parts: dict[str, object] = {}
        self._fields: dict[frozenset[str], set[str]] = {}

    def share(self, record: Record) -> Record:
        """The record itself, with its parts replaced by equal ones of earlier records."""
        held = record.__dict__  # of a frozen model: equal values take the places of equal values
        held["metrics"] = {sys.intern(name): self._reading(one) for name, one in record.metrics.items()}
        for span in record.spans:
            span.__dict__["readings"] = tuple(map(self._reading, span.readings))
        for name in ("cell", "environment"):
            held[name] = {sys.intern(key): self._part(part) for key, part in held[name].items()}
        return record

    def _reading(self, one: Reading) -> Reading:
        if one.details or one.value == 0:  # 0.0 and -0.0 are equal and have different digests
            return self._own(one)
        key = (one.quantity, one.value, one.unit, one.source, one.resolution, one.why_missing, one.n, one.spread)
        return self._readings.get(key) or self._readings.setdefault(key, self._own(one))

    def _own(self, one: Reading) -> Reading:
        held = one.__dict__
        held["quantity"], held["unit"], held["source"] = map(sys.intern, (one.quantity, one.unit, one.source))
        set_fields = one.__pydantic_fields_set__
        object.__setattr__(one, "__pydantic_fields_set__", self._fields.setdefault(frozenset(set_fields), set_fields))
        return one

    def _part(self, part: object) -> object:
        return self._parts.setdefault(repr(part), part) if isinstance(part, dict | list) else part


def _written_id(text: str, stored_id: object) -> str:
    """The id of a text that :meth:`Record.to_json` wrote, without encoding the content again; "" for any other text."""
    head = f'{{"id":"{stored_id}",'
    if not text.startswith(head) or not text.endswith("}\n"):
        return ""
    identity = digest_text("{" + text[len(head) : -1])
    return identity if identity == stored_id else ""


def _unknown_words(error: ValidationError) -> str | None:
    """The words of closed lists (a status, a reason for a missing value) that are all that is wrong, else None.

    A later version may have added a word; such a record is not damaged.
    """
    faults = error.errors()
    if not all(fault["type"] == "literal_error" and isinstance(fault["input"], str) for fault in faults):
        return None
    return ", ".join(sorted({f"{fault['loc'][-1]} {fault['input']!r}" for fault in faults}))


Content = dict[str, Any]
Step = Callable[[Content], Content]

STEPS: dict[int, Step] = {}
"""Layout to the step that makes the next one of it. Empty: there has been one layout."""


def upgrade(content: Content, *, to: int) -> Content:
    """A record's content in layout ``to``, one step at a time.

    Args:
        content: plain JSON values of a record of layout ``to`` or an earlier one; it is not changed.

    Raises:
        KeyError: a step is missing.
    """
    for number in range(content["schema_version"], to):
        content = {**STEPS[number](dict(content)), "schema_version": number + 1}
    return content
