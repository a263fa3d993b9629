"""Records that can support a claim. What is refused is named, so that nothing slips in or out silently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from harness.digests import digest
from harness.record import PROTOCOL, Record, Scalar
from reports.apps.reproduction.claims import Arm, Count, Scope
from reports.data.effects import Evidence, peers
from reports.data.frame import configuration, current, is_trial, marks
from reports.data.samples import SampleSource
from reports.data.timing import DISTURBED, TimedRuns


def count_key(count: Count) -> str:
    """Key of the record that holds a count."""
    return digest({"count": count.model_dump(mode="json"), "protocol": PROTOCOL})


@dataclass
class ArmRecords:
    """Records of one arm, by seed, and the flags of what was refused."""

    records: dict[Scalar, tuple[str, Record]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the records, sorted."""
        return tuple(sorted(identity for identity, _ in self.records.values()))


class Library:
    """The store's records, by sweep and by key.

    Args:
        records: everything in the store.
        samples: record id to its table of scored items.
    """

    def __init__(self, records: Iterable[Record], samples: SampleSource) -> None:
        self.samples = samples
        self.evidence = Evidence(samples)
        self._by_sweep: dict[str, list[tuple[str, Record]]] = {}
        self._by_key: dict[str, tuple[str, Record]] = {}
        speaking = current(records)
        self._timed = TimedRuns(record for _, record in speaking)
        for identity, record in speaking:
            self._by_sweep.setdefault(record.sweep, []).append((identity, record))
            self._by_key[record.key] = (identity, record)

    def members(self, *sides: ArmRecords) -> tuple[list[str], dict[str, list[tuple[Scalar, str]]]]:
        """Configuration of each side, and the runs of all configurations that may be compared with them.

        A side may hold several configurations (a pattern that matches the same cell under several sweeps' names); its
        records count as one configuration, that of its first record.
        """
        like = [next(iter(side.records.values()))[1] for side in sides]
        names = [configuration(record) for record in like]
        found = peers(self._results(like), like)
        for name, side in zip(names, sides, strict=True):
            found[name] = [(seed, identity) for seed, (identity, _) in sorted(side.records.items(), key=str)]
        return names, found

    def _results(self, like: Iterable[Record]) -> list[tuple[str, Record]]:
        sweeps = {record.sweep for record in like}
        return [pair for sweep in sweeps for pair in self._by_sweep[sweep] if not is_trial(pair[1])]

    def runs(self, side: ArmRecords) -> list[Record]:
        """The records of an arm, and the runs that repeat them for their time."""
        found = dict(side.records.values())
        for record in tuple(found.values()):
            found |= {again.id: again for again in self._timed.of(record)}
        return list(found.values())

    def identical(self, side: ArmRecords) -> list[tuple[list[Record], list[Record]]]:
        """A/A arms of the sweep that an arm ran in."""
        return self._timed.identical(next(iter(side.records.values()))[1])

    def has(self, sweep: str) -> bool:
        """True if the store has any record of the sweep."""
        return sweep in self._by_sweep

    def by_ids(self, sweep: str, ids: Iterable[str]) -> list[Record]:
        """These records of a sweep."""
        wanted = set(ids)
        return [record for identity, record in self._by_sweep.get(sweep, ()) if identity in wanted]

    def count(self, count: Count) -> tuple[str, Record] | None:
        """The record of a count, if it was made under this protocol."""
        return self._by_key.get(count_key(count))

    def arm(self, sweep: str, arm: Arm, *, timed: bool) -> ArmRecords:
        """Records of an arm, one a seed: of cells that differ in their number of test items, the one with most.

        Args:
            timed: whether the metric is a time, an energy or a memory, for which throttled and shared rows
                are no evidence.
        """
        found = ArmRecords()
        for identity, record in self._by_sweep.get(sweep, ()):
            if not matches(record, arm):
                continue
            refused = _refusal(record, timed)
            if refused:
                found.flags.add(refused)
            elif record.outcome.status != "ok":
                found.failed.append(f"seed {record.cell_view.seed}: {record.outcome.status}")
            else:
                held = found.records.get(record.cell_view.seed)
                if held is None or _items(record) >= _items(held[1]):
                    found.records[record.cell_view.seed] = (identity, record)
        return found


def _items(record: Record) -> int:
    """Test items behind a record's accuracy."""
    reading = record.metrics.get("accuracy")
    return reading.n or 0 if reading is not None else 0


def matches(record: Record, arm: Arm) -> bool:
    """True if a record belongs to an arm: its labels match and it is a result, not a trial of tuning."""
    if record.cell_view.role != "result":
        return False
    for axis in ("model", "method", "quantization", "task"):
        if not fnmatchcase(record.cell_view.label(axis), getattr(arm, axis)):
            return False
    params = record.cell_view.params
    return all(params.get(name) == value for name, value in arm.params.items())


def outside(scope: Scope, records: Iterable[Record]) -> str:
    """Conditions of the records that are outside a claim's scope; empty if all are within."""
    for record in records:
        model, task = record.cell_view.part("model"), record.cell_view.part("task")
        if scope.models and not {str(model.get("label")), str(model.get("id"))} & set(scope.models):
            return f"another model ({model.get('label')}, the claim is on {', '.join(scope.models)})"
        if scope.data and str(task.get("label")) not in scope.data:
            return f"other data ({task.get('label')}, the claim is on {', '.join(scope.data)})"
    return ""


def tuned(record: Record) -> bool:
    """True if the cell's learning rate was chosen by the sweep's tuning budget (or nothing had to be chosen)."""
    if record.cell_view.learning_rate is None:
        return True
    return bool(record.cell.get("tuning"))


def at_edge(record: Record) -> bool:
    """Whether tuning found its best learning rate at the edge of the rates it tried."""
    tuning = record.environment_view.facts.get("tuning")
    return isinstance(tuning, Mapping) and tuning.get("lr_at_edge") is True


def _refusal(record: Record, timed: bool) -> str:
    if "imported" in marks(record):
        return "imported-evidence-refused"
    if record.cell_view.protocol != PROTOCOL:
        return "other-protocol-refused"
    if timed and DISTURBED & set(marks(record)):
        return "disturbed-evidence-refused"
    return ""
