"""Notes on a board: conditions of a section, provenance of the records, labels for similar rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.comparability import settings_of
from harness.digests import canonical_json, digest
from harness.record import CellView, EnvironmentView, Parts, Record
from reports.data.frame import machine

SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class About:
    """Provenance of a board's numbers.

    Attributes:
        facts: (what, value) for people, in order.
        records: ids of all records behind the board, sorted.
        digest: one digest of those ids.
    """

    facts: tuple[tuple[str, str], ...] = ()
    records: tuple[str, ...] = ()
    digest: str = ""


def describe(kept: Sequence[tuple[str, Record]]) -> About:
    """Provenance of the records: versions, machines, commits, protocol; each distinct value once."""
    records = [record for _, record in kept]
    environments = [record.environment_view for record in records if record.environment]
    packages = {
        f"{name} {version}" for environment in environments for name, version in environment.packages.items() if version
    }
    facts = [
        ("protocol", _distinct(str(record.cell_view.protocol or "") for record in records)),
        ("sweeps", _distinct(record.sweep for record in records)),
        ("machines", _distinct("; ".join(_machine_words(record)) for record in records if machine(record))),
        ("Python", _distinct(str(environment.scalar("python") or "") for environment in environments)),
        ("packages", ", ".join(sorted(packages))),
        ("peft-matrix commit", _distinct(_commit(environment) for environment in environments)),
        ("software stacks", _distinct(record.fingerprint[:12] for record in records)),
        ("tasks", _distinct(_task_words(record) for record in records)),
        ("unpinned data", _distinct(text for environment in environments for text in _unpinned(environment))),
        ("records", str(len(records))),
    ]
    ids = tuple(sorted(identity for identity, _ in kept))
    return About(tuple((name, text) for name, text in facts if text), ids, digest(list(ids)))


def conditions(shared: Mapping[str, object], records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """Conditions that the rows of a section share, as readable text.

    Args:
        shared: what :func:`reports.data.frame.comparable` gives for any of them.
        records: the records of the section.
    """
    training = _mapping(shared.get("training"))
    task = _mapping(shared.get("task"))
    where = [_machine_words(record) for record in records if machine(record)]
    settings = [settings_of(record) for record in records]
    budget = [
        _range(settings, "steps", "{} steps"),
        f"{training['batch_size']:,} examples a batch" if isinstance(training.get("batch_size"), int) else "",
        _range(settings, "learning_rate", "learning rate {}"),
        f"schedule {training['schedule']}" if "schedule" in training else "",
        f"optimizer {training['optimizer']}" if "optimizer" in training else "",
    ]
    days = sorted({record.finished[:10] for record in records} - {""})
    sizes = [{"parameters": _value(record, "total_parameters")} for record in records]
    facts = [
        ("protocol", str(shared.get("protocol") or "")),
        ("machine", "; ".join(min(where)) if where else "not recorded"),
        ("threads", str(shared.get("threads") or "")),
        ("budget", ", ".join(filter(None, budget))),
        ("model parameters", _range(sizes, "parameters", "{}")),
        ("train items", _range(settings, "train_items", "{}")),
        ("test items also in train", _contamination(records)),
        ("test items", f"{task['test_items']:,}" if isinstance(task.get("test_items"), int) else ""),
        ("task version", f"{task.get('version', '')} ({str(task.get('digest', ''))[:8]})" if task else ""),
        ("measured", " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""),
        ("peft-matrix", ", ".join(sorted({s["version"] for s in settings if s["version"]}))),
    ]
    return tuple((name, text) for name, text in facts if text)


def row_settings(records: Sequence[Record]) -> dict[str, object]:
    """Settings of a configuration, parameters of its model with what the method added, and when its last seed ended.

    None: not stated.
    """
    sizes = [value for record in records if (value := _value(record, "total_parameters")) is not None]
    date = max(record.finished for record in records) or None
    return {**settings_of(records[0]), "model_parameters": max(sizes, default=None), "date": date}


def _value(record: Record, metric: str) -> int | None:
    value = record.value(metric)
    return None if value is None else round(value)


def _range(settings: Sequence[Mapping[str, Any]], name: str, text: str) -> str:
    """``text`` with the least and the greatest value of a setting; "" where no record states it."""
    values = sorted({found[name] for found in settings if found[name] is not None})
    shown = [
        f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in dict.fromkeys(values[:1] + values[-1:])
    ]
    return text.format(" to ".join(shown)) if shown else ""


def _contamination(records: Sequence[Record]) -> str:
    """Number of test items that are also in the training data, if any record found one; otherwise ""."""
    counts = set()
    for record in records:
        found = Parts(record.environment_view.facts).part("contamination").get("test_items_in_train")
        if isinstance(found, int):
            counts.add(found)
    return " or ".join(f"{count:,}" for count in sorted(counts)) if any(counts) else ""


def tell_apart(rows: Sequence[tuple[str, Mapping[str, object]]]) -> dict[str, dict[str, str]]:
    """For rows that carry the same labels: the labels extended by what differs.

    Args:
        rows: configuration digest and cell.

    Returns:
        Configuration to the labels to replace (``{}`` for most).
    """
    alike: dict[tuple[str, ...], list[tuple[str, Mapping[str, object]]]] = {}
    for config, cell in rows:
        view = CellView(cell)
        labels = tuple(view.label(axis) for axis in ("model", "method", "quantization", "task"))
        alike.setdefault(labels, []).append((config, cell))
    out: dict[str, dict[str, str]] = {config: {} for config, _ in rows}
    for labels, named_alike in alike.items():
        if len(named_alike) == 1:
            continue
        members = [(config, dict(_flat(cell))) for config, cell in named_alike]
        names = sorted({name for _, flat in members for name in flat})
        differing = [name for name in names if len({flat.get(name, "–") for _, flat in members}) > 1]
        for config, flat in members:
            words = [f"{name.rpartition('.')[2]}={flat.get(name, '–')}" for name in differing[:SHOWN_DIFFERENCES]]
            out[config] = {"method": f"{labels[1]} ({', '.join(words) or config[:6]})"}
    return out


def _flat(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for name, item in value.items():
        if name in ("label", "seed"):
            continue
        out += _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else [(prefix + name, canonical_json(item))]
    return out


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _distinct(values: Any) -> str:
    return "; ".join(sorted({value for value in values if value}))


def _unpinned(environment: EnvironmentView) -> list[str]:
    loose = Parts(environment.facts).part("unpinned")
    return [f"{hub}: its rows may change under this name ({why})" for hub, why in loose.items()]


def _machine_words(record: Record) -> list[str]:
    found = machine(record)
    return [found["cpu"] or "unknown processor", *found.get("gpus", [])]


def _commit(environment: EnvironmentView) -> str:
    commit = environment.commit[:12]
    return f"{commit} with local changes" if commit and environment.part("harness").get("dirty") else commit


def _task_words(record: Record) -> str:
    task = record.cell_view.part("task")
    return (
        f"{task.get('name', '')} version {task.get('version', '')} ({str(task.get('digest', ''))[:8]})" if task else ""
    )
